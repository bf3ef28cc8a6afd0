"""A tiny MLLM, and batches for it laid out by hand from the definition of the format.

A row is a dict of unpadded arrays: tokens, positions, segment_ids, suffix_ids and, with images,
patches, patch_hw, patch_image_ids, patch_window_ids. `batch` makes a `Batch` of rows.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mmsrec_jax.models.batch import Batch, Patches
from mmsrec_jax.models.config import DecoderConfig, MLLMConfig, VisionConfig
from mmsrec_jax.models.mllm import MLLM

IMAGE, START, END = 60, 61, 62
PATCH, MERGE, WINDOW = 2, 2, 4  # pixels, patches, patches

TEXT = DecoderConfig(
    vocab_size=64, hidden=32, layers=2, heads=4, kv_heads=2, head_dim=8, intermediate=48,
    mrope_section=(1, 1, 2), rope_theta=1e3,
)  # fmt: skip
VISION = VisionConfig(
    depth=2, hidden=16, heads=2, intermediate=24, fullatt_block_indexes=(1,), patch_size=PATCH,
    window_size=WINDOW * PATCH,
)  # fmt: skip
# a model as Qwen3-VL is: fields for `config` and `model`
QWEN3 = {
    "rope_kind": "mrope_interleaved", "mrope_section": (2, 1, 1), "qkv_bias": False,
    "qk_norm": True, "layers": 3,
    "tower": VisionConfig(
        depth=3, hidden=16, heads=2, intermediate=24, patch_size=PATCH, window_size=None,
        norm="layer", activation="gelu_pytorch_tanh", gated=False, patch_bias=True,
        position_grid=5, deepstack_indexes=(0, 2),
    ),
}  # fmt: skip


def config(
    *, vision: bool = True, tower: VisionConfig = VISION, remat: str = "none", **text
) -> MLLMConfig:
    return MLLMConfig(
        dataclasses.replace(TEXT, **text), tower if vision else None, IMAGE, START, END, remat
    )


def model(seed: int = 0, *, dtype: str = "float32", **fields) -> MLLM:
    """Random weights from numpy: every leaf is random, biases and norms too."""
    rng = np.random.default_rng(seed)
    model = nnx.eval_shape(lambda: MLLM(config(**fields), rngs=nnx.Rngs(0), dtype=dtype))
    graphdef, state = nnx.split(model)

    def fill(path, leaf):
        x = rng.normal(size=leaf.shape).astype(np.float32)
        kind = jax.tree_util.keystr(path)
        fan_in = np.prod(leaf.shape[1:-1]) or 1
        return jnp.asarray(1 + 0.1 * x if "scale" in kind else x * float(fan_in) ** -0.5)

    return nnx.merge(graphdef, jax.tree_util.tree_map_with_path(fill, state))


@functools.partial(jax.jit, static_argnums=(0, 3))
def forward(graphdef, state, batch, adapters: bool = True):
    return nnx.merge(graphdef, state)(batch, adapters=adapters)


@functools.partial(jax.jit, static_argnums=0)
def tower(graphdef, state, arguments):
    return nnx.merge(graphdef, state)(*arguments)


def features(model: MLLM, rows) -> np.ndarray:
    """What the vision tower makes of up to three rows, padded as in `run`."""
    padded = batch([*rows, *[rows[0]] * (3 - len(rows))], 40, 64)
    arguments = tuple(getattr(padded.images, field.name) for field in dataclasses.fields(Patches))
    return np.asarray(tower(*nnx.split(model.vision), arguments)[0])[: len(rows)]


def run(model: MLLM, rows, *, adapters: bool = True) -> list[np.ndarray]:
    """Hidden states of up to three rows, without padding; one shape: tests share programs."""
    padded = batch([*rows, *[rows[0]] * (3 - len(rows))], 40, 64)
    hidden = np.asarray(forward(*nnx.split(model), padded, adapters))
    return [out[: len(row["tokens"])] for out, row in zip(hidden, rows, strict=False)]


def example(rng, grids, words: int, suffixes=()) -> dict[str, np.ndarray]:
    """Unpadded: one image per grid (patches high, wide), `words` random words, then suffixes."""
    tokens, positions, patches, hw, image_ids, window_ids = [], [], [], [], [], []
    start = windows = 0

    def say(ids):
        nonlocal start
        tokens.extend(ids)
        positions.extend([(start + i,) * 3 for i in range(len(ids))])
        start += len(ids)

    for number, (high, wide) in enumerate(grids, 1):
        say([START])
        for row in range(high // MERGE):
            for column in range(wide // MERGE):
                tokens.append(IMAGE)
                positions.append((start, start + row, start + column))
                for i in range(MERGE):
                    for j in range(MERGE):
                        r, c = row * MERGE + i, column * MERGE + j
                        hw.append((r, c))
                        image_ids.append(number)
                        window_ids.append(windows + 1 + r // WINDOW * 100 + c // WINDOW)
        start += max(high, wide) // MERGE
        windows += 1000
        say([END])
    patches = rng.integers(0, 256, (len(hw), 3 * PATCH**2), np.uint8)
    say(rng.integers(0, 60, words).tolist())
    suffix_ids, prefix = [0] * len(tokens), start
    for number, length in enumerate(suffixes, 1):
        start = prefix
        say(rng.integers(0, 60, length).tolist())
        suffix_ids += [number] * length
    out = {
        "tokens": np.array(tokens, np.int32),
        "positions": np.array(positions, np.int32).T,
        "segment_ids": np.ones(len(tokens), np.int32),
        "suffix_ids": np.array(suffix_ids, np.int32),
    }
    if grids:
        out |= {
            "patches": patches,
            "patch_hw": np.array(hw, np.int32),
            "patch_image_ids": np.array(image_ids, np.int32),
            "patch_window_ids": np.array(window_ids, np.int32),
        }
    return out


def pack(examples) -> dict[str, np.ndarray]:
    """Examples one after the other in one row, as segments 1, 2, ..."""
    shifted = []
    for number, one in enumerate(examples):
        one = dict(one, segment_ids=one["segment_ids"] + number)
        for key, step in (("patch_image_ids", 100), ("patch_window_ids", 10**5)):
            if key in one:
                one[key] = one[key] + step * number
        shifted.append(one)
    return {
        key: np.concatenate(
            [one[key] for one in shifted if key in one], axis=1 if key == "positions" else 0
        )
        for key in {key for one in shifted for key in one}
    }


def batch(rows, length: int, patches: int = 0) -> Batch:
    """Rows padded with zeros on the right to `length` tokens and `patches` patches."""

    def pad(key, x):
        axis = 1 if key == "positions" else 0
        widths = [(0, 0)] * x.ndim
        widths[axis] = (0, (patches if key.startswith("patch") else length) - x.shape[axis])
        return np.pad(x, widths)

    found = {key: np.stack([pad(key, row[key]) for row in rows]) for key in rows[0]}
    text = {key: value for key, value in found.items() if not key.startswith("patch")}
    images = None
    if "patches" in found:
        images = Patches(
            found["patches"],
            found["patch_hw"],
            found["patch_image_ids"],
            found["patch_window_ids"],
        )
    return Batch(**text, images=images)


def select(row, keep) -> dict[str, np.ndarray]:
    """The row without the tokens where `keep` is False; its patches stay."""
    return {
        key: x if key.startswith("patch") else x[:, keep] if key == "positions" else x[keep]
        for key, x in row.items()
    }
