"""Live against transformers on CPU torch, text-only models: logits, greedy generation, and what is
assumed for fields that config.json leaves out; SmolLM2-135M where it is at hand.

Gradients and exports: test_parity_gradients.py, test_parity_export.py. Run with `make parity`;
skipped without torch.
"""

import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from pairs import NO_IMAGE, TOLERANCE, distance, hf, make_pair, make_rows, torch, transformers

import mmsrec_jax
from mmsrec_jax.api import _logits
from mmsrec_jax.hf import mapping
from mmsrec_jax.inference.sampler import Sampling, generate

pytestmark = pytest.mark.parity
LONG = 150  # tokens: every frequency of the rope has turned


@pytest.fixture(
    scope="module",
    params=[(name, tied) for name in hf.TEXT_ONLY for tied in (False, True)],
    ids=lambda param: f"{param[0]}-{'tied' if param[1] else 'untied'}",
)
def pair(request, tmp_path_factory):
    name, tied = request.param
    theirs, ours = make_pair(tmp_path_factory.mktemp(name), seed=1, name=name, tied=tied)
    assert (ours.text.head is None) == tied
    return theirs, ours


def rows_of(config):
    """One row longer than the others."""
    rows, images = make_rows(config, 2, [NO_IMAGE] * 3)
    rng = np.random.default_rng(3)
    return [rng.integers(1, hf.IMAGE, LONG).tolist(), *rows], [[], *images]


@pytest.mark.parametrize("side", ["right", "left"])
def test_logits(pair, side):
    theirs, ours = pair
    rows, images = rows_of(theirs.config)
    error = distance(ours, theirs, *hf.pad(rows, side), images)
    print(f"{theirs.config.model_type}: max abs difference {error:.2e}")
    assert error <= TOLERANCE


def greedy(ours, ids, mask, steps, suppress=()):
    """Tokens int[B, steps], log-probabilities float[B, steps]."""
    sampling = Sampling(
        num_generations=1, max_new_tokens=steps, eos_ids=(-1,), pad_id=0, gather_weights=False,
        temperature=0.0, suppress=suppress,
    )  # fmt: skip
    graphdef, state = nnx.split(ours)
    batch = _logits.make_batch(ours, ids, mask, [[]] * len(ids))

    @jax.jit
    def run(state, batch):
        model = nnx.merge(graphdef, state)
        return generate(model, batch, jnp.arange(len(ids)), jax.random.key(0), sampling)

    got = run(state, batch)
    return np.asarray(got.tokens[:, 0]), np.asarray(got.logprobs[:, 0])


def their_greedy(theirs, ids, mask, steps):
    with torch.no_grad():
        out = theirs.generate(
            input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask), max_new_tokens=steps,
            min_new_tokens=steps, do_sample=False, pad_token_id=0, output_logits=True,
            return_dict_in_generate=True,
        )  # fmt: skip
    tokens = out.sequences[:, ids.shape[1] :]
    logprobs = torch.stack(out.logits, 1).log_softmax(-1).gather(2, tokens[..., None])[..., 0]
    return tokens.numpy(), logprobs.numpy()


def test_greedy_generation(pair):
    theirs, ours = pair
    rows, _ = rows_of(theirs.config)
    tokens, logprobs = their_greedy(theirs, *hf.pad(rows, "left"), steps=32)
    got = greedy(ours, *hf.pad(rows), steps=32)
    np.testing.assert_array_equal(got[0], tokens)
    np.testing.assert_allclose(got[1], logprobs, atol=TOLERANCE)
    assert np.ptp(logprobs, axis=1).min() > 1000 * TOLERANCE


@pytest.mark.parametrize("name", hf.TEXT_ONLY)
def test_what_config_json_leaves_out(name):
    theirs = transformers.CONFIG_MAPPING[name]()
    text = mapping.config_from_hf({"model_type": name}).text
    assert (text.vocab_size, text.hidden, text.layers) == (
        theirs.vocab_size, theirs.hidden_size, theirs.num_hidden_layers,
    )  # fmt: skip
    assert (text.heads, text.kv_heads) == (theirs.num_attention_heads, theirs.num_key_value_heads)
    assert text.head_dim == (getattr(theirs, "head_dim", None) or text.hidden // text.heads)
    assert (text.intermediate, text.norm_eps) == (theirs.intermediate_size, theirs.rms_norm_eps)
    assert (text.rope_theta, text.tied) == (
        theirs.rope_parameters["rope_theta"], theirs.tie_word_embeddings,
    )  # fmt: skip


# --- real weights ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def smollm2():
    """(transformers' model, ours, tokenizer) of $MMSREC_TEST_MODELS/smollm2-135m."""
    models = os.environ.get("MMSREC_TEST_MODELS", "")
    directory = Path(models) / "smollm2-135m"
    if not models or not directory.is_dir():
        pytest.skip("SmolLM2-135M is not at hand: no folder smollm2-135m in $MMSREC_TEST_MODELS")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype="float32").eval()
    tokens = transformers.AutoTokenizer.from_pretrained(directory)
    return theirs, mmsrec_jax.load(directory), tokens


QUESTIONS = [
    "The capital of France is",
    "Strawberry Sponge Hair Curlers (6 Sponges), OPI Nail Lacquer, and a third thing:",
]


def test_real_logits(smollm2):
    """Logits reach from -20 to 27: the tolerance is relative to their spread."""
    theirs, ours, tokens = smollm2
    ids, mask = hf.pad([tokens(text)["input_ids"] for text in QUESTIONS])
    spread = hf.hf_logits(theirs, ids, mask, []).detach().numpy()[mask > 0].std()
    error = distance(ours, theirs, ids, mask, [[], []])
    print(f"max abs difference {error:.2e} of logits with standard deviation {spread:.1f}")
    assert error <= TOLERANCE * spread


def test_real_vectors(smollm2):
    """The mean of transformers' last hidden states over the text, after the opening of the chat."""
    theirs, ours, tokens = smollm2
    asked = tokens.apply_chat_template([{"role": "user", "content": "?!"}], tokenize=False)
    opening = tokens(asked.split("?!")[0], add_special_tokens=False)["input_ids"]
    found = mmsrec_jax.embed(ours, tokens, QUESTIONS)
    for text, vector in zip(QUESTIONS, found, strict=True):
        ids = opening + tokens(text, add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            hidden = theirs.model(torch.tensor([ids])).last_hidden_state[0, len(opening) :]
        np.testing.assert_allclose(vector, hidden.mean(0).numpy(), atol=1e-3)
        assert vector.std() > 1


def test_real_generation(smollm2):
    theirs, ours, tokens = smollm2
    rows = [tokens(text)["input_ids"] for text in QUESTIONS]
    expected, _ = their_greedy(theirs, *hf.pad(rows, "left"), steps=16)
    found, _ = greedy(ours, *hf.pad(rows), steps=16)
    print(tokens.batch_decode(found))
    np.testing.assert_array_equal(found, expected)
