"""A real LLaVA here and in transformers, side by side: the same text, features and logits.

    python benchmarks/real_llava.py --model=DIR      (or: make real-llava MODEL=DIR)

DIR is any LLaVA directory in Hugging Face format with a chat template; one of 157M parameters
(SmolLM2-135M and DINOv2-S) takes about seven minutes on one core. Without the directory the script
says so and does nothing. Needs torch and transformers.

It prints and checks: tokens of 20 prompts (10 of them with an image), 32 greedy tokens after each,
features of the tower (max abs difference <= 1e-3), logits in float32, and how far the bfloat16
forward is from float32. Exit status 1 when a check fails.
"""

import importlib
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import app, flags
from flax import nnx
from PIL import Image

import mmsrec_jax
from mmsrec_jax.api import _logits
from mmsrec_jax.hf import tokenizer
from mmsrec_jax.inference import sampler
from mmsrec_jax.prompts.chat import Chat
from mmsrec_jax.prompts.templates import IMAGE

_MODEL = flags.DEFINE_string("model", None, "directory of a LLaVA", required=True)
_NEW_TOKENS = flags.DEFINE_integer("new_tokens", 32, "greedy tokens after every prompt")

_WITH_IMAGE = [
    "What is in this picture?",
    "Name three colours of this picture.",
    "Give five keywords for this product.",
    "Who would like this, and why?",
    "Write a title for this picture.",
    "Is this a toy or a tool?",
    "What would you buy together with it?",
    "Describe the picture in one sentence.",
    "Which season does it fit?",
    "Is it for children?",
]
_TEXT_ALONE = [
    "The capital of France is",
    "Give five keywords that describe the film Toy Story.",
    "Recommend a book to someone who liked Dune.",
    "What is a matrix?",
    "Translate into Spanish: a red scarf.",
    "Write a short poem about rain.",
    "List three fruits.",
    "Why is the sky blue?",
    "What do a kite and a drum have in common?",
    "Explain what a recommender system does.",
]


class Checks:
    """Prints each result; remembers whether one failed."""

    failed = False

    def __call__(self, holds: bool, what: str) -> None:
        print(f"{'ok  ' if holds else 'FAIL'} {what}", flush=True)
        self.failed |= not holds


def pictures(count: int) -> list[np.ndarray]:
    """Blurred random patches of several sizes, uint8 [H, W, 3]."""
    rng = np.random.default_rng(0)
    made = []
    for i in range(count):
        coarse = rng.integers(0, 256, (6, 5, 3), dtype=np.uint8)
        size = (120 + 40 * (i % 3), 160 + 60 * (i % 4))
        made.append(np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)))
    return made


def ours_of(model, chat: Chat, prompts, images) -> list[np.ndarray]:
    """Tokens of every prompt as this package writes them."""
    rows = []
    for prompt, row in zip(prompts, images, strict=True):
        mark = f"{IMAGE}\n" * len(row)
        own = [model.processor.patchify(image) for image in row]
        rows.append(chat.encode(chat.head + mark + prompt + chat.middle, own).tokens)
    return rows


def theirs_of(tokens, prompts, images, slots: int) -> list[list[int]]:
    """Tokens of every prompt as transformers' template and processor write them."""
    rows = []
    for prompt, row in zip(prompts, images, strict=True):
        content = [{"type": "image"}] * len(row) + [{"type": "text", "text": prompt}]
        text = tokens.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        text = text.replace("<image>", "<image>" * slots)
        rows.append(tokens(text, add_special_tokens=False)["input_ids"])
    return rows


def padded(rows, images, length: int) -> tuple[np.ndarray, np.ndarray, list]:
    ids = np.zeros((len(rows), length), np.int32)
    mask = np.zeros_like(ids)
    for b, row in enumerate(rows):
        ids[b, : len(row)], mask[b, : len(row)] = row, 1
    return ids, mask, images


class Theirs:
    """The model and the image processor of transformers."""

    def __init__(self, directory: Path):
        self.torch, transformers = (importlib.import_module(n) for n in ("torch", "transformers"))
        self.model = transformers.LlavaForConditionalGeneration.from_pretrained(
            directory, dtype=self.torch.float32, local_files_only=True
        ).eval()
        self.images = transformers.AutoImageProcessor.from_pretrained(
            directory, local_files_only=True, backend="pil"
        )

    def pixels(self, row: Sequence[np.ndarray]) -> Mapping[str, Any]:
        """Of images uint8 [H, W, 3]; nothing of none."""
        if not row:
            return {}
        return dict(self.images([Image.fromarray(image) for image in row], return_tensors="pt"))


def main(_) -> None:
    directory = Path(_MODEL.value)
    if not (directory / "config.json").exists():
        print(f"{directory}: no model there, nothing compared; give --model=DIR")
        return
    check = Checks()
    tokens = tokenizer.load(directory)
    model = mmsrec_jax.load(directory)
    theirs = Theirs(directory)
    chat = Chat(tokens, image_token_id=model.config.image_token_id, processor=model.processor)
    images = [[image] for image in pictures(len(_WITH_IMAGE))] + [[] for _ in _TEXT_ALONE]
    prompts = _WITH_IMAGE + _TEXT_ALONE
    rows = ours_of(model, chat, prompts, images)
    expected = theirs_of(tokens, prompts, images, model.processor.slots)
    same = sum(list(a) == list(b) for a, b in zip(rows, expected, strict=True))
    check(same == len(prompts), f"tokens of {same} of {len(prompts)} prompts are the same")
    check_features(check, model, theirs, [row[0] for row in images if row])
    halves = (slice(0, len(_WITH_IMAGE)), slice(len(_WITH_IMAGE), None))
    batches = [padded(rows[half], images[half], max(map(len, rows[half]))) for half in halves]
    asked = list(zip(prompts, expected, images, strict=True))
    check_text(check, model, theirs, chat, tokens, batches, asked)
    check_logits(check, model, mmsrec_jax.load(directory, dtype="bfloat16"), theirs, batches)
    sys.exit(check.failed)


def check_features(check: Checks, model, theirs: Theirs, images: list[np.ndarray]) -> None:
    """What the projector reads of the tower, beside transformers' hidden states."""
    torch = theirs.torch
    graphdef, state = nnx.split(model)
    patches = np.stack([model.processor.patchify(image)["patches"] for image in images])
    features = jax.jit(lambda state, x: nnx.merge(graphdef, state).vision.features(x))
    mine = np.asarray(features(state, patches))
    with torch.no_grad():
        pixels = theirs.pixels(images)["pixel_values"]
        hidden = theirs.model.model.vision_tower(pixels, output_hidden_states=True).hidden_states
        layers = model.config.vision.feature_layers
        reference = torch.cat([hidden[layer] for layer in layers], -1).numpy()
    error, rms = np.abs(mine - reference).max(), np.sqrt((reference**2).mean())
    check(error <= 1e-3, f"features of the tower: max abs difference {error:.1e} (RMS {rms:.2f})")


def check_text(check: Checks, model, theirs: Theirs, chat: Chat, tokens, batches, asked) -> None:
    """Greedy continuations; asked: (prompt, its tokens, its images) of all rows of `batches`."""
    unused = range(len(tokens), model.config.text.vocab_size)
    sampling = sampler.Sampling(
        num_generations=1, max_new_tokens=_NEW_TOKENS.value, eos_ids=(chat.stop_id,),
        pad_id=chat.stop_id, gather_weights=False, temperature=0.0,
        suppress=(model.config.image_token_id, *unused),
    )  # fmt: skip
    graphdef, state = nnx.split(model)
    written = []
    start = time.perf_counter()
    for ids, mask, own in batches:
        batch = _logits.make_batch(model, ids, mask, own)
        rows, key = np.arange(len(ids)), jax.random.key(0)
        out = sampler.generate_compiled(graphdef, sampling, state, batch, rows, key)
        ends = np.asarray(out.lengths[:, 0])
        written += [row[:n] for row, n in zip(np.asarray(out.tokens[:, 0]), ends, strict=True)]
    print(f"     generated here in {time.perf_counter() - start:.0f} s, compiling included")
    start, same, torch = time.perf_counter(), 0, theirs.torch
    for index, ((prompt, row, own), mine) in enumerate(zip(asked, written, strict=True)):
        inputs = {"input_ids": torch.tensor([row]), "attention_mask": torch.ones(1, len(row))}
        with torch.no_grad():
            out = theirs.model.generate(
                **inputs, **theirs.pixels(own), max_new_tokens=_NEW_TOKENS.value, do_sample=False,
                eos_token_id=chat.stop_id, suppress_tokens=list(sampling.suppress),
            )  # fmt: skip
        text = tokens.decode(out[0, len(row) :])
        equal = text == tokens.decode(mine)
        same += equal
        if index % 5 == 0 or not equal:
            print(f"     {prompt!r} -> {tokens.decode(mine)!r}")
        if not equal:
            print(f"     transformers: {text!r}")
    print(f"     transformers generated in {time.perf_counter() - start:.0f} s")
    check(same == len(asked), f"greedy text of {same} of {len(asked)} prompts is the same")


def check_logits(check: Checks, model, narrow, theirs: Theirs, batches) -> None:
    """Logits in float32 beside transformers', and in bfloat16 (`narrow`) beside float32."""
    torch = theirs.torch
    for half, (ids, mask, own) in zip(("with image", "text alone"), batches, strict=True):
        kept = mask.astype(bool)
        wide = mmsrec_jax.logits(model, ids, mask, own)[kept]
        inputs = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}
        with torch.no_grad():
            pixels = theirs.pixels([row[0] for row in own if row])
            reference = theirs.model(**inputs, **pixels).logits.numpy()[kept]
        error = np.abs(wide - reference).max()
        low, high = reference.min(), reference.max()
        check(
            error <= 1e-2,
            f"float32 logits, {half}: max abs difference {error:.1e}, from {low:.0f} to {high:.0f}",
        )
        short = mmsrec_jax.logits(narrow, ids, mask, own)[kept]
        distance = np.linalg.norm(short - wide) / np.linalg.norm(wide)
        agree = (short.argmax(-1) == wide.argmax(-1)).mean()
        check(
            distance < 0.05,
            f"bfloat16 logits, {half}: relative distance {distance:.4f} from float32, "
            f"same arg max at {agree:.1%} of positions",
        )


if __name__ == "__main__":
    app.run(main)
