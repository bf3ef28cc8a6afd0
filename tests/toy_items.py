"""A handful of items with images of several grids, one without and one corrupt, for input tests."""

import io

import numpy as np
from PIL import Image

from mmsrec_jax.data.records import Catalog, Histories, Item
from mmsrec_jax.hf import tokenizer
from mmsrec_jax.hf.processor import ImageProcessor
from mmsrec_jax.inputs.item_renderer import PromptConfig
from mmsrec_jax.prompts import TEMPLATES, Chat, corpus

COLORS = ("red", "blue", "green")
THINGS = ("mug", "lamp", "bag", "clock")
PLACES = ("home", "work")
NO_IMAGE, CORRUPT, BARE = 3, 5, 7
SIZES = ((8, 8), (8, 16), (16, 16))  # one, two and four slots of 2 x 2 patches of 4 x 4 pixels


def items(count: int = 24) -> list[Item]:
    made = []
    for i in range(count):
        rng = np.random.default_rng(i)
        png = io.BytesIO()
        pixels = rng.integers(0, 256, (*SIZES[i % 3], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(png, "PNG")
        image = {NO_IMAGE: None, CORRUPT: b"not a picture"}.get(i, png.getvalue())
        known = {"colour": COLORS[i % 3], "thing": THINGS[i % 4], "place": PLACES[i % 2]}
        title, description = f"{known['thing']} number {i}", f"for {known['place']}"
        made.append(
            Item(
                id=f"i{i}",
                text={"title": title, "description": description},
                image=image,
                category=known["thing"],
                attributes={} if i == BARE else known,
            )
        )
    return made


def catalog(count: int = 24) -> Catalog:
    return Catalog.from_items(items(count))


def keywords(count: int = 24) -> list[str]:
    return [f"{COLORS[i % 3]}, {THINGS[i % 4]}, k{i}" for i in range(count)]


def histories(users: int = 6, count: int = 24) -> Histories:
    lengths = [4 + u for u in range(users)]
    rng = np.random.default_rng(7)
    return Histories(
        users=np.array([f"u{u}" for u in range(users)]),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        items=np.concatenate([rng.permutation(count)[:n] for n in lengths]),
        timestamps=np.concatenate([np.arange(n) for n in lengths]),
    )


def train_rows(h: Histories) -> np.ndarray:
    return np.array([(u, p) for u in range(len(h)) for p in range(1, len(h.of(u)) - 1)], np.int32)


def make_tokenizer(directory):
    texts = [" " + word for word in COLORS + THINGS + PLACES + ("number", "for")] * 4
    texts += [f" k{i}" for i in range(24)] + ["user", "assistant"] * 4
    texts += corpus(TEMPLATES["terse"]) * 4 + corpus(TEMPLATES["full"])
    return tokenizer.train(texts, 600, directory)


def prompt_config(trained, templates: str = "terse", **options) -> PromptConfig:
    start, image, end = trained.convert_tokens_to_ids(
        ["<|vision_start|>", "<|image_pad|>", "<|vision_end|>"]
    )
    processor = ImageProcessor(patch_size=4, merge_size=2, min_pixels=64, max_pixels=256)
    chat = Chat(
        trained,
        image_token_id=image,
        vision_start_token_id=start,
        vision_end_token_id=end,
        processor=processor,
    )
    defaults = {"processor": processor, "fields": ("title",), "text_tokens": 64}
    return PromptConfig(chat, TEMPLATES[templates], **defaults | options)
