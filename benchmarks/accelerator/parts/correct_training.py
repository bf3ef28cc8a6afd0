"""One SFT step, one GRPO update and a resumed run on this device, with a small Qwen2.5-VL.

`loss` and `gradient_norm` are those of the first step; `last_loss` is after 20 steps (tiny: 5) on
the same batch. bfloat16 is compared with float32 by what the first step gives.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.accelerator import small_models
from benchmarks.accelerator.record import Ask, OutOfTime, attempt
from mmsrec_jax.inference import sampler
from mmsrec_jax.inference.sampler import Generation, Sampling
from mmsrec_jax.inference.suffixes import suffix_logprobs
from mmsrec_jax.models import lora
from mmsrec_jax.models.batch import Batch
from mmsrec_jax.models.mllm import MLLM
from mmsrec_jax.rl import grpo
from mmsrec_jax.rl.policy_loss import group_advantages
from mmsrec_jax.rl.settings import GRPOSettings
from mmsrec_jax.runtime import sharding
from mmsrec_jax.training import sft
from mmsrec_jax.training.state import place

TITLE = "Training: SFT and GRPO in bfloat16 against float32, losses that fall, exact resume"
SECONDS = 80
STEPS, TINY_STEPS = 20, 5
_RESUME_SECONDS = 45.0  # of two processes after each other
CONFIG = small_models.FAMILIES["qwen2_5_vl"]
NORM_LIMIT = 5e-2  # relative distance of gradient norms
LOSS_LIMIT = {"SFT": 1e-2, "GRPO": 1e-2}  # of SFT relative; GRPO's loss begins at 0
RESUMED = (
    "import pathlib, sys; from benchmarks.accelerator import absent; absent.stand_in();"
    "from benchmarks.accelerator import resumed; resumed.main(pathlib.Path(sys.argv[1]))"
)
DETERMINISTIC = "--xla_gpu_deterministic_ops=true"

Losses = dict[str, float]


def run(ask: Ask) -> None:
    rows, steps = (1, TINY_STEPS) if ask.tiny else (4, STEPS)
    batch = small_models.batch(CONFIG, rows)
    for trainable in ("lora", "full"):
        _pair(ask, "SFT", f"SFT {trainable}", lambda dtype: _sft(dtype, trainable, batch, steps))  # noqa: B023
    with contextlib.ExitStack() as stack:
        stack.enter_context(jax.set_mesh(_mesh()))
        prompts = small_models.prompts(CONFIG, rows, 64)
        _pair(ask, "GRPO", "GRPO lora", lambda dtype: _grpo(dtype, prompts, steps))
    kinds = {"resume": ""} if ask.tiny else {"resume, deterministic": DETERMINISTIC, "resume": ""}
    for name, flags in kinds.items():
        if not ask.tiny and ask.seconds_left() < _RESUME_SECONDS:
            raise OutOfTime(f"before {name}")
        attempt(ask, name, lambda: _resume(flags))  # noqa: B023


def _mesh() -> jax.sharding.Mesh:
    return sharding.make_mesh(devices=jax.devices()[:1])


def _pair(ask: Ask, kind: str, name: str, losses: Callable[[str], Losses]) -> None:
    """Both rows of one kind of training; the second compares itself with the first."""
    exact: dict[str, Losses] = {}

    def float32() -> Losses:
        exact.setdefault("found", losses("float32"))
        return exact["found"]

    def row(found: Losses, reference: Losses) -> dict[str, Any]:
        scale = abs(reference["loss"]) if kind == "SFT" else 1.0
        apart = {
            "loss_apart": abs(found["loss"] - reference["loss"]) / scale,
            "norm_apart": abs(found["gradient_norm"] / reference["gradient_norm"] - 1),
        }
        good = (
            apart["loss_apart"] <= LOSS_LIMIT[kind]
            and apart["norm_apart"] <= NORM_LIMIT
            and found["last_loss"] < found["loss"] - 0.02
        )
        return {**found, **apart, "result": "pass" if good else "FAIL"}

    attempt(ask, f"{name}, float32", lambda: row(float32(), float32()))
    attempt(ask, f"{name}, bfloat16", lambda: row(losses("bfloat16"), float32()))


def adapted(dtype: str) -> MLLM:
    """The small model with adapters that do something."""
    model = small_models.model(CONFIG, dtype)
    lora.add(model, 8, 16.0, rngs=nnx.Rngs(0))
    return model


def _sft(dtype: str, trainable: str, batch: Batch, steps: int) -> Losses:
    settings = sft.FineTuneSettings(
        trainable=trainable, steps=1000, warmup_steps=0,
        learning_rate=1e-2 if trainable == "lora" else 2e-3,
    )  # fmt: skip
    model = adapted(dtype) if trainable == "lora" else small_models.model(CONFIG, dtype)
    optimizer, mesh = sft.make_optimizer(settings), _mesh()
    with jax.set_mesh(mesh):
        graphdef, state, frozen, shardings = place(model, trainable, optimizer, mesh)
        step = sft.make_step(
            graphdef, optimizer, yes_no_ids=(small_models.YES, small_models.NO),
            listwise_weight=0.5, shardings=shardings,
        )  # fmt: skip
        measured = []
        for _ in range(steps):
            state, metrics = step(state, frozen, batch)
            measured.append(jax.device_get(metrics))
    return _losses(measured)


def _losses(measured: list[dict[str, Any]]) -> Losses:
    first = {name: float(measured[0][name]) for name in ("loss", "gradient_norm")}
    return first | {"last_loss": float(measured[-1]["loss"])}


def _grpo(dtype: str, prompts: Batch, steps: int) -> Losses:
    """Updates on the completions of one rollout, with advantages drawn at random."""
    settings = GRPOSettings(
        batch_size=len(prompts.tokens), num_generations=4, micro_batch=4 * len(prompts.tokens),
        learning_rate=1e-2, warmup_steps=0,
    )  # fmt: skip
    optimizer, mesh = grpo.make_optimizer(settings), _mesh()
    rollout = _rollout(prompts)
    graphdef, state, frozen, shardings = place(adapted(dtype), "lora", optimizer, mesh)
    drawn = np.random.default_rng(0).normal(size=rollout.lengths.shape).astype(np.float32)
    reference = jax.jit(
        lambda params, frozen: suffix_logprobs(
            nnx.merge(graphdef, params, frozen), prompts, rollout.tokens, rollout.lengths,
            adapters=False,
        )
    )(state.params, frozen)  # fmt: skip
    scored = grpo.Scored(group_advantages(jnp.asarray(drawn), scale_by_std=True), reference)
    update = grpo.make_update(graphdef, optimizer, settings, shardings=shardings)
    measured = []
    for _ in range(steps):
        state, metrics = update(state, frozen, prompts, rollout, scored)
        measured.append(jax.device_get(metrics))
    return _losses(measured)


def _rollout(prompts: Batch) -> Generation:
    """Completions by the float32 model, the same for both dtypes."""
    sampling = Sampling(
        num_generations=4, max_new_tokens=16, eos_ids=(3,), pad_id=0, gather_weights=False,
        suppress=(small_models.IMAGE,),
    )  # fmt: skip
    graphdef, state = nnx.split(adapted("float32"))
    rows = jnp.arange(len(prompts.tokens), dtype=jnp.int32)
    key = jax.random.key(0)
    return sampler.generate_compiled(graphdef, sampling, state, prompts, rows, key)


def _resume(flags: str) -> dict[str, Any]:
    """Six steps at a stretch, twice, and three steps, a SIGKILL and three more."""
    with tempfile.TemporaryDirectory() as folder:
        environ = dict(os.environ)
        environ["XLA_FLAGS"] = f"{environ.get('XLA_FLAGS', '')} {flags}".strip()
        answers = []
        for _ in range(2):
            ran = subprocess.run(
                [sys.executable, "-c", RESUMED, folder],
                env=environ, capture_output=True, text=True,
            )  # fmt: skip
            lines = ran.stdout.strip().splitlines()
            if not lines:
                raise RuntimeError(f"status {ran.returncode}: {ran.stderr[-1000:]}")
            answers.append(json.loads(lines[-1]) | {"status": ran.returncode})
    first, second = answers
    assert first["status"] < 0 and second["status"] == 0, "killed, and then run to its end"
    equal = {
        "repeated_equal": first["straight"] == first["again"],
        "resumed_equal": first["straight"] == second["resumed"],
    }
    good = equal["resumed_equal"] or not (equal["repeated_equal"] or flags)
    return equal | {"sum": second["sum"], "result": "pass" if good else "FAIL"}
