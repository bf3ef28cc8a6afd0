"""Toyshop: a generated shop whose true choice probabilities are known (*ours*).

A user is a stable profile and a passing mood. The profile says which look the user wants away (for
office and travel) and at home (for garden and party), which material, and for which occasion the
user usually shops; it never changes. The mood is the occasion that the user shops for now. An item
is chosen, among what is on offer and not yet chosen, with probability proportional to
`exp(popularity + weights of what fits)`; these fit:

- occasion: the item's occasion is the mood;
- look: the item's look is the one that the profile wants *where the item is used*;
- material: the item's material is the one that the profile wants.

A look is a cell of a table of tone by pattern: two patterns are of one look, and the dark tone has
the looks the other way round, so that no single word tells it. Colors of one tone are alike. Half
of the users want one look everywhere.

The mood moves in two ways. A choice leads it, with probability `pull`, to an occasion that depends
on the latent group of the chosen item. And it passes: it survives a time `t` with probability
`exp(-t / mood_days)` and is drawn again, mostly the usual occasion. Users come in sessions of
minutes to hours and stay away for weeks. The user rates every choice by whether look and material
fit.
"""

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import numpy as np

from mmsrec_jax.data import toyshop_items
from mmsrec_jax.data.records import Histories, Item
from mmsrec_jax.data.toyshop_items import PATTERNS, PLACES, PRODUCTS, TONES, VALUES
from mmsrec_jax.runtime import disk
from mmsrec_jax.runtime.errors import UserError
from mmsrec_jax.runtime.progress import track
from mmsrec_jax.runtime.settings import Section, seed_setting, setting

LOOKS = 2
MOODS = len(VALUES["occasion"])
KINDS = (MOODS, LOOKS, len(VALUES["material"]))  # of items: how many values each fit is about
STATES = (LOOKS, LOOKS, KINDS[2], MOODS, MOODS)  # look away, at home, material, usual, mood
DAY = 86_400.0
RATINGS = np.array(  # [whether the look fits, whether the material fits; rating, 1 to 5]
    [
        [[0.80, 0.20, 0.00, 0.00, 0.00], [0.30, 0.60, 0.10, 0.00, 0.00]],
        [[0.00, 0.05, 0.65, 0.30, 0.00], [0.00, 0.00, 0.05, 0.30, 0.65]],
    ]
)
_END = 1.7e9  # when the histories end, in seconds since 1970
_NEWEST = 14 * DAY  # before the end: when the new items come, and the shortest break
_MORE = 0.55  # probability that a choice is not the last of its session


@dataclasses.dataclass(frozen=True)
class World:
    """The generating model and what it generated, everything that the truth needs.

    Attributes:
      attributes: name -> int32[items], the value index of every visible attribute.
      looks: int32[tones, patterns], the look of every combination.
      groups: int32[items], the latent group.
      leads_to: int32[groups], the occasion that a group leads the mood to.
      popularity: float64[items], logit that all users share.
      offered: float64[items], when an item is first on offer, seconds since 1970.
      weights: "occasion", "look", "material" -> logit of what fits.
      pull: probability that the mood follows the last item's group.
      mood_days: days after which a mood has survived with probability 1 / e.
      mean_survival: the mean of that probability over the gaps between choices.
      variety: probability that a mood that is drawn again is any occasion, not the usual one.
      one_look: share of users who want one look everywhere; the others want any two.
      states: int32[T, 5], the state behind every interaction, as in `STATES`.
    """

    attributes: dict[str, np.ndarray]
    looks: np.ndarray
    groups: np.ndarray
    leads_to: np.ndarray
    popularity: np.ndarray
    offered: np.ndarray
    weights: dict[str, float]
    pull: float
    mood_days: float
    mean_survival: float
    variety: float
    one_look: float
    states: np.ndarray

    @property
    def kinds(self) -> np.ndarray:
        """int32[items, 3]: occasion, look and material, on which a choice depends."""
        look = self.looks[TONES[self.attributes["color"]], self.attributes["pattern"]]
        of = self.attributes
        return np.stack([of["occasion"], look, of["material"]], axis=1).astype(np.int32)

    @property
    def redrawn(self) -> np.ndarray:
        """float64[MOODS, MOODS]: p(mood that is drawn again | usual occasion)."""
        return (1.0 - self.variety) * np.eye(MOODS) + self.variety / MOODS

    def survival(self, seconds: np.ndarray) -> np.ndarray:
        """Probability that a mood survives so long."""
        return np.exp(-np.asarray(seconds) / (DAY * self.mood_days))

    def save(self, path: str | Path) -> None:
        fields: dict[str, Any] = {k: getattr(self, k) for k in _STORED}
        fields |= {f"attribute_{k}": v for k, v in self.attributes.items()}
        fields |= {f"weight_{k}": v for k, v in self.weights.items()}
        np.savez(path, **fields)

    @classmethod
    def load(cls, path: str | Path) -> "World":
        """Raises UserError when the file is damaged."""
        remedy = f"delete {Path(path).parent} and run launch/train.py, which makes it"
        with disk.readable(Path(path), remedy), np.load(path) as f:
            stored: dict[str, Any] = {k: f[k] if f[k].ndim else float(f[k]) for k in _STORED}
            return cls(
                attributes={k[10:]: f[k] for k in f.files if k.startswith("attribute_")},
                weights={k[7:]: float(f[k]) for k in f.files if k.startswith("weight_")},
                **stored,
            )


_STORED = tuple(
    field.name for field in dataclasses.fields(World) if field.name not in ("attributes", "weights")
)


def fitting(kinds: np.ndarray, states: np.ndarray) -> np.ndarray:
    """What of an item fits a state: bool[..., 3] for occasion, look and material.

    kinds: int[..., 3] as in `World.kinds`; states: int[..., 5] as in `World.states`.
    """
    occasion, look, material = np.moveaxis(kinds, -1, 0)
    away, at_home, wanted, _, mood = np.moveaxis(states, -1, 0)
    fits = (mood == occasion, np.where(PLACES[occasion], at_home, away) == look, wanted == material)
    return np.stack(np.broadcast_arrays(*fits), axis=-1)


@dataclasses.dataclass(frozen=True)
class ToyshopSettings(Section):
    """What a shop is drawn from."""

    num_users: int = setting(8000, "Users.", low=1, high=1_000_000)
    num_items: int = setting(2500, "Items.", low=1, high=1_000_000)
    num_groups: int = setting(
        8,
        "Latent groups of items. Each one leads the mood of users to one occasion.",
        low=1,
        high=10_000,
    )
    history: tuple[int, int] = setting((6, 12), "Shortest and longest history.", low=1, high=10_000)
    pull: float = setting(
        0.95, "Probability that the mood moves to where the group of the last item leads.",
        low=0, high=1,
    )  # fmt: skip
    mood_days: float = setting(
        7.0,
        "Days that a mood survives with probability 1 / e; then it is drawn again.",
        low=0.001,
        high=1_000_000,
    )
    variety: float = setting(
        0.1, "Probability that a mood that is drawn again is not the usual one but any.",
        low=0, high=1,
    )  # fmt: skip
    one_look: float = setting(
        0.5, "Share of users who want one look everywhere; others want any two.", low=0, high=1
    )
    occasion_weight: float = setting(
        4.0, "Logit of an item whose occasion is the mood.", low=-100, high=100
    )
    look_weight: float = setting(
        2.2,
        "Logit of an item whose look is the one that the user wants where it is used.",
        low=-100,
        high=100,
    )
    material_weight: float = setting(
        2.8, "Logit of an item of the material that the user wants.", low=-100, high=100
    )
    popularity_sd: float = setting(
        0.45, "Standard deviation of the items' own logits, which all users share.", low=0, high=100
    )
    told_groups: float = setting(
        0.95, "Share of items whose group is the one of their kind of product.", low=0, high=1
    )
    new_items: float = setting(
        0.04, "Share of items that are on offer only in the last two weeks.", low=0, high=1
    )
    seed: int = seed_setting("Everything in the shop is a function of it.")

    def check(self, name: str) -> None:
        shortest, longest = self.history
        from_the_start = self.num_items - round(self.new_items * self.num_items)
        if not shortest <= longest <= from_the_start:
            raise UserError(
                f"{name}.history={self.history}: the longest must be at least the shortest and at "
                f"most the {from_the_start} items that are on offer from the start "
                f"(num_items={self.num_items}, new_items={self.new_items:g})"
            )


def generate(settings: ToyshopSettings) -> tuple[list[Item], Histories, World]:
    """Draws a shop.

    Returns:
      Items with a PNG picture of 112 x 112 pixels and text, histories whose timestamps are seconds
      and whose ratings are 1 to 5, and the world that made them.
    """
    rng = np.random.default_rng(settings.seed)
    world = _world(settings, rng)
    lengths = rng.integers(settings.history[0], settings.history[1] + 1, settings.num_users)
    times = _times(rng, lengths, settings.history[1])
    kept = np.arange(settings.history[1]) < lengths[:, None]
    chosen, states = _choices(world, rng, times)
    gaps = np.diff(times, axis=1)[kept[:, 1:]]
    chosen, states = chosen[kept], states[kept]
    _, look, material = fitting(world.kinds[chosen], states).astype(int).T
    drawn = rng.random(len(chosen))[:, None] > np.cumsum(RATINGS[look, material], axis=1)
    histories = Histories(
        users=np.array([f"u{index:05d}" for index in range(settings.num_users)]),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        items=chosen.astype(np.int32),
        timestamps=times[kept],
        ratings=(1 + drawn[:, :-1].sum(1)).astype(np.float32),
    )
    catalog = [
        toyshop_items.make(index, world.attributes, np.random.default_rng((settings.seed, index)))
        for index in track(range(settings.num_items), "draw items", settings.num_items, "items")
    ]
    mean_survival = float(world.survival(gaps).mean()) if len(gaps) else 1.0
    return (
        catalog,
        histories,
        dataclasses.replace(world, states=states.astype(np.int32), mean_survival=mean_survival),
    )


def _world(settings: ToyshopSettings, rng: np.random.Generator) -> World:
    """The generating model, before anyone has chosen."""
    num_items, num_groups = settings.num_items, settings.num_groups
    attributes = {
        name: rng.integers(0, len(values), num_items).astype(np.int32)
        for name, values in VALUES.items()
    }
    of_product = rng.permutation(np.arange(len(PRODUCTS)) % num_groups)
    told = rng.random(num_items) < settings.told_groups
    groups = np.where(
        told, of_product[attributes["product"]], rng.integers(0, num_groups, num_items)
    )
    late = rng.permutation(num_items) < round(settings.new_items * num_items)
    return World(
        attributes=attributes,
        looks=_looks(rng),
        groups=groups.astype(np.int32),
        leads_to=rng.permutation(np.arange(num_groups) % MOODS).astype(np.int32),
        popularity=rng.normal(0.0, settings.popularity_sd, num_items),
        offered=np.where(late, _END - _NEWEST, 0.0),
        weights={
            "occasion": settings.occasion_weight,
            "look": settings.look_weight,
            "material": settings.material_weight,
        },
        pull=settings.pull,
        mood_days=settings.mood_days,
        mean_survival=1.0,
        variety=settings.variety,
        one_look=settings.one_look,
        states=np.zeros((0, len(STATES)), np.int32),
    )


def _looks(rng: np.random.Generator) -> np.ndarray:
    """int32[tones, patterns]: a look for every two patterns; the last tone has the other ones."""
    table = np.tile(rng.permutation(np.arange(len(PATTERNS)) % LOOKS), (TONES.max() + 1, 1))
    table[-1] = (table[-1] + 1) % LOOKS
    return table.astype(np.int32)


def _times(rng: np.random.Generator, lengths: np.ndarray, longest: int) -> np.ndarray:
    """float64[users, longest], of which the first `lengths` of a row count.

    Everyone's last choice is in the last two weeks, and a break is longer than that: the new items
    stand in hardly any history before its last session.
    """
    shape = (len(lengths), longest - 1)
    within = 60.0 * np.exp(rng.normal(np.log(15), 1.2, shape))
    between = _NEWEST + DAY * np.exp(rng.normal(np.log(14), 0.8, shape))
    gaps = np.where(rng.random(shape) < _MORE, within, between)
    since = np.concatenate([np.zeros((len(lengths), 1)), np.cumsum(gaps, axis=1)], axis=1)
    last = np.take_along_axis(since, lengths[:, None] - 1, axis=1)
    return _END - rng.uniform(0, _NEWEST, (len(lengths), 1)) - last + since


def _choices(
    world: World, rng: np.random.Generator, times: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Chosen items [users, longest] and the states behind them [users, longest, 5]."""
    users, longest = times.shape
    rows, redrawn = np.arange(users), np.cumsum(world.redrawn, axis=1)
    every_kind = np.array(list(itertools.product(*map(range, KINDS))))
    kind_of_item = np.ravel_multi_index(world.kinds.T, KINDS)
    logit = np.array([world.weights[name] for name in ("occasion", "look", "material")])
    profile = rng.integers(0, STATES[:-1], (users, len(STATES) - 1))
    alike = rng.random(users) < world.one_look
    profile[alike, 1] = profile[alike, 0]

    def fresh_mood() -> np.ndarray:
        drawn = rng.random((users, 1))
        return (drawn > redrawn[profile[:, -1], :-1]).sum(1)

    mood, taken = fresh_mood(), np.zeros((users, len(kind_of_item)), bool)
    chosen, states = [], []
    for step in track(range(longest), "draw choices", longest, "places"):
        state = np.concatenate([profile, mood[:, None]], axis=1)
        utility = fitting(every_kind, state[:, None]) @ logit
        logits = utility[:, kind_of_item] + world.popularity
        logits[taken | (times[:, step, None] < world.offered)] = -np.inf
        pick = np.argmax(logits + rng.gumbel(size=logits.shape), axis=1)
        taken[rows, pick] = True
        chosen.append(pick)
        states.append(state)
        mood = np.where(rng.random(users) < world.pull, world.leads_to[world.groups[pick]], mood)
        if step + 1 < longest:
            survives = rng.random(users) < world.survival(times[:, step + 1] - times[:, step])
            mood = np.where(survives, mood, fresh_mood())
    return np.stack(chosen, 1), np.stack(states, 1)
