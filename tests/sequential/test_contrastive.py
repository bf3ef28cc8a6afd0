"""InfoNCE against its closed form and against loops, and which places are contrasted."""

import jax
import jax.numpy as jnp
import numpy as np

from mmsrec_jax.sequential import contrastive
from mmsrec_jax.sequential.base import Rows

info_nce = jax.jit(contrastive.info_nce)
draw_positions = jax.jit(contrastive.draw_positions, static_argnums=1)


def rows(targets, segments):
    targets, segments = jnp.array(targets), jnp.array(segments)
    return Rows(targets + 1, segments, segments, segments, targets)


def by_loops(queries, keys, rivals, known, temperature):
    """As the papers write it: a fraction of exponentials for each query."""
    nats = []
    for i in np.flatnonzero(known):
        others = [j for j in range(len(keys)) if j == i or rivals[i, j]]
        scores = {
            j: np.exp(
                queries[i] @ keys[j]
                / np.linalg.norm(queries[i]) / np.linalg.norm(keys[j]) / temperature
            )
            for j in others
        }  # fmt: skip
        nats.append(-np.log(scores[i] / sum(scores.values())))
    return np.mean(nats)


def test_info_nce_is_the_papers_fraction():
    rng = np.random.default_rng(0)
    queries, keys = rng.normal(size=(2, 9, 5))
    rivals, known = rng.random((9, 9)) < 0.6, rng.random(9) < 0.7
    found = info_nce(queries, keys, rivals, known, 0.3)
    np.testing.assert_allclose(found, by_loops(queries, keys, rivals, known, 0.3), rtol=1e-5)
    nothing = info_nce(queries, keys, rivals, np.zeros(9, bool), 0.3)
    assert nothing == 0


def test_info_nce_of_orthogonal_keys_has_a_closed_form():
    keys, everyone, known = 7 * np.eye(6), np.ones((6, 6), bool), np.ones(6, bool)
    found = info_nce(keys, keys, everyone, known, 0.5)
    np.testing.assert_allclose(found, np.log1p(5 * np.exp(-1 / 0.5)), rtol=1e-5)
    alone = info_nce(keys, keys, ~everyone, known, 0.5)
    np.testing.assert_allclose(alone, 0, atol=1e-6)  # no rivals, nothing to tell apart


def test_positions_are_drawn_among_the_targets_once_each():
    targets = np.array([[3, 4, -1, 5], [-1, 3, 6, -1]])
    packed = rows(targets, [[1, 1, 0, 2], [0, 1, 1, 0]])
    everyone = jax.tree.map(np.asarray, draw_positions(packed, 100, jax.random.key(0)))
    assert sorted(everyone.at[everyone.known].tolist()) == [0, 1, 3, 5, 6]
    np.testing.assert_array_equal(everyone.targets, targets.reshape(-1)[everyone.at])
    drawn = [draw_positions(packed, 3, jax.random.key(seed)) for seed in range(60)]
    counts = np.bincount(np.concatenate([places.at for places in drawn]), minlength=8)
    assert all(len(set(places.at.tolist())) == 3 for places in drawn)
    np.testing.assert_array_equal(counts == 0, targets.reshape(-1) < 0)
    assert counts[counts > 0].min() > 20  # of 36 expected

    order = np.argsort(everyone.at)
    same = np.array([0, 0, 1, 2, 3, 4, 4, 5])  # sequence of each place; padding by itself
    known = targets.reshape(-1) >= 0
    wanted = known & (same[:, None] != same)
    found = everyone.other_sequences[np.ix_(order, order)]
    np.testing.assert_array_equal(found[known], wanted[known])
    flat = targets.reshape(-1)
    found = everyone.other_targets[np.ix_(order, order)]
    np.testing.assert_array_equal(found[known], (known & (flat[:, None] != flat))[known])
    states = np.arange(16.0).reshape(2, 4, 2)
    np.testing.assert_array_equal(everyone.of(states)[:, 0], 2 * everyone.at)
