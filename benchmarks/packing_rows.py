"""What `benchmarks/packing.py` measures: examples of real films, and how they fill rows."""

import dataclasses
import itertools
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mmsrec_jax.data import build
from mmsrec_jax.hf import tokenizer
from mmsrec_jax.hf.processor import ImageProcessor
from mmsrec_jax.inputs import pipeline
from mmsrec_jax.inputs.example import Example
from mmsrec_jax.inputs.item_renderer import PromptConfig
from mmsrec_jax.inputs.recommend import PromptContext, RecommendSource
from mmsrec_jax.methods.settings import Settings
from mmsrec_jax.prompts import TEMPLATES, Chat, corpus

_MARKS = ("<|vision_start|>", "<|image_pad|>", "<|vision_end|>")


class Kept:
    """The examples of a source, each made once; of pixels only how many there are."""

    def __init__(self, source: RecommendSource):
        self._source = source
        self._examples: dict[tuple[int, int], Example] = {}

    @property
    def patch_width(self) -> int:
        return min(self._source.patch_width, 1)

    def __len__(self) -> int:
        return len(self._source)

    def example(self, row: int, draw: int) -> Example:
        if (row, draw) not in self._examples:
            made = self._source.example(row, draw)
            images = tuple(
                {**image, "patches": np.zeros((len(image["patches"]), 1), np.uint8)}
                for image in made.images
            )
            self._examples[row, draw] = dataclasses.replace(made, images=images)
        return self._examples[row, draw]


def sources(settings: Settings, tokens: str, directory: Path) -> dict[str, Kept]:
    """Training examples of stage 3 with images and without.

    tokens: folder of a tokenizer; "" trains one in `directory`.
    """
    catalog, histories, split = build.read(settings.data).dataset
    if tokens:
        read = tokenizer.load(tokens)
    else:
        texts = [f" {text}" for item in catalog for text in item.text.values()]
        read = tokenizer.train([*texts, *corpus(TEMPLATES["full"])], 4096, directory)
    start, image, end = read.convert_tokens_to_ids(list(_MARKS))
    processor = ImageProcessor().limited(settings.model.max_pixels)
    chat = Chat(
        read, image_token_id=image, vision_start_token_id=start, vision_end_token_id=end,
        processor=processor,
    )  # fmt: skip
    p, c = settings.prompts, settings.sft
    prompt_config = PromptConfig(
        chat, TEMPLATES[p.templates], processor, fields=p.fields, list_fields=p.list_fields,
        text_tokens=p.text_tokens,
    )  # fmt: skip
    drawn = np.random.default_rng(0).integers(len(catalog), size=(len(split.train), 2 * p.similar))
    context = PromptContext(
        catalog,
        histories,
        keywords=[", ".join((item.category or "").split()) for item in catalog],
        neighbors=drawn.astype(np.int32),
        train_end=split.train_end,
    )
    return {
        name: Kept(
            RecommendSource(
                dataclasses.replace(context, images=images), prompt_config, split.train,
                length=c.length, seed=c.seed, tasks=c.tasks, negatives=c.negatives,
                history=p.history, similar=p.similar,
            )
        )
        for name, images in {"with images": True, "text alone": False}.items()
    }  # fmt: skip


def measured(
    source: pipeline.Source, settings: Settings, look_ahead: int, rows: int, count: int
) -> Mapping[str, float]:
    """Shares of the room of `count` batches that are filled, and milliseconds an example.

    The first batches, while the examples that wait are chosen from for the first time, count too.
    """
    c = settings.sft
    patches = c.patches if source.patch_width else 0
    made = iter(
        pipeline.batches(
            source, batch_size=rows, length=c.length, patches=patches, answers=c.answers,
            targets=c.targets, look_ahead=look_ahead, seed=c.seed,
        )
    )  # fmt: skip
    begun = time.process_time()
    tokens = examples = filled = 0
    for batch in itertools.islice(made, count):
        tokens += int((batch.segment_ids > 0).sum())
        examples += int(batch.segment_ids.max(axis=1).sum())
        filled += int((batch.images.image_ids > 0).sum()) if batch.images is not None else 0
    taken = time.process_time() - begun
    made.close()
    return {
        "tokens": tokens / (count * rows * c.length),
        "patches": filled / (count * rows * max(patches, 1)),
        "examples": examples,
        "milliseconds": 1e3 * taken / examples,
    }
