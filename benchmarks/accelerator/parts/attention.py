"""Times of every attention of a GPU, and of torch's, at the shapes of training and scoring.

A backward pass counts as 2.5 forward passes. `tflops_visible` counts the pairs that are seen,
`tflops_causal` all pairs that a kernel computes which knows the causal rule alone (a tower: all).
`mask_ms` is what is made once for all layers of a model. `apart` is the distance from XLA's result
in bfloat16, relative to its norm, of the output and of the worst gradient, in the first row.
`calls` are the kernels that the compiled program names.
"""

import functools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jax.stages import Compiled

from benchmarks.accelerator import attention_cases as cases
from benchmarks.accelerator import timing, torch_attention
from benchmarks.accelerator.record import Ask, OutOfTime, attempt
from mmsrec_jax.models import attention as lib

TITLE = "Attention: times of ours and of torch's on the same tensors"
SECONDS = 90
LIMIT = 2e-2  # of `apart`; both sides round to bfloat16

_CALLS = re.compile('custom_call_target="([^"]+)"')
Results = list[np.ndarray]  # output, dq, dk, dv of the first row, each [1, T, heads, head_dim]


def run(ask: Ask) -> None:
    for case in _cases(ask.tiny):
        forms = torch_attention.forms(case)
        names = [name for name in lib.GPU_IMPLEMENTATIONS if f"{case.name}, {name}" not in ask.done]
        if not names and ask.done >= {f"{case.name}, {form}" for form in forms}:
            continue
        cases.tensors(case)
        with ThreadPoolExecutor() as pool:  # XLA leaves most cores of the host idle
            reference = pool.submit(_reference, case)
            compiled = {name: pool.submit(_compiled, case, name) for name in names}
        # All are compiled: nothing else is done while times are taken.
        for name, made in compiled.items():
            row = lambda: _ours(case, made.result(), reference.result())  # noqa: B023, E731
            attempt(ask, f"{case.name}, {name}", row)
        for form, make in forms.items():
            if ask.seconds_left() < 15:
                raise OutOfTime
            row = lambda: _torch(case, make(), reference.result())  # noqa: B023, E731
            attempt(ask, f"{case.name}, {form}", row)
        _forget()


def _cases(tiny: bool) -> Iterator[cases.Case]:
    scale = 16 if tiny else 1
    text = dict(heads=16, kv_heads=2, head_dim=128)
    tower, image = dict(heads=16, head_dim=80), 1024
    if tiny:
        text = dict(heads=4, kv_heads=2, head_dim=16)
        tower, image = dict(heads=4, head_dim=16), 128
    length, patches = 4096 // scale, 8192 // scale
    yield cases.packed("packed 4 x 4096", 4, length, (3, 6) if tiny else (6, 30), **text)
    yield cases.scoring("scoring 2 x 6400", 2, 1000 // scale, 21, 256 // scale, **text)
    yield cases.one_segment("one segment 4 x 4096", 4, length, **text)
    yield cases.tower("tower 8192, windows of 64", 1, patches, 64, **tower)
    yield cases.tower("tower 8192, images of 1024", 1, patches, image, **tower)


def _reference(case: cases.Case) -> Results:
    """XLA in bfloat16, from a program of its own, so that its arrays are gone afterwards."""
    q, k, v, cotangent = (jnp.asarray(x, jnp.bfloat16) for x in cases.tensors(case))

    @jax.jit
    def both(ids: tuple[jax.Array, jax.Array | None], *tensors: jax.Array) -> tuple[Any, ...]:
        q, k, v, cotangent = tensors
        visible = cases.visible(case.causal, "bfloat16", *ids)
        out, back = jax.vjp(lambda q, k, v: lib.attention(q, k, v, visible), q, k, v)
        return (out, *back(cotangent))

    with lib.force("xla"):
        return _first_row(both(case.ids(), q, k, v, cotangent))


def _first_row(results: Iterable[jax.Array]) -> Results:
    return [np.asarray(x[:1], np.float32) for x in results]


class _Programs(NamedTuple):
    """Of one implementation: what makes its mask, and attention with it."""

    visible: Compiled
    forward: Compiled
    gradients: Compiled


def _compiled(case: cases.Case, name: lib.Implementation) -> _Programs:
    tensors = [jax.ShapeDtypeStruct(x.shape, jnp.bfloat16) for x in cases.tensors(case)]
    # New functions: JAX would take known ones as they were traced for another implementation.
    make, forward, gradients = (
        functools.partial(f)
        for f in (
            functools.partial(cases.visible, case.causal, "bfloat16"),
            cases.forward,
            cases.gradients,
        )
    )
    with lib.force(name):
        visible = jax.eval_shape(make, *case.ids())
        arguments = (*tensors[:3], visible, tensors[3])
        lowered = [
            jax.jit(make).lower(*case.ids()),
            *(jax.jit(f).lower(*arguments) for f in (forward, gradients)),
        ]
    return _Programs(*timing.compiled(lowered))


def _ours(case: cases.Case, programs: _Programs, reference: Results) -> Mapping[str, Any]:
    tensors = [jnp.asarray(x, jnp.bfloat16) for x in cases.tensors(case)]
    make, forward, gradients = programs
    ids = case.ids()
    arguments = (*tensors[:3], make(*ids), tensors[3])
    found = _first_row((forward(*arguments), *gradients(*arguments)))
    times = [
        timing.seconds(start, jax.block_until_ready)
        for start in (
            lambda: forward(*arguments),
            lambda: gradients(*arguments),
            lambda: make(*ids),
        )
    ]
    memory, text = gradients.memory_analysis(), gradients.as_text()
    assert memory is not None and text is not None, "every backend that is measured has them"
    return _row(case, times[0], times[1], found, reference) | {
        "mask_ms": 1e3 * times[2],
        "temporary_mib": memory.temp_size_in_bytes / 2**20,
        "calls": ", ".join(sorted(set(_CALLS.findall(text)))),
    }


def _torch(
    case: cases.Case, attend: torch_attention.Attend, reference: Results
) -> Mapping[str, Any]:
    q, k, v, cotangent = torch_attention.tensors(case)

    def forward() -> torch.Tensor:
        with torch.no_grad():
            return attend(q, k, v)

    def gradients() -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(attend(q, k, v), (q, k, v), cotangent)

    found = [
        x[:1].detach().transpose(1, 2).float().cpu().numpy() for x in (forward(), *gradients())
    ]
    memory = _torch_memory(gradients)
    times = [timing.seconds(f, timing.torch_wait) for f in (forward, gradients)]
    return _row(case, times[0], times[1], found, reference) | {"temporary_mib": memory}


def _torch_memory(work: Callable[[], object]) -> float | None:
    """MiB beyond the operands at the peak."""
    if not torch.cuda.is_available():
        return None
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    work()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def _row(
    case: cases.Case, forward: float, both: float, found: Results, reference: Results
) -> dict[str, Any]:
    errors = [cases.error(x, y, case.live[:1]) for x, y in zip(found, reference, strict=True)]
    good = all(error <= LIMIT for error in errors)
    return {
        "forward_ms": 1e3 * forward,
        "with_gradients_ms": 1e3 * both,
        "tflops_visible": case.flops(case.visible_pairs(), backward=True) / both / 1e12,
        "tflops_causal": case.flops(case.all_pairs(), backward=True) / both / 1e12,
        "apart": errors[0],
        "apart_gradients": max(errors[1:]),
        "result": "equal" if good else "DIFFERENT",
    }


def _forget() -> None:
    """Leaves the memory of one case to the next."""
    jax.clear_caches()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
