"""Where the time of one SFT step goes: a trace of some steps, its kernels summed by kind.

LoRA on packed rows with images. A kernel counts by its own time on the device; what XLA fuses is
one kernel. On a CPU the trace has XLA's operations instead of kernels.
"""

import collections
import dataclasses
import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
from flax import nnx
from jax.profiler import ProfileData

from benchmarks.accelerator import small_models
from benchmarks.accelerator.record import Ask
from mmsrec_jax.models import lora
from mmsrec_jax.models.config import MLLMConfig, VisionConfig
from mmsrec_jax.models.mllm import MLLM
from mmsrec_jax.runtime import sharding
from mmsrec_jax.runtime.arrays import to_devices
from mmsrec_jax.training import sft
from mmsrec_jax.training.state import place

TITLE = "Profile of an SFT step (LoRA, packed, images): kernels by kind, and the largest ones"
SECONDS = 50
STEPS = 3
KINDS = (  # the first that a kernel's name matches
    ("attention", r"fmha|flash|attention|softmax.*bwd"),
    ("matrix products", r"gemm|cutlass|nvjet|cublas|xmma|^dot|dot_general|convolution"),
    ("copies", r"memcpy|memset|copy|transpose"),
    ("reductions", r"reduce|softmax|logsumexp"),
    ("gather and scatter", r"gather|scatter|dynamic.slice|dynamic.update"),
    ("fused elementwise", r"fusion|loop_|wrapped_|triton"),
)
SHOWN = 3


class Kernel(NamedTuple):
    """One run of one kernel; source is where in the step it comes from, as XLA says it."""

    name: str
    seconds: float
    source: str


def run(ask: Ask) -> None:
    if ask.done:
        return
    step_seconds, kernels = _trace(ask.tiny)
    total = sum(kernel.seconds for kernel in kernels)
    if not total:
        raise RuntimeError("the trace has no kernels: is the profiler (CUPTI) available here?")
    kinds: dict[str, float] = collections.defaultdict(float)
    names: dict[str, float] = collections.defaultdict(float)
    sources: dict[str, str] = {}
    for kernel in kernels:
        name = re.sub(r"[._]\d+$", "", kernel.name)[:80]
        kinds[_kind(kernel.name)] += kernel.seconds
        names[name] += kernel.seconds
        sources.setdefault(name, kernel.source[-80:])
    ask.report(
        "all kernels",
        {"ms_per_step": 1e3 * total / STEPS, "share": 1.0, "step_ms": 1e3 * step_seconds},
    )
    for kind, seconds in _largest(kinds):
        ask.report(f"kind: {kind}", _row(seconds, total))
    for name, seconds in _largest(names)[:SHOWN]:
        ask.report(f"kernel: {name}", _row(seconds, total) | {"source": sources[name]})


def _largest(sums: dict[str, float]) -> list[tuple[str, float]]:
    return sorted(sums.items(), key=lambda item: -item[1])


def _row(seconds: float, total: float) -> dict[str, Any]:
    return {"ms_per_step": 1e3 * seconds / STEPS, "share": seconds / total}


def _kind(name: str) -> str:
    found = (kind for kind, pattern in KINDS if re.search(pattern, name.lower()))
    return next(found, "other")


def _config(tiny: bool) -> MLLMConfig:
    """Of Qwen2.5-VL-3B's widths with a third of its layers: nearly the same shares."""
    config = small_models.FAMILIES["qwen2_5_vl"]
    if tiny:
        return config
    text = dataclasses.replace(
        config.text, hidden=2048, layers=12, heads=16, kv_heads=2, head_dim=128,
        intermediate=11008, mrope_section=(16, 24, 24), vocab_size=151936, tied=True,
    )  # fmt: skip
    vision = VisionConfig(
        depth=8, hidden=1280, heads=16, intermediate=3420, fullatt_block_indexes=(3, 7)
    )
    return dataclasses.replace(config, text=text, vision=vision, remat="dots")


def _model(config: MLLMConfig) -> MLLM:
    """Random bfloat16 weights and adapters."""
    abstract = nnx.eval_shape(
        lambda: MLLM(config, rngs=nnx.Rngs(0), param_dtype="bfloat16", dtype="bfloat16")
    )
    graphdef, state = nnx.split(abstract)
    keys = iter(jax.random.split(jax.random.key(0), len(jax.tree.leaves(state))))
    state = jax.tree.map(lambda x: 0.02 * jax.random.normal(next(keys), x.shape, x.dtype), state)
    model = nnx.merge(graphdef, state)
    lora.add(model, 16, 32.0, rngs=nnx.Rngs(0))
    return model


def _trace(tiny: bool) -> tuple[float, list[Kernel]]:
    """Seconds of a step that is not traced, and every kernel of `STEPS` steps."""
    config, mesh = _config(tiny), sharding.make_mesh(devices=jax.devices()[:1])
    size: dict[str, int] = {} if tiny else {"packs": 13, "length": 4096}
    batch = small_models.batch(config, 1 if tiny else 4, **size)
    optimizer = sft.make_optimizer(sft.FineTuneSettings(steps=100, warmup_steps=0))
    with jax.set_mesh(mesh), tempfile.TemporaryDirectory() as folder:
        graphdef, state, frozen, shardings = place(_model(config), "lora", optimizer, mesh)
        step = sft.make_step(
            graphdef, optimizer, yes_no_ids=(small_models.YES, small_models.NO),
            listwise_weight=0.5, shardings=shardings,
        )  # fmt: skip
        batch = to_devices(batch, mesh)

        def steps() -> float:
            nonlocal state
            start = time.perf_counter()
            for _ in range(STEPS):
                state, metrics = step(state, frozen, batch)
            jax.block_until_ready(metrics)
            return (time.perf_counter() - start) / STEPS

        steps()
        seconds = steps()
        with jax.profiler.trace(folder):
            steps()
        (trace,) = Path(folder).rglob("*.xplane.pb")
        return seconds, list(_kernels(ProfileData.from_file(str(trace))))


def _kernels(trace: ProfileData) -> Iterator[Kernel]:
    """Of the streams of a GPU; on a CPU the operations of XLA, without those that hold others."""
    on_gpu = jax.default_backend() == "gpu"
    for plane in trace.planes:
        if on_gpu and not plane.name.startswith("/device:GPU"):
            continue
        for line in plane.lines:
            if on_gpu and not line.name.startswith("Stream"):
                continue
            for event in line.events:
                stats = dict(event.stats)
                outer = re.match(r"(while|call|conditional)\b", event.name)
                if on_gpu or (not outer and "hlo_op" in stats):
                    source = stats.get("tf_op") or stats.get("name") or stats.get("hlo_op", "")
                    yield Kernel(event.name, event.duration_ns / 1e9, str(source))
