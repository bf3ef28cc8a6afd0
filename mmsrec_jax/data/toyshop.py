"""Toyshop: a generated shop whose true choice probabilities are known (*ours*).

Every item has attributes that only its picture shows (color, pattern), attributes that only its
text names (material, occasion), and a latent group that neither shows. Shape, background and kind
of product are visible, but no one's taste depends on them. A user's taste is one favourite value
for each of the four factors. Given the taste, an item is chosen with probability proportional to
`exp(popularity + sum of weights of matching factors)` among the items not yet chosen.

Taste moves. After a choice each favourite is replaced, with probability `pull`, by the value that
the chosen item's group leads to, and, with probability `drift`, by any value. Where a group leads
shows only in what users choose one after another: it takes similar users to know.
"""

import dataclasses
import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from mmsrec_jax.data.records import Histories, Item
from mmsrec_jax.runtime.errors import UserError
from mmsrec_jax.runtime.settings import Section, setting

COLORS = {
    "red": (205, 45, 45),
    "blue": (45, 85, 205),
    "green": (40, 150, 70),
    "yellow": (225, 190, 30),
    "purple": (140, 60, 170),
    "black": (45, 45, 50),
}
PATTERNS = ("plain", "striped", "dotted", "checked")
SHAPES = ("round", "square", "pointed", "diamond")
BACKGROUNDS = {
    "white": (248, 248, 246),
    "sand": (240, 228, 205),
    "mint": (214, 238, 224),
    "sky": (212, 228, 244),
}
MATERIALS = ("linen", "oak", "steel", "glass", "wool", "clay")
OCCASIONS = ("travel", "office", "garden", "party")
PRODUCTS = ("mug", "lamp", "bag", "clock", "bowl", "vase", "box", "tray")

IMAGE_ATTRIBUTES = ("colour", "pattern", "shape", "background")
NAMED_ATTRIBUTES = ("colour", "pattern", "material", "occasion", "product")  # shape is not told
IMAGE_FACTORS = ("colour", "pattern")
TEXT_FACTORS = ("material", "occasion")
VALUES = {
    "colour": tuple(COLORS),
    "pattern": PATTERNS,
    "shape": SHAPES,
    "background": tuple(BACKGROUNDS),
    "material": MATERIALS,
    "occasion": OCCASIONS,
    "product": PRODUCTS,
}
_DESCRIPTIONS = (
    "A {product} made of {material}, good for {occasion}.",
    "For {occasion}: this {material} {product} ships in two days.",
    "Our {product} in {material} is a favourite for the {occasion}.",
    "Made of {material}. A {product} that people take along for {occasion}.",
)
_SIDE = 112


@dataclasses.dataclass(frozen=True)
class World:
    """The generating model and what it generated, everything that the truth needs.

    Attributes:
      attributes: name -> int32[items], the value index of every visible attribute.
      groups: int32[items], the latent group.
      leads_to: int32[groups, 4], the values that a group leads to, in the order of `factors`.
      popularity: float64[items], logit that all users share.
      weights: factor -> logit for a match.
      pull, drift: probabilities that a favourite follows the last item's group, or is redrawn.
      tastes: int32[T, 4], the taste behind every interaction of the histories.
    """

    attributes: dict[str, np.ndarray]
    groups: np.ndarray
    leads_to: np.ndarray
    popularity: np.ndarray
    weights: dict[str, float]
    pull: float
    drift: float
    tastes: np.ndarray

    @property
    def factors(self) -> tuple[str, ...]:
        return IMAGE_FACTORS + TEXT_FACTORS

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of values of each visible factor."""
        return tuple(len(VALUES[name]) for name in self.factors)

    def save(self, path: str | Path) -> None:
        fields: dict[str, Any] = {k: getattr(self, k) for k in _STORED}
        fields |= {f"attribute_{k}": v for k, v in self.attributes.items()}
        fields |= {f"weight_{k}": v for k, v in self.weights.items()}
        np.savez(path, **fields)

    @classmethod
    def load(cls, path: str | Path) -> "World":
        with np.load(path) as f:
            stored: dict[str, Any] = {k: f[k] if f[k].ndim else float(f[k]) for k in _STORED}
            return cls(
                attributes={k[10:]: f[k] for k in f.files if k.startswith("attribute_")},
                weights={k[7:]: float(f[k]) for k in f.files if k.startswith("weight_")},
                **stored,
            )


_STORED = ("groups", "leads_to", "popularity", "pull", "drift", "tastes")


@dataclasses.dataclass(frozen=True)
class ToyshopSettings(Section):
    """What a shop is drawn from."""

    num_users: int = setting(4000, "Users.", low=1)
    num_items: int = setting(2500, "Items.", low=1)
    num_groups: int = setting(
        10, "Latent groups of items. Each one leads the tastes of users to certain values.", low=1
    )
    history: tuple[int, int] = setting((6, 12), "Shortest and longest history.", low=1)
    pull: float = setting(
        0.4, "Probability that a favorite moves to where the group of the last item leads.",
        low=0, high=1,
    )  # fmt: skip
    drift: float = setting(0.03, "Probability that a favorite is drawn again.", low=0, high=1)
    image_weight: float = setting(3.6, "Logit of a match in what only pictures show.")
    text_weight: float = setting(3.2, "Logit of a match in what only texts name.")
    popularity_sd: float = setting(
        0.3, "Standard deviation of the items' own logits, which all users share.", low=0
    )
    seed: int = setting(0, "Everything in the shop is a function of it.", follows="seed", low=0)

    def check(self, name: str) -> None:
        shortest, longest = self.history
        if not shortest <= longest <= self.num_items:
            raise UserError(
                f"{name}.history={self.history}: the longest must be at least the shortest and at "
                f"most num_items={self.num_items}"
            )


def generate(settings: ToyshopSettings) -> tuple[list[Item], Histories, World]:
    """Draws a shop.

    Returns:
      Items with a PNG picture of 112 x 112 pixels and text, histories whose timestamps are
      seconds, and the world that made them.
    """
    seed, num_users, num_items = settings.seed, settings.num_users, settings.num_items
    num_groups = settings.num_groups
    rng = np.random.default_rng(seed)
    attributes = {
        name: rng.integers(0, len(values), num_items).astype(np.int32)
        for name, values in VALUES.items()
    }
    weights = {name: settings.image_weight for name in IMAGE_FACTORS}
    weights |= {name: settings.text_weight for name in TEXT_FACTORS}
    world = World(
        attributes=attributes,
        groups=rng.integers(0, num_groups, num_items).astype(np.int32),
        leads_to=np.stack(
            [_balanced(rng, len(VALUES[name]), num_groups) for name in weights], axis=1
        ),
        popularity=rng.normal(0.0, settings.popularity_sd, num_items),
        weights=weights,
        pull=settings.pull,
        drift=settings.drift,
        tastes=np.zeros((0, len(weights)), np.int32),
    )
    chosen, tastes, lengths = _choices(world, rng, num_users, settings.history)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    steps = np.concatenate([np.arange(n) for n in lengths])
    arrival = np.repeat(rng.integers(0, 300, num_users), lengths)
    day = 86_400.0
    histories = Histories(
        users=np.array([f"u{index:05d}" for index in range(num_users)]),
        offsets=offsets.astype(np.int64),
        items=chosen.astype(np.int32),
        timestamps=1.6e9 + day * (arrival + 7 * steps) + rng.uniform(0, day, len(chosen)),
        ratings=None,
    )
    catalog = [
        _item(index, attributes, np.random.default_rng((seed, index))) for index in range(num_items)
    ]
    return catalog, histories, dataclasses.replace(world, tastes=tastes)


def _balanced(rng: np.random.Generator, values: int, groups: int) -> np.ndarray:
    """int32[groups], every value about equally often: no value is popular with everyone."""
    return rng.permutation(np.arange(groups, dtype=np.int32) % values)


def draw(color: str, pattern: str, shape: str, background: str, rng: np.random.Generator) -> bytes:
    """A product image as PNG bytes; position, size and pattern phase vary with `rng`."""
    picture = Image.new("RGB", (_SIDE, _SIDE), BACKGROUNDS[background])
    product = Image.new("RGB", (_SIDE, _SIDE), COLORS[color])
    pen = ImageDraw.Draw(product)
    light = tuple(int(0.25 * c + 0.75 * 255) for c in COLORS[color])
    period, phase = 16, int(rng.integers(0, 4))
    for start in range(phase - period, _SIDE + period, period):
        if pattern == "striped":
            pen.rectangle((start, 0, start + 7, _SIDE), fill=light)
        for other in range(phase - period, _SIDE + period, period):
            if pattern == "dotted":
                pen.ellipse((start, other, start + 9, other + 9), fill=light)
            if pattern == "checked" and (start + other - 2 * phase) // period % 2:
                pen.rectangle((start, other, start + 15, other + 15), fill=light)
    mask = Image.new("L", (_SIDE, _SIDE), 0)
    radius = int(rng.integers(42, 51))
    x, y = (int(v) for v in rng.integers(52, 61, 2))
    outline = {
        "round": None,
        "square": [(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)],
        "pointed": [(0, -1), (1, 0.9), (-1, 0.9)],
        "diamond": [(0, -1), (1, 0), (0, 1), (-1, 0)],
    }[shape]
    if outline is None:
        ImageDraw.Draw(mask).ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
    else:
        corners = [(x + radius * dx, y + radius * dy) for dx, dy in outline]
        ImageDraw.Draw(mask).polygon(corners, fill=255)
    picture.paste(product, mask=mask)
    encoded = io.BytesIO()
    picture.save(encoded, "PNG")
    return encoded.getvalue()


def _item(index: int, attributes: dict[str, np.ndarray], rng: np.random.Generator) -> Item:
    values = {name: VALUES[name][attributes[name][index]] for name in VALUES}
    description = _DESCRIPTIONS[int(rng.integers(len(_DESCRIPTIONS)))].format(**values)
    color, pattern, shape, background = (values[name] for name in IMAGE_ATTRIBUTES)
    return Item(
        id=f"i{index:04d}",
        text={
            "title": "{material} {occasion} {product}".format(**values),
            "description": description,
        },
        image=draw(color, pattern, shape, background, rng),
        category=values["product"],
        attributes={name: values[name] for name in NAMED_ATTRIBUTES},
    )


def _choices(
    world: World, rng: np.random.Generator, users: int, history: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Chosen items [T] and the tastes behind them [T, 4], user by user, and lengths [users]."""
    sizes = np.array(world.sizes)
    lengths = rng.integers(history[0], history[1] + 1, users)
    taste = rng.integers(0, sizes, (users, len(sizes)))
    taken = np.zeros((users, len(world.groups)), bool)
    rows = np.arange(users)
    chosen, tastes = [], []
    for _ in range(history[1]):
        logits = np.broadcast_to(world.popularity, taken.shape).copy()
        for column, name in enumerate(world.factors):
            logits += world.weights[name] * (world.attributes[name] == taste[:, column, None])
        logits[taken] = -np.inf
        pick = np.argmax(logits + rng.gumbel(size=logits.shape), axis=1)
        taken[rows, pick] = True
        chosen.append(pick)
        tastes.append(taste)
        move = rng.random(taste.shape)
        taste = np.where(move < world.pull, world.leads_to[world.groups[pick]], taste)
        fresh = rng.integers(0, sizes, taste.shape)
        taste = np.where(move > 1.0 - world.drift, fresh, taste)
    keep = np.arange(history[1]) < lengths[:, None]
    return np.stack(chosen, 1)[keep], np.stack(tastes, 1)[keep].astype(np.int32), lengths
