import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
import tiny_mllm as tiny
from flax import nnx

from mmsrec_jax.inference import sampler
from mmsrec_jax.inference.sampler import Sampling

TEXTS = [[5, 6, 7], [8, 9, 10, 11, 12], [3], [5, 5]]
BASE = Sampling(
    num_generations=3, max_new_tokens=7, eos_ids=(1, 2), pad_id=0, gather_weights=False,
    suppress=(tiny.IMAGE_TOKEN,),
)  # fmt: skip
ROWS = np.array([10, 11, 12, 13])


def compile_for(model, sampling):
    graphdef, state = nnx.split(model)

    def sample(batch, rows, seed=0):
        key = jax.random.key(seed)
        out = sampler.generate_compiled(graphdef, sampling, state, batch, rows, key)
        sample.compilations = sampler.generate_compiled._cache_size()
        return jax.tree.map(np.asarray, out)

    return sample


@pytest.fixture(scope="module")
def model():
    return tiny.model()


@pytest.fixture(scope="module")
def batch():
    return tiny.prompts(TEXTS, images=True, length=16)


@pytest.fixture(scope="module")
def sample(model):
    return compile_for(model, BASE)


def test_logprobs_are_those_of_the_full_forward(model, batch, sample):
    out = sample(batch, ROWS)
    assert out.lengths.max() > 1 and out.lengths.min() >= 1
    for row in range(4):
        for g in range(3):
            n = out.lengths[row, g]
            tokens = out.tokens[row, g, :n]
            full = tiny.full_logprobs(model, batch, row, tokens[:-1])
            np.testing.assert_allclose(
                out.logprobs[row, g, :n], full[np.arange(n), tokens], atol=2e-5
            )
            entropies = -(np.exp(full) * full).sum(-1)
            np.testing.assert_allclose(out.entropies[row, g, :n], entropies, atol=1e-4)
            # nothing is cut here but the image token
            cut = np.log1p(-np.exp(full[:, tiny.IMAGE_TOKEN]))
            np.testing.assert_allclose(
                out.sampling_logprobs[row, g, :n], out.logprobs[row, g, :n] - cut, atol=2e-5
            )


def test_a_row_ends_with_its_ending_token_and_then_holds_padding(batch, sample):
    seeds = [sample(batch, ROWS)]
    compilations = sample.compilations
    seeds += [sample(batch, ROWS, seed) for seed in range(1, 6)]
    tokens, lengths = (
        np.concatenate([getattr(o, n) for o in seeds]) for n in ("tokens", "lengths")
    )
    logprobs = np.concatenate([o.logprobs for o in seeds])
    ends = np.isin(tokens, BASE.eos_ids)
    first = np.where(ends.any(-1), ends.argmax(-1) + 1, tokens.shape[-1])
    np.testing.assert_array_equal(lengths, first)
    assert (lengths < 7).any() and (lengths == 7).any()
    past = np.arange(7) >= lengths[..., None]
    assert np.all(tokens[past] == BASE.pad_id) and np.all(logprobs[past] == 0)
    assert not (tokens == tiny.IMAGE_TOKEN).any()
    assert sample.compilations == compilations  # neither key nor content compiles anew


def test_draws_depend_on_key_and_identity_only(batch, sample):
    out = sample(batch, ROWS)
    order = np.array([2, 0, 3, 1])
    shuffled = sample(jax.tree.map(lambda x: x[order], batch), ROWS[order])
    np.testing.assert_array_equal(out.tokens[order], shuffled.tokens)
    wider = sample(tiny.prompts(TEXTS, images=True, length=23), ROWS)
    np.testing.assert_array_equal(out.tokens, wider.tokens)
    assert (sample(batch, ROWS, 1).tokens != out.tokens).any()
    assert (sample(batch, ROWS + 7).tokens != out.tokens).any()
    samples = {tuple(row) for row in out.tokens[1]}
    assert len(samples) == 3


def test_greedy_is_the_argmax_of_repeated_full_forwards(model, batch):
    sampling = dataclasses.replace(BASE, num_generations=1, temperature=0.0)
    out = compile_for(model, sampling)(batch, ROWS)
    for row in range(4):
        tokens = []
        while len(tokens) < 7:
            logprobs = tiny.full_logprobs(model, batch, row, tokens)[-1].copy()
            logprobs[tiny.IMAGE_TOKEN] = -np.inf
            tokens.append(int(logprobs.argmax()))
            if tokens[-1] in BASE.eos_ids:
                break
        assert out.tokens[row, 0, : out.lengths[row, 0]].tolist() == tokens


def test_frequencies_match_the_model(model):
    """First tokens of many samples against the exact distribution, tempered and cut: chi-square."""
    batch = tiny.prompts(TEXTS[:1], images=False, length=8)
    exact = tiny.full_logprobs(model, batch, 0, [])[-1].astype(np.float64)
    sampling = Sampling(
        num_generations=4000, max_new_tokens=1, eos_ids=(1,), pad_id=0, gather_weights=False,
        temperature=1.5, top_k=12, top_p=0.9, suppress=(4,),
    )  # fmt: skip
    tokens = compile_for(model, sampling)(batch, ROWS[:1]).tokens.ravel()
    logits = exact / 1.5
    logits[4] = -np.inf
    order = np.argsort(-logits)[:12]
    probabilities = np.exp(logits[order]) / np.exp(logits[order]).sum()
    keep = np.searchsorted(np.cumsum(probabilities), 0.9) + 1
    expected = np.zeros(tiny.VOCAB)
    expected[order[:keep]] = probabilities[:keep] / probabilities[:keep].sum()
    counts = np.bincount(tokens, minlength=tiny.VOCAB)
    assert counts[expected == 0].sum() == 0
    kept = expected > 0
    assert scipy.stats.chisquare(counts[kept], 4000 * expected[kept]).pvalue > 1e-3


@pytest.mark.parametrize(
    "top_k, top_p, kept",
    [(0, 1.0, 4), (2, 1.0, 2), (9, 1.0, 4), (0, 0.5, 1), (0, 0.51, 2), (0, 0.8, 3), (2, 0.99, 2)],
)
def test_truncation(top_k, top_p, kept):
    logits = jnp.log(jnp.array([[0.15, 0.5, 0.1, 0.25]]))
    out = np.asarray(sampler.truncate(logits, top_k=top_k, top_p=top_p))[0]
    assert sorted(np.flatnonzero(np.isfinite(out))) == sorted([1, 3, 0, 2][:kept])


def test_stops_early_when_all_rows_have_ended(batch, sample):
    """The loop's number of iterations, counted from inside, is that of the longest row."""
    model, calls = tiny.model(), []

    class Counting:
        config, dtype, unembed = model.config, model.dtype, staticmethod(model.unembed)

        def __call__(self, batch, **options):
            if batch.tokens.shape[1] == 1:
                jax.debug.callback(lambda: calls.append(1))
            return model(batch, **options)

    sampling = dataclasses.replace(BASE, max_new_tokens=500, eos_ids=tuple(range(10)))
    run = jax.jit(lambda b: sampler.generate(Counting(), b, ROWS, jax.random.key(0), sampling))
    lengths = np.asarray(run(tiny.prompts(TEXTS, images=False, length=8)).lengths)
    jax.effects_barrier()
    assert len(calls) == lengths.max() - 1 < 100
