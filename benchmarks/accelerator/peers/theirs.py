"""What the sides of transformers share: the model on the device, pieces as its tensors."""

import importlib.util
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from benchmarks.accelerator.peers import pieces, weights
from benchmarks.accelerator.peers.pieces import Padded
from mmsrec_jax.hf.processor import ImageProcessor
from mmsrec_jax.prompts.chat import Piece

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


def generate(
    model: Any,
    inputs: Mapping[str, torch.Tensor],
    *,
    new_tokens: int,
    suppress: Sequence[int],
    **options: Any,
) -> torch.Tensor:
    """int64[n, T]: what `generate` of transformers writes after the inputs; no text ends earlier.

    inputs: arguments of the model; options: of `generate`.
    """
    with torch.no_grad():
        out = model.generate(
            **inputs, max_new_tokens=new_tokens, min_new_tokens=new_tokens, eos_token_id=None,
            pad_token_id=0, suppress_tokens=list(suppress), **options,
        )  # fmt: skip
    return out[:, inputs["input_ids"].shape[1] :]


def logprobs(
    model: Any, prompts: Sequence[Piece], processor: ImageProcessor, tokens: np.ndarray
) -> torch.Tensor:
    """float32[B, T, vocabulary] before each of `tokens` int[B, T] after the prompts."""
    rows = [pieces.with_text(piece, t) for piece, t in zip(prompts, tokens, strict=True)]
    joined = pieces.padded(rows, processor)
    with torch.no_grad():
        hidden = model.model(
            input_ids=tensor(joined.tokens),
            position_ids=tensor(joined.positions),
            **images(joined, model.dtype),
            use_cache=False,
        ).last_hidden_state
        places = joined.lengths[:, None] - tokens.shape[1] - 1 + np.arange(tokens.shape[1])
        chosen = hidden[torch.arange(len(rows))[:, None], tensor(places)]
        return torch.log_softmax(model.lm_head(chosen).float(), -1)


def greedy(
    seen: torch.Tensor, tokens: np.ndarray, text: np.ndarray, suppress: Sequence[int]
) -> dict[str, float]:
    """Greedy tokens int[B, T] of ours beside the text int[B, T] that their model writes.

    equal_tokens: share of the same ones; after the first other one a text goes its own way.
    first_choice: share of ours that are their most likely token after ours. behind: by how many
    nats the others are less likely than theirs at most.

    seen: `logprobs` of the tokens.
    """
    allowed = seen.clone()
    allowed[..., list(suppress)] = -torch.inf
    behind = allowed.amax(-1) - _at(seen, tokens)
    return {
        "equal_tokens": float((text == tokens).mean()),
        "first_choice": float((behind <= 0).float().mean()),
        "behind": float(behind.max()),
    }


def apart(seen: torch.Tensor, tokens: np.ndarray, logprobs: np.ndarray) -> dict[str, float]:
    """Largest and mean difference of their log p of tokens int[B, T] from ours float32[B, T].

    seen: `logprobs` of the tokens.
    """
    difference = np.abs(_at(seen, tokens).cpu().numpy() - logprobs)
    return {
        "logprobs_apart": float(difference.max()),
        "logprobs_apart_mean": float(difference.mean()),
    }


def _at(logprobs: torch.Tensor, tokens: np.ndarray) -> torch.Tensor:
    index = tensor(tokens.astype(np.int64))[..., None]
    return logprobs.gather(-1, index)[..., 0]
