import numpy as np
import pytest

from mmsrec_jax.rl import policy_loss

COEFFICIENTS = dict(clip_epsilon=0.2, kl_coef=0.1)


def brute_force_loss(new, old, reference, advantages, lengths, clip_epsilon, kl_coef):
    """Token by token in Python floats, from the GRPO formula."""
    total, divergence, clipped_tokens, count = 0.0, 0.0, 0.0, 0
    for b in range(new.shape[0]):
        for g in range(new.shape[1]):
            terms, kls, cuts = [], [], []
            for t in range(lengths[b, g]):
                ratio = np.exp(np.clip(new[b, g, t] - old[b, g, t], -20, 20))
                a = advantages[b, g]
                plain, cut = ratio * a, min(max(ratio, 1 - clip_epsilon), 1 + clip_epsilon) * a
                d = np.clip(reference[b, g, t] - new[b, g, t], -20, 20)
                kls.append(np.exp(d) - d - 1)
                terms.append(-min(plain, cut) + kl_coef * kls[-1])
                cuts.append(cut < plain)
            total += np.mean(terms)
            divergence += np.mean(kls)
            clipped_tokens += np.mean(cuts)
            count += 1
    return total / count, divergence / count, clipped_tokens / count


def case(seed=0, spread=0.5):
    rng = np.random.default_rng(seed)
    shape = (3, 4, 5)
    new, old, reference = (rng.normal(-2, spread, shape).astype(np.float32) for _ in range(3))
    return (
        new,
        old,
        reference,
        rng.normal(size=shape[:2]).astype(np.float32),
        rng.integers(1, 6, shape[:2]).astype(np.int32),
    )


@pytest.mark.parametrize("spread", [0.1, 0.5, 3.0])
def test_loss_kl_and_clip_fraction_match_brute_force(spread):
    arguments = case(spread=spread)
    loss, metrics = policy_loss.policy_loss(*arguments, **COEFFICIENTS)
    expected = brute_force_loss(
        *(a.astype(np.float64) for a in arguments[:4]), arguments[4], **COEFFICIENTS
    )
    np.testing.assert_allclose((loss, metrics["kl"], metrics["clip_fraction"]), expected, rtol=1e-4)


def test_values_past_the_end_do_not_count():
    new, old, reference, advantages, lengths = case()
    past = np.arange(5) >= lengths[..., None]
    expected = policy_loss.policy_loss(new, old, reference, advantages, lengths, **COEFFICIENTS)[0]
    new, old = np.where(past, np.nan, new), np.where(past, 99.0, old)
    loss = policy_loss.policy_loss(new, old, reference, advantages, lengths, **COEFFICIENTS)[0]
    assert loss == expected


def test_micro_batches_of_groups_add_up():
    arguments = case()
    whole = policy_loss.policy_loss(*arguments, **COEFFICIENTS)[0]
    parts = [
        policy_loss.policy_loss(*(a[i : i + 1] for a in arguments), **COEFFICIENTS)[0]
        for i in range(3)
    ]
    np.testing.assert_allclose(np.mean(parts), whole, rtol=1e-5)


def test_extreme_ratios_stay_finite():
    new, old, reference, advantages, lengths = case()
    loss, metrics = policy_loss.policy_loss(
        new + 1000, old, reference - 1000, advantages, lengths, **COEFFICIENTS
    )
    assert np.isfinite(loss) and np.isfinite(metrics["kl"])


def test_advantages_match_numpy():
    rewards = np.random.default_rng(1).normal(size=(4, 6)).astype(np.float32)
    rewards[2] = 0.7
    mean, std = rewards.mean(1, keepdims=True), rewards.std(1, ddof=1, keepdims=True)
    scaled = policy_loss.group_advantages(rewards, scale_by_std=True)
    np.testing.assert_allclose(scaled, (rewards - mean) / (std + 1e-6), atol=1e-4)
    np.testing.assert_allclose(scaled[2], 0.0, atol=1e-2)
    np.testing.assert_allclose(
        policy_loss.group_advantages(rewards, scale_by_std=False), rewards - mean, atol=1e-6
    )


def test_k3_estimates_the_divergence():
    """The mean of k3 over samples of p is KL(p || q); every single term is nonnegative."""
    rng = np.random.default_rng(2)
    p, q = (rng.dirichlet(np.ones(6)) for _ in range(2))
    draws = rng.choice(6, 200_000, p=p)
    terms = np.asarray(policy_loss.kl_k3(np.log(p)[draws], np.log(q)[draws]))
    assert terms.min() >= -1e-6
    exact = np.sum(p * np.log(p / q))
    np.testing.assert_allclose(terms.mean(), exact, rtol=0.05)
