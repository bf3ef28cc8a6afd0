"""Live against transformers on CPU torch, for every family: logits of every layout of images,
packed rows and greedy generation.

Run with `make parity`; skipped without torch.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from pairs import (
    NO_IMAGE,
    ONE_IMAGE,
    SQUARE_AND_STRIP,
    TOLERANCE,
    TWO_IMAGES,
    distance,
    hf,
    make_rows,
    their_logits,
    torch,
)

import mmsrec_jax
from mmsrec_jax.api import _logits
from mmsrec_jax.inference.sampler import Sampling, generate
from mmsrec_jax.models.batch import Batch, Patches

pytestmark = pytest.mark.parity


BATCH = [TWO_IMAGES, NO_IMAGE, SQUARE_AND_STRIP]


@pytest.mark.parametrize(
    "layouts, side",
    [([NO_IMAGE], "right"), ([ONE_IMAGE], "right"), (BATCH, "right"), (BATCH, "left")],
    ids=["no image", "one image", "two images padded right", "two images padded left"],
)
def test_logits(pair, layouts, side):
    theirs, ours = pair
    rows, images = make_rows(theirs.config, 2, layouts)
    error = distance(ours, theirs, *hf.pad(rows, side), images)
    print(f"{theirs.config.model_type}: max abs difference {error:.2e}")
    assert error <= TOLERANCE


def test_the_image_moves_the_logits_equally(pair):
    """Another image changes both models' logits by far more than the tolerance, and alike."""
    theirs, ours = pair
    rows, images = make_rows(theirs.config, 6, [ONE_IMAGE])
    ids, mask = hf.pad(rows)
    other = [[255 - images[0][0]]]
    moved = mmsrec_jax.logits(ours, ids, mask, other) - mmsrec_jax.logits(ours, ids, mask, images)
    expected = their_logits(theirs, ids, mask, other) - their_logits(theirs, ids, mask, images)
    assert np.abs(moved).max() > 1000 * TOLERANCE
    np.testing.assert_allclose(moved, expected, atol=2 * TOLERANCE)


def pack(batches):
    """Batches of one unpadded row each as segments 1, 2, ... of one row."""

    def join(parts, axis=1, count_on=False):
        if count_on:
            starts = np.cumsum([0] + [part.max() for part in parts])
            parts = [part + start for part, start in zip(parts, starts, strict=False)]
        return np.concatenate(parts, axis=axis)

    images = [batch.images for batch in batches if batch.images is not None]
    return Batch(
        tokens=join([batch.tokens for batch in batches]),
        positions=join([batch.positions for batch in batches], axis=-1),
        segment_ids=join([batch.segment_ids for batch in batches], count_on=True),
        images=Patches(
            pixels=join([image.pixels for image in images]),
            hw=join([image.hw for image in images]),
            image_ids=join([image.image_ids for image in images], count_on=True),
            window_ids=join([image.window_ids for image in images], count_on=True),
        ),
    )


def test_packed_rows(pair):
    """Every segment of a row equals transformers' forward of it alone."""
    theirs, ours = pair
    rows, images = make_rows(theirs.config, 5, [TWO_IMAGES, ONE_IMAGE, SQUARE_AND_STRIP, NO_IMAGE])
    alone = [(*hf.pad([row]), [own]) for row, own in zip(rows, images, strict=True)]
    batch = pack([_logits.make_batch(ours, *arguments) for arguments in alone])
    packed = np.asarray(_logits._logits(*nnx.split(ours), batch))[0]
    ends = np.cumsum([len(tokens) for tokens in rows])[:-1]
    for got, arguments in zip(np.split(packed, ends), alone, strict=True):
        assert np.abs(got - their_logits(theirs, *arguments)[0]).max() <= TOLERANCE


def test_greedy_generation(pair):
    """32 tokens, and their log-probabilities, after prompts of different lengths, with two images,
    one and none."""
    theirs, ours = pair
    rows, images = make_rows(theirs.config, 6, [TWO_IMAGES, NO_IMAGE, ONE_IMAGE])
    left = hf.hf_inputs(theirs, *hf.pad(rows, "left"), images)
    with torch.no_grad():
        out = theirs.generate(
            **left,
            max_new_tokens=32,
            do_sample=False,
            pad_token_id=0,
            suppress_tokens=[hf.IMAGE],
            output_logits=True,
            return_dict_in_generate=True,
        )
    tokens = out.sequences[:, left["input_ids"].shape[1] :]
    logprobs = torch.stack(out.logits, 1).log_softmax(-1).gather(2, tokens[..., None])[..., 0]
    batch = _logits.make_batch(ours, *hf.pad(rows), images)
    sampling = Sampling(
        num_generations=1, max_new_tokens=32, eos_ids=(-1,), pad_id=0, gather_weights=False,
        temperature=0.0, suppress=(hf.IMAGE,),
    )  # fmt: skip
    graphdef, state = nnx.split(ours)

    @jax.jit
    def run(state, batch):
        model = nnx.merge(graphdef, state)
        return generate(model, batch, jnp.arange(3), jax.random.key(0), sampling)

    got = run(state, batch)
    assert tokens.shape == (3, 32)
    np.testing.assert_array_equal(got.tokens[:, 0], tokens.numpy())
    np.testing.assert_allclose(got.logprobs[:, 0], logprobs.numpy(), atol=TOLERANCE)
    assert np.ptp(logprobs.numpy(), axis=1).min() > 1000 * TOLERANCE
