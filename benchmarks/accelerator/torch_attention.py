"""torch's attention on the rows of `attention_cases`, in every form that can express them."""

import functools
import importlib.util
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from torch.nn.attention import varlen
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from benchmarks.accelerator import attention_cases
from benchmarks.accelerator.attention_cases import Case

# q, k and v [B, heads, T, head_dim] -> [B, heads, T, head_dim]
Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def forms(case: Case) -> dict[str, Callable[[], Attend]]:
    """By name, what makes the function; a maker raises where torch cannot."""
    found: dict[str, Callable[[], Attend]] = {"torch sdpa, dense mask": lambda: _dense(case)}
    plain = case.causal and case.suffixes is None and bool(np.all(case.segments == 1))
    if case.causal and not plain:  # compiling takes ten seconds; for others there is varlen
        found["torch flex"] = lambda: _flex(case)
    if case.suffixes is None:
        found["torch varlen"] = lambda: _varlen(case)
        if importlib.util.find_spec("flash_attn"):
            found["flash_attn varlen"] = lambda: _flash_attn(case)
    if plain:
        found["torch sdpa, is_causal"] = lambda: _is_causal
    return found


def tensors(case: Case) -> list[torch.Tensor]:
    """q, k, v and cotangent [B, heads, T, head_dim] in bfloat16; q, k and v ask for gradients."""
    made = [
        torch.tensor(x).to(device(), torch.bfloat16).transpose(1, 2).contiguous()
        for x in attention_cases.tensors(case)
    ]
    for x in made[:3]:
        x.requires_grad_()
    return made


def _is_causal(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    grouped = q.shape[1] != k.shape[1]
    return functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)


def _dense(case: Case) -> Attend:
    """As transformers calls it: a mask bool[B, 1, T, T], and kv heads repeated."""
    mask = _mask(case)

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        groups = q.shape[1] // k.shape[1]
        k, v = (x.repeat_interleave(groups, dim=1) for x in (k, v))
        return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    return attend


def _mask(case: Case) -> torch.Tensor:
    """Padding sees itself alone: a row without any key would give NaN."""
    segments, suffixes = _ids(case)
    length = segments.shape[1]
    slots = torch.arange(length, device=device())
    same = segments[:, :, None] == segments[:, None, :]
    seen = same & (segments > 0)[:, :, None]
    if case.causal:
        seen &= slots[None, :, None] >= slots[None, None, :]
    own = (suffixes[:, None, :] == 0) | (suffixes[:, None, :] == suffixes[:, :, None])
    return ((seen & own) | torch.eye(length, dtype=torch.bool, device=device()))[:, None]


def _ids(case: Case) -> tuple[torch.Tensor, torch.Tensor]:
    suffixes = np.zeros_like(case.segments) if case.suffixes is None else case.suffixes
    segments, suffixes_ = (torch.tensor(x, device=device()) for x in (case.segments, suffixes))
    return segments, suffixes_


def _flex(case: Case) -> Attend:
    """FlexAttention, compiled on a GPU, with a block mask that skips what no query sees."""
    segments, suffixes = _ids(case)
    causal = case.causal

    def seen(
        b: torch.Tensor, h: torch.Tensor, query: torch.Tensor, key: torch.Tensor
    ) -> torch.Tensor:
        same = (segments[b, query] == segments[b, key]) & (segments[b, query] > 0)
        own = (suffixes[b, key] == 0) | (suffixes[b, key] == suffixes[b, query])
        order = query >= key if causal else torch.ones_like(same)
        return (same & own & order) | (query == key)

    rows, length = case.segments.shape
    mask = create_block_mask(seen, rows, None, length, length, device=device())
    run: Callable[..., Any] = flex_attention
    if device() == "cuda":
        torch.compiler.reset()  # else it gives up compiling after eight shapes
        run = torch.compile(flex_attention, dynamic=False)
    return functools.partial(run, block_mask=mask, enable_gqa=case.heads != case.kv_heads)


def _varlen(case: Case) -> Attend:
    """torch's own flash kernel on segments side by side, without padding."""
    known = inspect.signature(varlen.varlen_attn).parameters  # they differ from 2.10 to 2.12
    options: dict[str, Any] = {}
    if "window_size" in known:
        options["window_size"] = (-1, 0) if case.causal else (-1, -1)
    else:
        options["is_causal"] = case.causal
    if "enable_gqa" in known:
        options["enable_gqa"] = case.heads != case.kv_heads

    def attend(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, ends: torch.Tensor, longest: int
    ) -> torch.Tensor:
        out = varlen.varlen_attn(q, k, v, ends, ends, longest, longest, **options)
        assert isinstance(out, torch.Tensor), "nothing else was asked for"
        return out

    return _side_by_side(case, attend)


def _flash_attn(case: Case) -> Attend:
    from flash_attn import flash_attn_varlen_func

    return _side_by_side(
        case,
        lambda q, k, v, ends, longest: flash_attn_varlen_func(
            q, k, v, ends, ends, longest, longest, causal=case.causal
        ),
    )


def _side_by_side(case: Case, attend: Callable[..., torch.Tensor]) -> Attend:
    """`attend` on [tokens, heads, head_dim] of the live tokens of all rows.

    Picking them and putting them back belong to the time; it is little beside attention.
    """
    live = torch.tensor(np.flatnonzero(case.live.ravel()), device=device())
    lengths = [n for row in case.segments for n in np.bincount(row)[1:].tolist()]
    ends = torch.tensor(np.cumsum([0, *lengths]), dtype=torch.int32, device=device())

    def run(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        rows, heads, length, head_dim = q.shape
        flat = (x.transpose(1, 2).reshape(rows * length, -1, head_dim)[live] for x in (q, k, v))
        out = attend(*flat, ends, max(lengths))
        whole = out.new_zeros(rows * length, heads, head_dim).index_copy(0, live, out)
        return whole.view(rows, length, heads, head_dim).transpose(1, 2)

    return run
