"""The model of both sides: random weights of Qwen2.5-VL-3B's shape as a Hugging Face directory."""

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from mmsrec_jax.hf.presets import CONFIGS
from mmsrec_jax.hf.processor import ImageProcessor

PLACE = "BENCHMARK_WEIGHTS"  # environment variable: the folder for weights; a RAM disk is fastest
_RAM_DISK = Path("/dev/shm")
_ROOM = 10 * 2**30  # bytes that the directory may take
_PUBLISHED = "qwen2.5-vl-3b"

Config = dict[str, Any]


def config(tiny: bool) -> Config:
    """config.json, in the form of transformers 5."""
    return _tiny() if tiny else _three_billion()


def directory(tiny: bool) -> Path:
    """Where the weights are, or will be after `write`."""
    digest = hashlib.sha256(json.dumps(config(tiny), sort_keys=True).encode()).hexdigest()[:8]
    name = f"mmsrec_jax_{'tiny' if tiny else _PUBLISHED}_{digest}"
    if place := os.environ.get(PLACE):
        return Path(place) / name
    # Once they are on the RAM disk it may lack the room for others.
    if (found := _RAM_DISK / name).exists():
        return found
    fits = _RAM_DISK.is_dir() and (tiny or shutil.disk_usage(_RAM_DISK).free > _ROOM)
    return (_RAM_DISK if fits else Path(tempfile.gettempdir())) / name


def written(tiny: bool) -> bool:
    return (directory(tiny) / "config.json").exists()


def write(tiny: bool) -> None:
    """Writes the directory unless it is there: bfloat16, made on the GPU; tiny in float32.

    transformers initializes: matrices with a standard deviation of 0.02 (tiny: 0.1), which at these
    widths gives logits of standard deviation one. Run it in a process that ends.
    """
    if written(tiny):
        return
    where = directory(tiny)
    partial = where.with_name(f"{where.name}.{os.getpid()}")
    save(config(tiny), partial, "float32" if tiny else "bfloat16")
    partial.replace(where)


def save(raw: Config, where: Path, dtype: str) -> None:
    """Random weights of a config.json, as transformers initializes and saves them."""
    import torch
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    vision = raw["vision_config"]
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = Qwen2_5_VLForConditionalGeneration._from_config(
            Qwen2_5_VLConfig(**raw), dtype=getattr(torch, dtype)
        )
    model.save_pretrained(where)
    ImageProcessor(
        patch_size=vision["patch_size"], min_pixels=56 * 56, window_size=vision["window_size"]
    ).save_pretrained(where)


def _three_billion() -> Config:
    published = CONFIGS[_PUBLISHED]
    keys = (
        "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
        "intermediate_size", "vocab_size", "rms_norm_eps",
    )  # fmt: skip
    text = {key: published[key] for key in keys} | {
        "max_position_embeddings": 32768,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": published["rope_theta"],
            "mrope_section": published["rope_scaling"]["mrope_section"],
        },
    }
    ids = {key: value for key, value in published.items() if key.endswith("token_id")}
    vision = published["vision_config"]
    return {"text_config": text, "vision_config": vision, "tie_word_embeddings": True, **ids}


def _tiny() -> Config:
    text = {
        "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 128, "vocab_size": 1024,
        "rms_norm_eps": 1e-6, "max_position_embeddings": 4096, "initializer_range": 0.1,
        "rope_parameters": {
            "rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]
        },
    }  # fmt: skip
    vision = {
        "depth": 2, "hidden_size": 32, "num_heads": 2, "intermediate_size": 64,
        "out_hidden_size": 64, "patch_size": 14, "window_size": 56, "initializer_range": 0.1,
        "fullatt_block_indexes": [1],
    }  # fmt: skip
    return {
        "text_config": text, "vision_config": vision, "tie_word_embeddings": True,
        "image_token_id": 1020, "vision_start_token_id": 1021, "vision_end_token_id": 1022,
    }  # fmt: skip
