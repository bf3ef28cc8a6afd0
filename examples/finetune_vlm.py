r"""Fine-tunes a Qwen-VL with LoRA on pictures and what to answer about them.

    python examples/finetune_vlm.py --model=DIR/Qwen2.5-VL-3B-Instruct --images=DIR \
        --texts=pairs.jsonl --out=runs/finetuned

A line of pairs.jsonl, or a row of pairs.csv with these columns, is a pair:

    {"image": "mug.jpg", "question": "What is this?", "answer": "A red mug."}

Leaves the adapters in OUT/adapters, in peft's format. Started again, it goes on where it stopped.
"""

from pathlib import Path

import numpy as np
from absl import flags
from flax import nnx

import mmsrec_jax
from mmsrec_jax.data import images
from mmsrec_jax.hf import exporting, tokenizer
from mmsrec_jax.inputs import example, pipeline
from mmsrec_jax.inputs.example import Example
from mmsrec_jax.models import lora
from mmsrec_jax.prompts import Chat
from mmsrec_jax.prompts.templates import IMAGE
from mmsrec_jax.runtime import reading, sharding, startup
from mmsrec_jax.runtime.errors import UserError
from mmsrec_jax.training import sft

_MODEL = flags.DEFINE_string("model", None, "Hugging Face directory.")
_IMAGES = flags.DEFINE_string("images", None, "Folder of the images.")
_TEXTS = flags.DEFINE_string("texts", None, "Pairs, .jsonl or .csv.")
_OUT = flags.DEFINE_string("out", None, "Folder to write to.")
_STEPS = flags.DEFINE_integer("steps", 500, "Updates.", 1)
_LEARNING_RATE = flags.DEFINE_float("learning_rate", 1e-4, "Peak; a cosine to a tenth follows.", 0)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 8, "Packed rows of an update.", 1)
_LENGTH = flags.DEFINE_integer("length", 2048, "Tokens of a row, of several pairs.", 1)
_PATCHES = flags.DEFINE_integer("patches", 8192, "Vision patches of a row.", 1)
_DTYPE = flags.DEFINE_string("dtype", "bfloat16", "Of computation and of the frozen weights.")


class Pairs:
    """Examples by row: the picture and the question, and the answer, which has the loss."""

    def __init__(self, pairs: list[dict[str, str]], folder: Path, chat: Chat, processor):
        self.pairs, self.folder, self.chat, self.processor = pairs, folder, chat, processor
        self.patch_width = 3 * processor.patch_size**2

    def __len__(self) -> int:
        return len(self.pairs)

    def example(self, row: int, draw: int) -> Example:
        pair, chat = self.pairs[row], self.chat
        picture = self.processor.patchify(read_image(self.folder, pair))
        question = chat.head + IMAGE + chat.clean(pair["question"]) + chat.middle
        answer = np.append(chat.ids(chat.clean(pair["answer"])), chat.stop_id)
        return example.sequence(chat.encode(question, [picture]), answer, index=row)


def read_image(folder: Path, pair: dict[str, str]) -> np.ndarray:
    path = folder / pair["image"]
    try:
        return images.decode(reading.read_bytes(path, most=images.LARGEST_FILE, within=folder))
    except images.ImageError as error:
        raise UserError(f"{path}: no image ({error})") from error


def read_pairs(path: Path) -> list[dict[str, str]]:
    found = reading.csv_rows(path) if path.suffix == ".csv" else reading.json_lines(path)
    names, pairs = ("image", "question", "answer"), []
    for where, row in found:
        if not (isinstance(row, dict) and all(isinstance(row.get(n), str) for n in names)):
            raise UserError(f"{where}: give texts named {', '.join(names)}")
        pairs.append({name: row[name] for name in names})
    if not pairs:
        raise UserError(f"{path}: holds no pairs")
    return pairs


def main(_: list[str]) -> None:
    out, folder, mesh = Path(_OUT.value), Path(_IMAGES.value), sharding.make_mesh()
    model = mmsrec_jax.load(_MODEL.value, _DTYPE.value, mesh, remat="full")
    tokens = tokenizer.load(_MODEL.value)
    chat = Chat.of(model, tokens)
    pairs = read_pairs(Path(_TEXTS.value))
    settings = sft.FineTuneSettings(
        steps=_STEPS.value,
        warmup_steps=_STEPS.value // 10,
        batch_size=_BATCH_SIZE.value,
        lora_rank=16,
        lora_alpha=32.0,
        learning_rate=_LEARNING_RATE.value,
        log_every=10,
    )
    lora.add(model, settings.lora_rank, settings.lora_alpha, rngs=nnx.Rngs(settings.seed))
    dataset = pipeline.batches(
        Pairs(pairs, folder, chat, model.processor),
        batch_size=settings.batch_size,
        length=_LENGTH.value,
        patches=_PATCHES.value,
    )
    model = sft.train(
        settings, model, dataset, name="finetune", directory=out, mesh=mesh,
        yes_no_ids=chat.yes_no_ids,
    )  # fmt: skip
    exporting.write_adapters(
        out / "adapters", exporting.adapters_of(model), Path(_MODEL.value),
        dtype="float32", base_name=str(Path(_MODEL.value).resolve()),
    )  # fmt: skip
    first = pairs[0]
    print(mmsrec_jax.generate(model, tokens, [first["question"]], [[read_image(folder, first)]])[0])


if __name__ == "__main__":
    startup.launch(main, required=["model", "images", "texts", "out"])
