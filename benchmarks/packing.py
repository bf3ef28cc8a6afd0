"""How full the packed rows of SFT on MovieLens-1M with posters are, and what waiting examples give.

    python benchmarks/packing.py --data=DIR/ml-1m --tokenizer=DIR    # a Qwen's tokenizer

Rows, tasks, texts and sizes of images are those of configs/movielens.py. Genres stand in the place
of the keywords that a model would write, and similar users' items are drawn. Printed for rows with
images and with text alone, and each of --look_ahead: the share of the rows' room for tokens that
holds tokens (`time/occupancy` of a run), of the room for vision patches that holds patches, and the
milliseconds that choosing takes for an example. Fails where the last of --look_ahead fills less
than --least of the room for tokens. Without --tokenizer one is trained on the films.
"""

import dataclasses
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from absl import app, flags

_ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(_ROOT))

from configs import movielens  # noqa: E402
from mmsrec_jax.data import build  # noqa: E402
from mmsrec_jax.hf import tokenizer  # noqa: E402
from mmsrec_jax.hf.processor import ImageProcessor  # noqa: E402
from mmsrec_jax.inputs import pipeline  # noqa: E402
from mmsrec_jax.inputs.example import Example  # noqa: E402
from mmsrec_jax.inputs.item_renderer import PromptConfig  # noqa: E402
from mmsrec_jax.inputs.recommend import PromptContext, RecommendSource  # noqa: E402
from mmsrec_jax.methods.settings import Settings  # noqa: E402
from mmsrec_jax.prompts import TEMPLATES, Chat, corpus  # noqa: E402
from mmsrec_jax.runtime.settings import from_config  # noqa: E402

_DATA = flags.DEFINE_string("data", None, "Folder of MovieLens-1M's atomic files with images.")
_TOKENIZER = flags.DEFINE_string("tokenizer", "", "Folder of a Qwen's tokenizer; else one is made.")
_LOOK_AHEAD = flags.DEFINE_list("look_ahead", ["0", "64"], "Examples that wait, one after another.")
_ROWS = flags.DEFINE_integer("rows", 8, "Rows of a batch.")
_BATCHES = flags.DEFINE_integer("batches", 50, "Batches that are counted.")
_LEAST = flags.DEFINE_float("least", 0.95, "Share of the room for tokens that has to be filled.")
_OUT = flags.DEFINE_string("out", None, "Where to write the figures as JSON.")

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


def main(argv: list[str]) -> None:
    del argv
    config = movielens.get_config()
    config.data.root = _DATA.value
    settings = from_config(Settings, config)
    few = False
    report: dict[str, dict[str, Mapping[str, float]]] = {}
    with tempfile.TemporaryDirectory() as directory:
        for name, source in sources(settings, _TOKENIZER.value, Path(directory)).items():
            # Made before the first timing, which then is that of choosing and laying out.
            measured(source, settings, int(_LOOK_AHEAD.value[-1]), _ROWS.value, _BATCHES.value)
            for look_ahead in _LOOK_AHEAD.value:
                one = measured(source, settings, int(look_ahead), _ROWS.value, _BATCHES.value)
                report.setdefault(name, {})[look_ahead] = one
                print(
                    f"{name:12} look_ahead {look_ahead:>4}  tokens {one['tokens']:6.1%}  "
                    f"padding {1 - one['tokens']:6.1%}  patches {one['patches']:6.1%}  "
                    f"{one['examples']} examples  {one['milliseconds']:.2f} ms",
                    flush=True,
                )
            few |= one["tokens"] < _LEAST.value
    if _OUT.value:
        Path(_OUT.value).write_text(json.dumps(report, indent=1) + "\n")
    sys.exit(few)


if __name__ == "__main__":
    flags.mark_flag_as_required("data")
    app.run(main)
