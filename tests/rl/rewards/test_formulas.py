"""The arithmetic of each reward, on arrays without a model."""

import numpy as np
import pytest

from mmsrec_jax.prompts import parse_summary
from mmsrec_jax.rl.rewards import REWARDS, semantic
from mmsrec_jax.rl.rewards.format import rules_kept
from mmsrec_jax.rl.rewards.image_contrastive import info_nce
from mmsrec_jax.rl.rewards.reconstruction import negative_perplexity, share_explained


def cosine(a, b):
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


@pytest.mark.parametrize("center", [False, True])
def test_semantic_is_the_cosine(center):
    rng = np.random.default_rng(0)
    offset = 5 * rng.normal(size=8)
    summaries = (rng.normal(size=(3, 4, 8)) + offset).astype(np.float32)
    texts = (rng.normal(size=(3, 8)) + offset).astype(np.float32)
    shift_w = summaries.reshape(12, 8).mean(0) if center else np.zeros(8)
    shift_t = texts.mean(0) if center else np.zeros(8)
    expected = [
        [cosine(summaries[b, g] - shift_w, texts[b] - shift_t) for g in range(4)] for b in range(3)
    ]
    everywhere = np.ones((3, 4), bool), np.ones(3, bool)
    np.testing.assert_allclose(
        semantic.cosine(summaries, texts, *everywhere, center=center), expected, atol=1e-5
    )


def test_semantic_of_empty_summaries_and_items_without_text():
    """They score -1 and 0, and do not move the means that the others are centered by."""
    rng = np.random.default_rng(1)
    summaries = rng.normal(size=(3, 4, 8)).astype(np.float32)
    texts = rng.normal(size=(3, 8)).astype(np.float32)
    written, described = np.ones((3, 4), bool), np.array([True, False, True])
    written[0, 1] = written[1, 0] = False
    scores = np.asarray(semantic.cosine(summaries, texts, written, described, center=True))
    changed = np.where(written[..., None], summaries, 50), np.where(described[:, None], texts, 50)
    again = np.asarray(semantic.cosine(*changed, written, described, center=True))
    np.testing.assert_allclose(scores, again, atol=1e-5)
    assert scores[0, 1] == -1 and np.all(scores[1] == 0)
    shift_w, shift_t = summaries[written].mean(0), texts[described].mean(0)
    expected = cosine(summaries[2, 3] - shift_w, texts[2] - shift_t)
    np.testing.assert_allclose(scores[2, 3], expected, atol=1e-5)


def test_centering_leaves_a_collapsed_policy_nothing():
    rng = np.random.default_rng(0)
    same = np.ones((3, 4, 1), np.float32) * rng.normal(size=8).astype(np.float32)
    texts = (same[:, 0] + rng.normal(size=(3, 8))).astype(np.float32)
    everywhere = np.ones((3, 4), bool), np.ones(3, bool)
    assert np.all(semantic.cosine(same, texts, *everywhere, center=False) > 0.3)
    np.testing.assert_allclose(
        semantic.cosine(same, texts, *everywhere, center=True), 0.0, atol=1e-3
    )


def test_reconstruction_is_a_share_of_the_nats():
    given = np.array([[5.0, 10.0, 40.0], [3.0, 2.0, 1.0]], np.float32)
    alone = np.array([10.0, 0.0], np.float32)
    np.testing.assert_allclose(
        share_explained(given, alone), [[0.5, 0.0, -1.0], [0.0, 0.0, 0.0]], atol=1e-6
    )


def test_perplexity_matches_its_definition():
    token_probabilities = np.array([0.5, 0.25, 0.125])
    given = np.array([[-np.log(token_probabilities).sum()]], np.float32)
    expected = -(np.prod(token_probabilities) ** (-1 / 3))
    np.testing.assert_allclose(negative_perplexity(given, np.array([3])), [[expected]], rtol=1e-6)
    assert negative_perplexity(np.zeros((1, 1), np.float32), np.array([0])) == 0.0


def test_a_text_of_less_than_a_nat_counts_as_any_other():
    given = np.array([[0.25, 0.5, 0.75, 5.0], [0.9, 0.0, 1.0, 2.5]], np.float32)
    alone = np.array([0.5, 1.0], np.float32)
    expected = [[0.5, 0.0, -0.5, -1.0], [0.1, 1.0, 0.0, -1.0]]
    np.testing.assert_allclose(share_explained(given, alone), expected, atol=1e-6)
    perplexity = negative_perplexity(np.full((1, 1), 0.5, np.float32), np.array([1]))
    np.testing.assert_allclose(perplexity, -np.exp(0.5), rtol=1e-6)


def test_info_nce_matches_brute_force():
    rng = np.random.default_rng(3)
    logprobs = rng.normal(size=(3, 2, 4)).astype(np.float32)
    present = np.ones((3, 4), bool)
    present[1, 2] = False
    expected = np.zeros((3, 2))
    for b in range(3):
        for g in range(2):
            values = [np.exp(logprobs[b, g, k]) for k in range(4) if present[b, k]]
            share = 1 + np.log(values[0] / sum(values)) / np.log(len(values))
            expected[b, g] = np.clip(share, -1, 1)
    np.testing.assert_allclose(info_nce(logprobs, present), expected, atol=1e-5)


def test_info_nce_at_chance_certain_and_missing():
    logprobs = np.zeros((4, 1, 3), np.float32)
    logprobs[1, 0] = [0.0, -80.0, -80.0]
    present = np.array([[1, 1, 1], [1, 1, 1], [0, 1, 1], [1, 0, 0]], bool)
    np.testing.assert_allclose(info_nce(logprobs, present)[:, 0], [0, 1, 0, 0], atol=1e-6)


@pytest.mark.parametrize(
    "text, has_image, has_text, expected",
    [
        ("image: red\ntext: cup", True, True, 1.0),
        ("image: red, Red\ntext: cup", True, True, 2 / 3),
        ("image: red\ntext: red", True, True, 2 / 3),
        ("image:\ntext: cup", True, True, 2 / 3),
        ("image:\ntext: cup", False, True, 1.0),
        ("text: cup", False, True, 1.0),
        ("text: cup", True, True, 2 / 3),
        ("a red cup", True, True, 1 / 3),
        ("", True, True, 0.0),
    ],
)
def test_format(text, has_image, has_text, expected):
    score = rules_kept(parse_summary(text), has_image=has_image, has_text=has_text)
    assert score == pytest.approx(expected)


def test_every_reward_says_what_it_is():
    assert {name: reward.default_weight for name, reward in REWARDS.items()} == {
        "semantic": 1.0, "length": 0.02, "format": 0.5, "reconstruction": 1.0,
        "image_contrastive": 0.2,
    }  # fmt: skip
    assert all(name == reward.name for name, reward in REWARDS.items())
    ours = {name for name, reward in REWARDS.items() if reward.origin == "ours"}
    assert ours == {"format", "image_contrastive"}
