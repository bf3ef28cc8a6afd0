"""Train steps of this package: the compiled step of `training.sft` on packed rows."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from benchmarks.accelerator import timing
from benchmarks.accelerator.peers import ours, side
from benchmarks.accelerator.peers.sft_work import (
    ALPHA,
    CLIP,
    LEARNING_RATE,
    RANK,
    SIZES,
    TINY,
    speeds,
    tolerance,
    work,
)
from benchmarks.accelerator.record import Ask, OutOfTime, attempt
from mmsrec_jax.models import lora
from mmsrec_jax.models import trainable as trainables
from mmsrec_jax.models.mllm import MLLM
from mmsrec_jax.runtime.arrays import to_devices
from mmsrec_jax.training import sft, state

LORA, FULL = "ours, LoRA", "ours, full"
_GROUP_SECONDS = 60.0  # that a group of compilations and its steps may take on an H100


@dataclasses.dataclass(frozen=True)
class Variant:
    """How a step is compiled. parts: backward passes that its rows are divided among."""

    trainable: str
    remat: str
    parts: int = 1

    @property
    def case(self) -> str:
        parts = f", {self.parts} parts" if self.parts > 1 else ""
        kind = LORA if self.trainable == "lora" else FULL
        return f"{kind}, remat {self.remat}{parts}"


class Steps:
    """Programs and states of train steps of one model on one batch."""

    def __init__(self, tiny: bool):
        self.tiny, self.work, self.mesh = tiny, work(tiny), ours.mesh()
        settings = sft.FineTuneSettings(
            learning_rate=LEARNING_RATE, warmup_steps=0, steps=1000, clip_norm=CLIP
        )
        self.optimizer = sft.make_optimizer(settings)
        self.batch = to_devices(self.work.batch(), self.mesh)

    def lower(self, variant: Variant) -> Any:
        """`jax.stages.Lowered` of the step; weights need not be there."""
        model = nnx.eval_shape(lambda: self._abstract(variant))
        with jax.set_mesh(self.mesh):
            graphdef, train_state, frozen, shardings = state.place_abstract(
                model, variant.trainable, self.optimizer, self.mesh
            )
            step: Any = sft.make_step(
                graphdef, self.optimizer, yes_no_ids=(0, 1), listwise_weight=0.0,
                num_microbatches=variant.parts, shardings=shardings,
            )  # fmt: skip
            return step.lower(train_state, frozen, self.batch)

    def _abstract(self, variant: Variant) -> MLLM:
        config, dtype = (
            dataclasses.replace(ours.config(self.tiny), remat=variant.remat),
            ours.dtype(self.tiny),
        )
        model = MLLM(config, rngs=nnx.Rngs(0), param_dtype=dtype, dtype=dtype)
        if variant.trainable == "lora":
            lora.add(model, RANK, ALPHA, rngs=nnx.Rngs(0))
        trainables.hold_in_float32(model, variant.trainable)
        return model

    def place(self, model: MLLM, trainable: str) -> tuple[state.TrainState, nnx.State]:
        """State at step 0 and frozen weights."""
        with jax.set_mesh(self.mesh):
            _, train_state, frozen, _ = state.place(model, trainable, self.optimizer, self.mesh)
        return train_state, frozen


class Step:
    """A compiled step with its state; a call trains once and returns the metrics, not waiting."""

    def __init__(self, steps: Steps, compiled: Any, train_state: Any, frozen: nnx.State):
        self.compiled, self._batch = compiled, steps.batch
        self._state, self._frozen = train_state, frozen

    def __call__(self) -> Mapping[str, jax.Array]:
        self._state, metrics = self.compiled(self._state, self._frozen, self._batch)
        return metrics


def measure_ours(ask: Ask) -> None:
    """Our cases, the most telling first."""
    first, (*more, full) = Variant("lora", "dots"), _others(ask.tiny)
    if all(variant.case in ask.done for variant in (first, *more, full)):
        return
    rows = side.recorded("sft", ask)
    steps, programs = Steps(ask.tiny), ours.Programs()
    _start(ask, steps, programs, [first])
    model, seconds = ours.load(ask.tiny)
    attempt(ask, "ours, reading weights", functools.partial(dict, load_seconds=seconds))
    base = nnx.split(model)
    lora.add(model, RANK, ALPHA, rngs=nnx.Rngs(0))
    programs.wait()
    _measure(ask, rows, steps, programs, first, model)
    if not ask.tiny and ask.seconds_left() < _GROUP_SECONDS:
        raise OutOfTime("before full fine-tuning")
    _start(ask, steps, programs, [full, *more])
    programs.wait()
    for variant in more:
        _measure(ask, rows, steps, programs, variant, model)
    wide = _widened(base)
    del base, model  # the device has no room for the narrow weights too
    _measure(ask, rows, steps, programs, full, wide)


def _others(tiny: bool) -> list[Variant]:
    """Full fine-tuning last."""
    parts = len((TINY if tiny else SIZES).rows)
    return [Variant("lora", "full"), Variant("lora", "none", parts), Variant("full", "full")]


def _start(ask: Ask, steps: Steps, programs: ours.Programs, variants: list[Variant]) -> None:
    for variant in variants:
        if variant.case not in ask.done:
            programs.start(variant.case, functools.partial(steps.lower, variant))


def _measure(
    ask: Ask,
    rows: side.Rows,
    steps: Steps,
    programs: ours.Programs,
    variant: Variant,
    model: MLLM,
) -> None:
    """Reports a case, and adds it to `rows`, whose loss it must have."""

    def made() -> dict[str, Any]:
        compiled, compile_seconds = programs.take(variant.case)
        step = Step(steps, compiled, *steps.place(_copied(model), variant.trainable))
        first = {name: float(value) for name, value in step().items()}
        for other in rows.values():
            if "loss" in other:
                allowed = tolerance(ask.tiny) * other["loss"]
                side.need_agreement("loss", first["loss"], other["loss"], allowed)
        seconds = timing.seconds(step, jax.block_until_ready, samples=3 if ask.tiny else 5)
        adapters, device = variant.trainable == "lora", jax.devices()[0].device_kind
        return speeds(steps.work, seconds, ask.tiny, adapters=adapters, device=device) | {
            "memory_gib": ours.program_gib(compiled),
            "compile_seconds": compile_seconds,
            "loss": first["loss"],
            "gradient_norm": first["gradient_norm"],
        }

    def note(case: str, row: Mapping[str, Any]) -> None:
        rows[case] = row
        ask.report(case, row)

    attempt(dataclasses.replace(ask, report=note), variant.case, made)


def _copied(model: MLLM) -> MLLM:
    """A step donates what it trains: adapters of their own."""
    graphdef, adapters, *others = nnx.split(model, nnx.LoRAParam, ...)
    return nnx.merge(graphdef, jax.tree.map(jnp.copy, adapters), *others)


def _widened(base: tuple[nnx.GraphDef, nnx.State]) -> MLLM:
    """The model with its weights in float32, as full fine-tuning holds them."""
    graphdef, held = base
    return nnx.merge(graphdef, jax.tree.map(lambda x: x.astype(jnp.float32), held))
