"""A tiny MLLM and prompts with images for the decoding and GRPO tests."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mmsrec_jax.hf.processor import ImageProcessor
from mmsrec_jax.inputs.batch import Room, collate
from mmsrec_jax.inputs.example import Example
from mmsrec_jax.models.batch import Batch
from mmsrec_jax.models.config import DecoderConfig, MLLMConfig, VisionConfig
from mmsrec_jax.models.mllm import MLLM
from mmsrec_jax.models.patches import mrope_positions

VOCAB, IMAGE_TOKEN = 41, 40


@functools.cache
def model(seed: int = 0, *, tied: bool = False, vision: bool = True) -> MLLM:
    text = DecoderConfig(
        vocab_size=VOCAB, hidden=32, layers=2, heads=4, kv_heads=2, head_dim=8, intermediate=48,
        mrope_section=(2, 1, 1), rope_theta=1e4, tied=tied,
    )  # fmt: skip
    tower = VisionConfig(
        depth=2, hidden=16, heads=2, intermediate=24, fullatt_block_indexes=(1,), patch_size=2,
        window_size=8,
    )  # fmt: skip
    config = MLLMConfig(text, tower if vision else None, IMAGE_TOKEN, 38, 39)
    return randomized(nnx.eval_shape(lambda: MLLM(config, rngs=nnx.Rngs(0))), seed)


def randomized(abstract: MLLM, seed: int) -> MLLM:
    """Weights straight from numpy: nothing to compile."""
    rng = np.random.default_rng(seed)
    graphdef, state = nnx.split(abstract)

    def fill(path, leaf):
        scale = any(getattr(key, "key", None) == "scale" for key in path)
        return jnp.asarray(scale + rng.normal(0, 0.05 if scale else 0.3, leaf.shape), leaf.dtype)

    return nnx.merge(graphdef, jax.tree_util.tree_map_with_path(fill, state))


def prompts(
    texts: list[list[int]], *, images: bool, length: int, seed: int = 0, patches: int = 32
) -> Batch:
    """One row per list of tokens, opened by an image of a row-dependent grid where asked for."""
    rng = np.random.default_rng(seed)
    processor = ImageProcessor(patch_size=2, min_pixels=16, max_pixels=4096, window_size=8)
    rows = []
    for row, text in enumerate(texts):
        tokens, shown = np.array(text, np.int32), ()
        if images:
            height, width = (8, 8) if row % 2 else (8, 12)
            image = processor.patchify(rng.integers(0, 256, (height, width, 3), np.uint8))
            slots = [IMAGE_TOKEN] * processor.num_slots(image["grid"])
            tokens, shown = np.array([38, *slots, 39, *text], np.int32), (image,)
        grids = [image["grid"] for image in shown]
        rows.append([prompt(tokens, mrope_positions(tokens, grids, IMAGE_TOKEN, 2), shown)])
    room = Room(len(rows), length, 1, patches=patches if images else 0, patch_width=12)
    return collate(rows, room).model_inputs()


def prompt(tokens: np.ndarray, positions: np.ndarray, images: tuple[dict, ...] = ()) -> Example:
    n = len(tokens)
    return Example(tokens, np.zeros(n, np.float32), np.zeros(n, np.int32), positions, images)


def extend(batch: Batch, row: int, tokens: list[int], length: int) -> Batch:
    """Row `row` alone, followed by `tokens` in plain sequence and padded to `length`."""
    n = int((batch.segment_ids[row] > 0).sum())
    start = batch.positions[row, :, :n].max() + 1
    tail = np.broadcast_to(start + np.arange(len(tokens)), (3, len(tokens)))
    whole = np.concatenate([batch.tokens[row, :n], tokens]).astype(np.int32)
    positions = np.concatenate([batch.positions[row, :, :n], tail], axis=1)
    joined = collate([[prompt(whole, positions)]], Room(1, length, 1)).model_inputs()
    images = jax.tree.map(lambda x: x[row : row + 1], batch.images)
    return dataclasses.replace(joined, images=images)


@functools.cache
def _forward(model: MLLM):
    graphdef, state = nnx.split(model)

    @jax.jit
    def run(state, batch):
        model = nnx.merge(graphdef, state)
        return jax.nn.log_softmax(model.unembed(model(batch)), axis=-1)

    return lambda batch: np.asarray(run(state, batch))


def full_logprobs(model: MLLM, batch: Batch, row: int, tokens, *, length: int = 32) -> np.ndarray:
    """float32[len(tokens) + 1, V]: next-token log-probs after the prompt and after each token, from
    one plain forward without cache or suffixes (padded to `length`, so that it compiles once)."""
    sequence = extend(batch, row, list(tokens), length)
    n = int((sequence.segment_ids > 0).sum())
    return _forward(model)(sequence)[0, n - len(tokens) - 1 : n]
