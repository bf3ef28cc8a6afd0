"""What is logged of rewards and rollouts, against numpy and by hand."""

from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np

from mmsrec_jax.models import flops
from mmsrec_jax.prompts import parse_summary
from mmsrec_jax.rl import metrics


def test_rewards_by_group():
    total = np.array([[1.0, 1.0, 1.0], [0.0, 2.0, 1.0], [-3.0, -3.0, -3.0]], np.float32)
    parts = np.array([[0.5, 0.0, 0.25], [1.0, 1.0, 1.0], [2.0, 0.0, -2.0]], np.float32)
    found = metrics.of_rewards({"total": jnp.asarray(total), "length": jnp.asarray(parts)})
    np.testing.assert_allclose(found["reward/length"], parts.mean(), rtol=1e-6)
    spread = np.mean([parts[g].std(ddof=1) for g in range(3)])
    np.testing.assert_allclose(found["reward_std/length"], spread, rtol=1e-6)
    np.testing.assert_allclose(found["reward/groups_without_spread"], 2 / 3, rtol=1e-6)


def test_rollouts():
    rollout = SimpleNamespace(
        lengths=jnp.array([[1, 4], [3, 4]]),
        entropies=jnp.array([[0.5, 2.0], [1.0, 2.5]]),
        tokens=jnp.zeros((2, 2, 4), jnp.int32),
    )
    found = metrics.of_rollout(rollout)
    np.testing.assert_allclose(found["rollout/tokens"], 3.0)
    np.testing.assert_allclose(found["rollout/entropy"], 6.0 / 12)
    np.testing.assert_allclose(found["rollout/full_length"], 0.5)


def test_keywords_are_counted_and_told_apart_without_case():
    words = ["image: oak, Lamp\ntext: desk", "image: OAK\ntext: desk, lamp"]
    found = metrics.of_keywords([[parse_summary(text) for text in words]])
    assert found == {"rollout/keywords": 3.0, "rollout/unique_keywords": 3.0}


def test_work_is_two_passes_and_the_updates_over_prompts_and_summaries():
    segments = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    prompts, lengths = SimpleNamespace(segment_ids=segments), np.array([[1, 4], [3, 7]])
    asked = []

    def model_flops(count, tokens, read, batch):
        asked.append((count, tokens.tolist(), read.tolist()))
        return {flops.forward: 100, flops.train_step: 7}[count]

    found = metrics.of_work(model_flops, prompts, lengths, updates=3, num_batch_shards=4)
    assert asked == [(count, [8, 15], [5, 10]) for count in (flops.forward, flops.train_step)]
    amounts = {"tokens": 23, "examples": 4, "flops": 2 * 100 + 3 * 7}
    assert found == {f"work/{name}": 4.0 * amount for name, amount in amounts.items()}
