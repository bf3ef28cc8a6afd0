"""Token ids of real items: ours beside those of transformers' Qwen2-VL and Qwen3-VL processors.

    python benchmarks/real_tokenizer.py --tokenizer=DIR --data=DIR/ml-1m
    (or: make real-tokenizer TOKENIZER=DIR DATA=DIR/ml-1m)

TOKENIZER is a folder with a Qwen's tokenizer.json and tokenizer_config.json, DATA a data set of
atomic files with images. For each item it compares the whole prompt that asks for a yes/no label:
the head that all prompts share and the candidate's suffix, as training and scoring put them
together, against the processor's `__call__` on the text of the chat template and the picture. It
prints how many prompts have the same ids and how many image slots they hold; exit status 1 if one
differs.
"""

import collections
import sys
import tempfile
from pathlib import Path

import numpy as np
import transformers
from absl import app, flags
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.qwen_processor import MARKS, processor_of
from mmsrec_jax.data import atomic
from mmsrec_jax.data.records import Catalog
from mmsrec_jax.hf import tokenizer
from mmsrec_jax.hf.processor import ImageProcessor
from mmsrec_jax.inputs.item_renderer import ItemRenderer, PromptConfig
from mmsrec_jax.prompts import Chat, tasks
from mmsrec_jax.prompts.templates import FULL, IMAGE

_TOKENIZER = flags.DEFINE_string("tokenizer", None, "Folder of a Qwen's tokenizer.", required=True)
_DATA = flags.DEFINE_string("data", None, "Folder of a data set with images.", required=True)
_ITEMS = flags.DEFINE_integer("items", 200, "How many items with an image, evenly spread.")
_TEXT_TOKENS = flags.DEFINE_integer("text_tokens", 256, "Longer texts lose their tail.")

FIELDS = ("title", "year", "genres", "abstract")
# Published preprocessor_config.json: Qwen2-VL's and Qwen2.5-VL's, Qwen3-VL's.
PROCESSORS = {
    "Qwen2VLProcessor": {"patch_size": 14, "min_pixels": 3136, "max_pixels": 12845056},
    "Qwen3VLProcessor": {
        "patch_size": 16,
        "size": {"shortest_edge": 65536, "longest_edge": 16777216},
    },
}


def compare(name: str, tokens, catalog: Catalog, chosen: np.ndarray) -> bool:
    theirs = transformers.Qwen2VLImageProcessorPil(**PROCESSORS[name])
    with tempfile.TemporaryDirectory() as directory:
        theirs.save_pretrained(directory)
        images = ImageProcessor.from_pretrained(directory)
    processor = processor_of(name, tokens, theirs)
    start, pad, end = tokens.convert_tokens_to_ids(list(MARKS))
    chat = Chat(
        tokens,
        image_token_id=pad,
        vision_start_token_id=start,
        vision_end_token_id=end,
        processor=images,
    )
    items = ItemRenderer(catalog, PromptConfig(chat, FULL, images, fields=FIELDS, text_tokens=64))
    head, counts = chat.ids(chat.head), collections.Counter()
    for i in chosen:
        piece = items.candidate(i, _TEXT_TOKENS.value, counts)
        ours = np.concatenate([head, piece.tokens])
        shown = items.text(i, _TEXT_TOKENS.value, collections.Counter())
        question = tasks.candidate(FULL, shown, has_image=True)
        text = tokens.apply_chat_template(
            [{"role": "user", "content": question.replace(IMAGE, "".join(MARKS))}],
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=False,
        )
        picture = Image.fromarray(catalog.image(i))
        expected = processor(text=[text], images=[picture])["input_ids"][0]
        counts["prompts"] += 1
        counts["same"] += np.array_equal(ours, expected)
        counts["tokens"] += len(ours)
        counts["slots"] += int((ours == pad).sum())
        counts["their_slots"] += int(np.sum(np.asarray(expected) == pad))
    print(
        f"{name}: ids of {counts['same']} of {counts['prompts']} prompts are the same; "
        f"{counts['tokens']:,} tokens, {counts['slots']:,} image slots (theirs "
        f"{counts['their_slots']:,}), {counts['texts_cut']} texts cut to {_TEXT_TOKENS.value} "
        f"tokens, {counts['images_missing']} images unusable",
        flush=True,
    )
    return counts["same"] == counts["prompts"] > 0


def main(_) -> None:
    tokens = tokenizer.load(_TOKENIZER.value)
    source, _, _ = atomic.read(Path(_DATA.value), text_fields=FIELDS)
    catalog = Catalog(source, source.ids, source.has_image)
    pictured = np.flatnonzero(catalog.has_image)
    chosen = pictured[np.linspace(0, len(pictured) - 1, _ITEMS.value).astype(int)]
    same = [compare(name, tokens, catalog, chosen) for name in PROCESSORS]
    sys.exit(not all(same))


if __name__ == "__main__":
    app.run(main)
