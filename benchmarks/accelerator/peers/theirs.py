"""What the sides of transformers share: the model on the device, pieces as its tensors."""

import importlib.util
import time
from typing import Any

import numpy as np
import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from benchmarks.accelerator.peers import weights
from benchmarks.accelerator.peers.pieces import Padded

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def attentions() -> list[str]:
    """Implementations that can be asked for here, the ordinary one first."""
    flash = DEVICE.type == "cuda" and importlib.util.find_spec("flash_attn") is not None
    return ["sdpa", "flash_attention_2"] if flash else ["sdpa"]


def load(
    tiny: bool, attention: str = "sdpa", dtype: torch.dtype | None = None
) -> tuple[Any, float]:
    """The model and the seconds that reading it took.

    dtype: of the weights; by default bfloat16, tiny float32.
    """
    start = time.perf_counter()
    model: Any = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        weights.directory(tiny),
        dtype=dtype or (torch.float32 if tiny else torch.bfloat16),
        attn_implementation=attention,
        local_files_only=True,
    )
    model = model.to(DEVICE).eval()
    synchronize()
    return model, time.perf_counter() - start


def synchronize(_: object = None) -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def restart_peak() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_gib() -> float | None:
    """Most device memory held at once since `restart_peak`; None on a CPU."""
    return torch.cuda.max_memory_allocated() / 2**30 if DEVICE.type == "cuda" else None


def tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(DEVICE)


def images(rows: Padded, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The pictures of rows as arguments of the model; none without."""
    if rows.pixels is None or rows.grids is None:
        return {}
    return {
        "pixel_values": tensor(rows.pixels).to(dtype),
        "image_grid_thw": tensor(rows.grids),
    }


def device_name() -> str:
    return torch.cuda.get_device_name() if DEVICE.type == "cuda" else "cpu"
