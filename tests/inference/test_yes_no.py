import jax
import numpy as np
import pytest
import tiny_mllm as tiny

from mmsrec_jax.inference import suffixes, yes_no


@pytest.mark.parametrize("tied", [False, True])
def test_yes_no_margins_match_plain_sequences(tied):
    """Each candidate alone behind the prefix, its full softmax, against suffixes in one forward."""
    model = tiny.model(tied=tied)
    texts = [[5, 6, 7], [8, 9, 10, 11, 12]]
    batch = tiny.prompts(texts, images=True, length=16)
    rng = np.random.default_rng(0)
    tokens = rng.integers(3, 38, (2, 3, 4)).astype(np.int32)
    lengths = np.array([[4, 2, 3], [1, 4, 4]])
    joined = suffixes.append_suffixes(batch, tokens, lengths)
    # a suffix's slots start after the prefix's 16 with a copy of the prefix's last token
    answers = (16 + np.arange(3) * 5 + lengths).astype(np.int32)
    margins = jax.jit(lambda b: yes_no.yes_no_margins(model, model(b), answers, (30, 31)))(joined)
    scores = np.asarray(jax.nn.sigmoid(margins))
    for row in range(2):
        for c in range(3):
            p = np.exp(tiny.full_logprobs(model, batch, row, tokens[row, c, : lengths[row, c]])[-1])
            np.testing.assert_allclose(scores[row, c], p[30] / (p[30] + p[31]), atol=1e-5)


def test_suffix_logprobs_match_plain_sequences():
    model = tiny.model()
    batch = tiny.prompts([[5, 6, 7], [8, 9, 10, 11, 12]], images=True, length=16)
    rng = np.random.default_rng(1)
    tokens = rng.integers(3, 38, (2, 3, 5)).astype(np.int32)
    lengths = np.array([[5, 0, 3], [1, 4, 2]])
    score = jax.jit(lambda b: suffixes.suffix_logprobs(model, b, tokens, lengths))
    scores = np.asarray(score(batch))
    for row in range(2):
        for c in range(3):
            n = lengths[row, c]
            full = tiny.full_logprobs(model, batch, row, tokens[row, c, :n])
            np.testing.assert_allclose(
                scores[row, c, :n], full[np.arange(n), tokens[row, c, :n]], atol=2e-5
            )
            assert np.all(scores[row, c, n:] == 0)
