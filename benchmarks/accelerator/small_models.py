"""A small random model of every family, and packed rows with images and suffixes for it.

Heads have 64 values, so that the kernels of a GPU take them; everything else is small.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mmsrec_jax.hf.fixed_size import FixedSizeProcessor
from mmsrec_jax.hf.processor import ImageProcessor
from mmsrec_jax.inputs.batch import Room, collate
from mmsrec_jax.inputs.example import Example, sequence, with_suffixes
from mmsrec_jax.models.batch import Batch
from mmsrec_jax.models.config import DecoderConfig, MLLMConfig, VisionConfig, VitConfig
from mmsrec_jax.models.mllm import MLLM
from mmsrec_jax.prompts import Piece

VOCAB, IMAGE, START, END, YES, NO = 1024, 1000, 1001, 1002, 7, 8
PIXELS = 112  # sides of an image
LENGTH, PATCHES = 448, 256  # of a row

_TEXT = DecoderConfig(
    vocab_size=VOCAB, hidden=256, layers=2, heads=4, kv_heads=2, head_dim=64, intermediate=512,
    mrope_section=(8, 12, 12), rope_theta=1e4,
)  # fmt: skip
_PLAIN = dataclasses.replace(_TEXT, rope_kind="1d", mrope_section=(), qkv_bias=False)
_TOWER: dict[str, Any] = dict(depth=2, hidden=128, heads=2, intermediate=256)
_LAYER_NORM: dict[str, Any] = dict(window_size=None, norm="layer", gated=False)
_VIT: dict[str, Any] = dict(
    hidden=128, heads=2, intermediate=256, patch_size=14, grid=(8, 8), checkpoint_depth=2,
    feature_layers=(2,),
)  # fmt: skip


def _config(
    family: str, text: DecoderConfig, vision: VisionConfig | VitConfig | None
) -> MLLMConfig:
    marked = isinstance(vision, VisionConfig)
    return MLLMConfig(
        text, vision, IMAGE, START if marked else None, END if marked else None, family=family
    )


FAMILIES: dict[str, MLLMConfig] = {
    "qwen2_vl": _config(
        "qwen2_vl", _TEXT, VisionConfig(**_TOWER, **_LAYER_NORM, activation="quick_gelu")
    ),
    "qwen2_5_vl": _config(
        "qwen2_5_vl", _TEXT, VisionConfig(**_TOWER, fullatt_block_indexes=(1,), window_size=56)
    ),
    "qwen3_vl": _config(
        "qwen3_vl",
        dataclasses.replace(_TEXT, rope_kind="mrope_interleaved", qkv_bias=False, qk_norm=True),
        VisionConfig(
            **_TOWER, **_LAYER_NORM, activation="gelu_pytorch_tanh", patch_bias=True,
            position_grid=6, deepstack_indexes=(0,),
        ),
    ),
    "llava": _config(
        "llava", _PLAIN,
        VitConfig("clip", **_VIT, position_grid=8, activation="quick_gelu", norm_eps=1e-5),
    ),
    "internvl": _config(
        "internvl", dataclasses.replace(_PLAIN, qkv_bias=True),
        VitConfig("internvl", **_VIT, position_grid=8, activation="gelu", norm_eps=1e-6, merge=2),
    ),
    "text only": _config("qwen2", dataclasses.replace(_PLAIN, qkv_bias=True, tied=True), None),
}  # fmt: skip


@functools.cache
def weights(config: MLLMConfig, seed: int = 0) -> nnx.State:
    """Random float32 weights in numpy: nothing is compiled for them, no step can donate them."""
    generator = np.random.default_rng(seed)

    def fill(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        x = generator.standard_normal(leaf.shape, np.float32)
        name = jax.tree_util.keystr(path)
        if "scale" in name:
            return 1 + np.float32(0.1) * x
        inputs = leaf.shape[1:-1] if len(leaf.shape) > 2 else leaf.shape[-1:]
        return x * np.float32(np.prod(inputs) ** -0.5)

    return jax.tree_util.tree_map_with_path(fill, nnx.split(_abstract(config, "float32"))[1])


def _abstract(config: MLLMConfig, dtype: str) -> MLLM:
    return nnx.eval_shape(lambda: MLLM(config, rngs=nnx.Rngs(0), dtype=dtype))


def model(config: MLLMConfig, dtype: str, seed: int = 0) -> MLLM:
    """`weights`, computing in `dtype`."""
    state = jax.tree.map(jnp.array, weights(config, seed))
    return nnx.merge(nnx.split(_abstract(config, dtype))[0], state)


def processor(config: MLLMConfig) -> ImageProcessor | FixedSizeProcessor | None:
    vision = config.vision
    if isinstance(vision, VisionConfig):
        return ImageProcessor.for_tower(vision, PIXELS**2, PIXELS**2)
    if vision is None:
        return None
    size = (PIXELS, PIXELS)
    return FixedSizeProcessor(vision.patch_size, size, slots=vision.slots, resize=size)


def piece(config: MLLMConfig, rng: np.random.Generator, words: int, images: int = 0) -> Piece:
    """Random words after images; a family without tower sees the words alone."""
    images_of = processor(config)
    tokens, shown = [], []
    for _ in range(images if images_of else 0):
        assert images_of is not None
        image = images_of.patchify(rng.integers(0, 256, (PIXELS, PIXELS, 3), np.uint8))
        slots = [IMAGE] * images_of.num_slots(image["grid"])
        marked = config.vision_start_token_id is not None
        tokens += [START, *slots, END] if marked else slots
        shown.append(image)
    array = np.array([*tokens, *rng.integers(10, IMAGE, words)], np.int32)
    positions = np.tile(np.arange(len(array), dtype=np.int32), (3, 1))
    if images_of is not None:
        positions = images_of.positions(array, [image["grid"] for image in shown], IMAGE)
    return Piece(array, positions, int(positions.max()) + 1, tuple(shown))


def examples(config: MLLMConfig, rng: np.random.Generator) -> list[Example]:
    """One with an image and seven candidates as suffixes, and one with two images and an answer."""
    suffixes = [piece(config, rng, int(n)) for n in rng.integers(8, 24, 7)]
    labels = [int(n == 3) for n in range(7)]
    listed = with_suffixes(
        piece(config, rng, 60, images=1), suffixes, labels, yes_no_ids=(YES, NO),
        positive_weight=1.0,
    )  # fmt: skip
    answer = rng.integers(10, IMAGE, 24).astype(np.int32)
    return [listed, sequence(piece(config, rng, 40, images=2), answer)]


def batch(
    config: MLLMConfig, rows: int, seed: int = 0, *, packs: int = 1, length: int = LENGTH
) -> Batch:
    """Packed rows for training: `packs` times two examples each, and padding."""
    rng = np.random.default_rng(seed)
    vision = config.vision
    room = Room(
        rows, length, targets=64 * packs, patches=PATCHES * packs if vision else 0,
        patch_width=3 * vision.patch_size**2 if vision else 0, answers=8 * packs,
    )  # fmt: skip
    made = [[x for _ in range(packs) for x in examples(config, rng)] for _ in range(rows)]
    return collate(made, room)


def prompts(config: MLLMConfig, rows: int, length: int, seed: int = 0) -> Batch:
    """One prompt with an image in a row, for sampling."""
    rng = np.random.default_rng(seed)
    vision = config.vision
    room = Room(
        rows, length, targets=1, patches=64 if vision else 0,
        patch_width=3 * vision.patch_size**2 if vision else 0,
    )  # fmt: skip
    nothing = np.zeros(0, np.int32)
    made = [
        [sequence(piece(config, rng, int(n), images=1), nothing)] for n in rng.integers(8, 24, rows)
    ]
    return collate(made, room).model_inputs()


def logits(graphdef: nnx.GraphDef, state: nnx.State, batch: Batch) -> jax.Array:
    """float32[B, L, VOCAB]."""
    made = nnx.merge(graphdef, state)
    return made.unembed(made(batch))


def relative_error(found: np.ndarray, reference: np.ndarray, segment_ids: np.ndarray) -> float:
    """‖found - reference‖ / ‖reference‖ over the tokens that are not padding."""
    live = np.asarray(segment_ids) > 0
    x, y = (np.asarray(array, np.float32)[live] for array in (found, reference))
    return float(np.linalg.norm(x - y) / np.linalg.norm(y))
