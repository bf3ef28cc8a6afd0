"""What an item of the toyshop looks like and says: its picture, its title and its description.

The picture alone shows color, pattern, shape and background. The text alone tells material,
occasion and kind of product, each in one of several wordings, between sentences that tell nothing.
"""

import io

import numpy as np
from PIL import Image, ImageDraw

from mmsrec_jax.data.records import Item

COLORS = {
    "red": (205, 45, 45),
    "yellow": (225, 190, 30),
    "blue": (45, 85, 205),
    "green": (40, 150, 70),
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
MATERIALS: dict[str, tuple[str, ...]] = {
    "linen": ("linen", "flax", "pure linen"),
    "wool": ("wool", "woolen", "merino"),
    "oak": ("oak", "oaken", "solid wood"),
    "clay": ("clay", "ceramic", "terracotta"),
    "steel": ("steel", "stainless", "brushed metal"),
    "glass": ("glass", "crystal", "hand blown glass"),
}
OCCASIONS: dict[str, tuple[str, ...]] = {
    "office": ("the office", "your desk", "work", "meetings"),
    "travel": ("travel", "long trips", "the road", "holidays"),
    "garden": ("the garden", "your terrace", "the balcony", "sunny afternoons"),
    "party": ("a party", "celebrations", "guests", "birthdays"),
}
PRODUCTS: dict[str, tuple[str, ...]] = {
    "mug": ("mug", "cup"),
    "lamp": ("lamp", "light"),
    "bag": ("bag", "tote"),
    "clock": ("clock", "timepiece"),
    "bowl": ("bowl", "dish"),
    "vase": ("vase", "flower holder"),
    "box": ("box", "case"),
    "tray": ("tray", "serving board"),
}
VALUES = {
    "color": tuple(COLORS),
    "pattern": PATTERNS,
    "shape": SHAPES,
    "background": tuple(BACKGROUNDS),
    "material": tuple(MATERIALS),
    "occasion": tuple(OCCASIONS),
    "product": tuple(PRODUCTS),
}
WORDINGS: dict[str, dict[str, tuple[str, ...]]] = {
    **{name: {value: (value,) for value in values} for name, values in VALUES.items()},
    "material": MATERIALS,
    "occasion": OCCASIONS,
    "product": PRODUCTS,
}
"""Attribute -> value -> the words that texts say it in."""
TONES = np.array([0, 0, 1, 1, 1, 2])  # of colors: warm, cool, dark
PLACES = np.array([0, 0, 1, 1])  # of occasions: away, at home
IMAGE_ATTRIBUTES = ("color", "pattern", "shape", "background")
NAMED_ATTRIBUTES = ("color", "pattern", "material", "occasion", "product")  # shape is not told

_PRAISE = ("new", "lovely", "classic", "popular", "fine")
_MATERIAL_FACTS = (
    "It is made of {material}.",
    "We chose {material} for it.",
    "Made from {material} by hand.",
)
_OCCASION_FACTS = (
    "It is just right for {occasion}.",
    "Think of {occasion}.",
    "Perfect for {occasion}.",
    "People buy it for {occasion}.",
)
_SALES_TALK = (
    "Order today and it ships in two days.",
    "A favorite of our customers.",
    "Now at a special price.",
    "You will love this {product}.",
    "Only a few are left in stock.",
    "The best quality you can get.",
    "This {product} makes a great gift.",
    "Free returns within thirty days.",
)
_SIDE = 112


def make(index: int, attributes: dict[str, np.ndarray], rng: np.random.Generator) -> Item:
    """Item `index`: a PNG picture of 112 x 112 pixels and texts, in wordings that `rng` draws."""
    values = {name: VALUES[name][attributes[name][index]] for name in VALUES}
    color, pattern, shape, background = (values[name] for name in IMAGE_ATTRIBUTES)
    return Item(
        id=f"i{index:04d}",
        text=write(values["material"], values["occasion"], values["product"], rng),
        image=draw(color, pattern, shape, background, rng),
        category=values["product"],
        attributes={name: values[name] for name in NAMED_ATTRIBUTES},
    )


def write(material: str, occasion: str, product: str, rng: np.random.Generator) -> dict[str, str]:
    """Title and description.

    The title names product and material. The description tells material and occasion, one of them
    twice, and two or three times nothing.
    """

    def one(options: tuple[str, ...]) -> str:
        return options[int(rng.integers(len(options)))]

    def said(sentence: str) -> str:
        return sentence.format(
            material=one(MATERIALS[material]),
            occasion=one(OCCASIONS[occasion]),
            product=one(PRODUCTS[product]),
        )

    praise = one(_PRAISE) + " " if rng.random() < 0.5 else ""
    again = _MATERIAL_FACTS if rng.random() < 0.5 else _OCCASION_FACTS
    facts = [one(_MATERIAL_FACTS), one(_OCCASION_FACTS), one(again)]
    talk = rng.choice(len(_SALES_TALK), int(rng.integers(2, 4)), replace=False).tolist()
    sentences = facts + [_SALES_TALK[index] for index in talk]
    order = rng.permutation(len(sentences)).tolist()
    return {
        "title": said(praise + "{material} {product}"),
        "description": " ".join(said(sentences[index]) for index in order),
    }


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
