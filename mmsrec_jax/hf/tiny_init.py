"""A small model from scratch: a Hugging Face directory, and random weights for it (*ours*)."""

import dataclasses
import itertools
import json
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from mmsrec_jax.hf import mapping, tokenizer
from mmsrec_jax.hf.processor import CLIP_MEAN, CLIP_STD, ImageProcessor, read_json
from mmsrec_jax.models.config import VisionConfig
from mmsrec_jax.models.mllm import MLLM
from mmsrec_jax.runtime import sharding
from mmsrec_jax.runtime.errors import UserError
from mmsrec_jax.runtime.settings import Section, setting

_IMAGES_MEASURED = 256


@dataclasses.dataclass(frozen=True)
class TinySettings(Section):
    """Sizes of a model from scratch."""

    vocab_size: int = setting(
        1024, "Most tokens of the tokenizer.", low=tokenizer.SMALLEST, high=1_000_000
    )
    hidden: int = setting(128, "Width of the decoder.", low=1, high=100_000)
    layers: int = setting(3, "Layers of the decoder.", low=1, high=1000)
    heads: int = setting(
        4, "Attention heads of the decoder; they divide `hidden`.", low=1, high=1000
    )
    kv_heads: int = setting(2, "Key and value heads; they divide `heads`.", low=1, high=1000)
    intermediate: int = setting(384, "Width of the decoder's MLP.", low=1, high=1_000_000)
    vision_hidden: int = setting(96, "Width of the vision tower.", low=1, high=100_000)
    vision_layers: int = setting(2, "Layers of the vision tower.", low=1, high=1000)
    vision_heads: int = setting(
        3, "Attention heads of the vision tower; they divide `vision_hidden`.", low=1, high=1000
    )
    vision_intermediate: int = setting(
        192, "Width of the vision tower's MLP.", low=1, high=1_000_000
    )
    patch_size: int = setting(14, "Side of a vision patch in pixels.", low=1, high=1000)
    image_size: int = setting(
        28, "Side of a square of an image's area, in pixels.", low=1, high=10_000
    )

    def check(self, name: str) -> None:
        for part, whole in (
            ("heads", "hidden"),
            ("kv_heads", "heads"),
            ("vision_heads", "vision_hidden"),
        ):
            found, size = getattr(self, part), getattr(self, whole)
            if size % found:
                raise UserError(f"{name}.{part}={found}: must divide {whole}={size}")
        for width, heads, unit in (("hidden", "heads", 2), ("vision_hidden", "vision_heads", 4)):
            size = getattr(self, width) // getattr(self, heads)
            if size % unit:
                raise UserError(
                    f"{name}.{width}={getattr(self, width)}: over {heads}={getattr(self, heads)} "
                    f"it must give a multiple of {unit}, which rotary positions need"
                )


def write_directory(
    directory: Path, settings: TinySettings, texts: Collection[str], images: Iterable[np.ndarray]
) -> None:
    """Writes tokenizer, config.json and preprocessor_config.json of a Qwen2.5-VL of any size.

    Pixels are normalized by what `images` have: a new tower learns several times faster so than
    with the usual constants, which fit photographs.

    Args:
      texts: what the tokenizer is trained on.
      images: uint8[height, width, 3], some of the catalog's.
    """
    tokens = tokenizer.train(texts, settings.vocab_size, directory)
    vocabulary = tokens.get_vocab()
    ids = [vocabulary[f"<|{name}|>"] for name in _TOKENS]
    raw = hf_config(settings, len(tokens), ids, tokens.eos_token_id)
    mean, std = _pixel_statistics(images)
    tower = mapping.config_from_hf(raw).vision
    assert isinstance(tower, VisionConfig), "hf_config describes a Qwen-VL"
    tower = dataclasses.replace(tower, image_mean=mean, image_std=std)
    area = settings.image_size**2
    ImageProcessor.for_tower(tower, area, area).save_pretrained(directory)
    partial = directory / "config.json.partial"
    partial.write_text(json.dumps(raw, indent=2) + "\n")
    partial.replace(directory / "config.json")


def hf_config(
    settings: TinySettings, vocab_size: int, ids: Sequence[int] = (0, 1, 2), eos: int | None = None
) -> dict:
    """config.json of the model that `write_directory` describes.

    ids: of the tokens for an image slot, the start and the end of an image.
    """
    head_dim = settings.hidden // settings.heads
    quarter = head_dim // 8
    image, start, end = ids
    return {
        "model_type": "qwen2_5_vl",
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "image_token_id": image,
        "vision_start_token_id": start,
        "vision_end_token_id": end,
        "tie_word_embeddings": False,
        "text_config": {
            "model_type": "qwen2_5_vl_text",
            "vocab_size": vocab_size,
            "hidden_size": settings.hidden,
            "intermediate_size": settings.intermediate,
            "num_hidden_layers": settings.layers,
            "num_attention_heads": settings.heads,
            "num_key_value_heads": settings.kv_heads,
            "rms_norm_eps": 1e-6,
            "tie_word_embeddings": False,
            "bos_token_id": None,
            "eos_token_id": eos,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e6,
                "mrope_section": [head_dim // 2 - 2 * quarter, quarter, quarter],
            },
        },
        "vision_config": {
            "model_type": "qwen2_5_vl",
            "depth": settings.vision_layers,
            "hidden_size": settings.vision_hidden,
            "num_heads": settings.vision_heads,
            "intermediate_size": settings.vision_intermediate,
            "out_hidden_size": settings.hidden,
            "patch_size": settings.patch_size,
            "spatial_merge_size": VisionConfig.merge,
            "temporal_patch_size": VisionConfig.temporal_patch_size,
            "window_size": VisionConfig.window_size,
            "fullatt_block_indexes": list(range(settings.vision_layers)),
        },
    }


def _pixel_statistics(
    images: Iterable[np.ndarray],
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of pixels in [0, 1]; CLIP's without images."""
    means, squares = [], []
    for image in itertools.islice(images, _IMAGES_MEASURED):
        pixels = image.reshape(-1, 3) / 255
        means.append(pixels.mean(0))
        squares.append((pixels**2).mean(0))
    if not means:
        return CLIP_MEAN, CLIP_STD
    mean = np.mean(means, axis=0)
    std = np.sqrt(np.maximum(np.mean(squares, axis=0) - mean**2, 1e-4))
    return tuple(mean.round(4).tolist()), tuple(std.round(4).tolist())


_TOKENS = ("image_pad", "vision_start", "vision_end")


def init(directory: Path, *, dtype: str, seed: int, mesh: Mesh) -> MLLM:
    """The model that `directory` describes with random weights, straight into their shardings."""
    processor = ImageProcessor.from_pretrained(directory)
    config = mapping.config_from_hf(read_json(directory / "config.json"), processor)

    def make() -> tuple[nnx.GraphDef, nnx.State]:
        return nnx.split(MLLM(config, rngs=nnx.Rngs(seed), param_dtype="float32", dtype=dtype))

    abstract = nnx.eval_shape(lambda: nnx.merge(*make()))
    graphdef, state = nnx.split(abstract)
    placed = sharding.shardings(state, mesh)
    model = nnx.merge(graphdef, jax.jit(lambda: make()[1], out_shardings=placed)())
    model.processor = processor
    return model
