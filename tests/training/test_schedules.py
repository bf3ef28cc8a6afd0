"""Optimizers beside AdamW in numpy under schedules in closed form: every step of a whole run."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from mmsrec_jax.rl import grpo
from mmsrec_jax.rl.settings import GRPOSettings
from mmsrec_jax.sequential import train
from mmsrec_jax.sequential.sasrec import SASRecSettings
from mmsrec_jax.training import sft
from mmsrec_jax.training.pairs import CachedSettings
from mmsrec_jax.training.sft import SFTSettings

PEAK, STEPS, DECAY, NORM = 3e-2, 12, 0.3, 0.7


def cosine(step: int, warmup: int) -> float:
    """From 0 to the peak in a line, then half a wave down to a tenth of it, where it stays."""
    if step < warmup:
        return PEAK * step / warmup
    share = min((step - warmup) / (STEPS - warmup), 1.0)
    return 0.1 * PEAK + 0.9 * PEAK * (1 + np.cos(np.pi * share)) / 2


def constant(step: int, warmup: int) -> float:
    return PEAK if step >= warmup else PEAK * step / warmup


def fine_tuning(kind: type[sft.UpdateSettings], warmup: int) -> optax.GradientTransformation:
    settings = dataclasses.replace(
        kind(), learning_rate=PEAK, warmup_steps=warmup, steps=STEPS, weight_decay=DECAY,
        clip_norm=NORM,
    )  # fmt: skip
    return sft.make_optimizer(settings)


def reinforcement(warmup: int) -> optax.GradientTransformation:
    return grpo.make_optimizer(
        GRPOSettings(learning_rate=PEAK, warmup_steps=warmup, weight_decay=DECAY, clip_norm=NORM)
    )


def sequential(warmup: int) -> optax.GradientTransformation:
    settings = SASRecSettings(learning_rate=PEAK, warmup_steps=warmup, weight_decay=DECAY)
    return train.recipe(settings, num_items=5, features={}).optimizer


@pytest.mark.parametrize("warmup", [0, 4])
@pytest.mark.parametrize(
    ("make", "rate", "b2", "norm"),
    [
        (lambda warmup: fine_tuning(SFTSettings, warmup), cosine, 0.98, NORM),
        (lambda warmup: fine_tuning(CachedSettings, warmup), cosine, 0.98, NORM),
        (reinforcement, constant, 0.999, NORM),
        (sequential, constant, 0.999, np.inf),
    ],
    ids=["sft", "cached", "grpo", "sequential"],
)
def test_every_step_is_that_of_adamw_under_the_schedule(
    make: Callable[[int], optax.GradientTransformation],
    rate: Callable[[int, int], float],
    b2: float,
    norm: float,
    warmup: int,
):
    optimizer, rng = make(warmup), np.random.default_rng(0)
    # The last is so small that what is added to the root of the second moment counts.
    scale = np.array([1.0, 0.3, 1e-7])
    expected = np.array([0.5, -2.0, 1.5])
    params = nnx.State({"weights": nnx.Param(jnp.asarray(expected, jnp.float32))})
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    first, second = np.zeros(3), np.zeros(3)
    for step in range(STEPS + 3):
        gradient = rng.normal(size=3) * scale
        given = jax.tree.map(lambda _, g=gradient: jnp.asarray(g, jnp.float32), params)
        changes, state = update(given, state, params)
        params = optax.apply_updates(params, changes)
        length = np.sqrt((gradient**2).sum())
        gradient = gradient * min(1.0, norm / length)
        first = 0.9 * first + 0.1 * gradient
        second = b2 * second + (1 - b2) * gradient**2
        moved = first / (1 - 0.9 ** (step + 1))
        moved /= np.sqrt(second / (1 - b2 ** (step + 1))) + 1e-8
        expected = expected - rate(step, warmup) * (moved + DECAY * expected)
        np.testing.assert_allclose(params["weights"][...], expected, rtol=2e-5, atol=1e-6)


def test_the_rate_of_fine_tuning_ends_at_a_tenth_of_the_peak():
    """With constant gradients and no decay a step of AdamW is as long as the rate."""
    settings = SFTSettings(learning_rate=PEAK, warmup_steps=2, steps=STEPS, weight_decay=0.0)
    optimizer = sft.make_optimizer(settings)
    params = {"w": jnp.zeros(())}
    state, steps = optimizer.init(params), []
    for _ in range(STEPS + 1):
        changes, state = optimizer.update({"w": jnp.asarray(0.5)}, state, params)
        steps.append(-float(changes["w"]))
    np.testing.assert_allclose(steps[:3], [0.0, PEAK / 2, PEAK], rtol=1e-4, atol=1e-9)
    np.testing.assert_allclose(steps[-1], 0.1 * PEAK, rtol=1e-4)
    assert max(steps) == pytest.approx(PEAK, rel=1e-4)
