"""Candidate lists in batches: one compilation, and every list's scores in its own row."""

import chex
import jax
import numpy as np
import pytest
import toy_items
import toy_model
from flax import nnx
from toy_examples import CATALOG, HISTORIES, KEYWORDS, ROWS

from mmsrec_jax.inference import scoring
from mmsrec_jax.inference.forward import per_row
from mmsrec_jax.inputs import pipeline
from mmsrec_jax.inputs.recommend import CandidateSource, PromptContext
from mmsrec_jax.runtime.progress import Progress
from mmsrec_jax.runtime.sharding import make_mesh


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return toy_items.make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def test_batches_of_other_content_are_scored_by_one_program(trained):
    """Users, images, lengths of histories and lists differ; the last batch is filled up."""
    rows = ROWS[:7]
    lists = np.random.default_rng(0).permuted(np.tile(np.arange(24), (7, 1)), axis=1)[:, :4]
    lists[2, 3] = -1
    context = PromptContext(CATALOG, HISTORIES, KEYWORDS)
    source = CandidateSource(context, toy_items.prompt_config(trained), rows, lists, length=128)
    dataset = pipeline.batches(
        source, batch_size=2, length=128, patches=96, answers=4, shuffle=False, repeat=False,
        pack=False,
    )  # fmt: skip
    model = toy_model.make(trained, rank=0)
    yes, no = source.renderer.prompt_config.chat.yes_no_ids
    compute = chex.assert_max_traces(scoring.margins((yes, no)), n=1)
    mesh = make_mesh(devices=jax.devices()[:1])
    progress = Progress("toy", len(source), unit="users")
    batches = per_row(model, dataset, compute, progress=progress, mesh=mesh)
    found = [next(batches)]
    assert jax.sharding.get_abstract_mesh().empty  # its mesh is not set for whoever reads it
    found += batches
    assert [index.tolist() for index, _ in found] == [[0, 1], [2, 3], [4, 5], [6]]

    graphdef, state = nnx.split(model)

    @jax.jit
    def logits(state, batch):
        model = nnx.merge(graphdef, state)
        return model.unembed(model(batch))

    second = list(dataset)[1]
    at, (_, margins) = second.answer_positions, found[1]
    assert (at >= 0).tolist() == [[True] * 3 + [False], [True] * 4]
    whole = np.asarray(logits(state, second))
    for b, c in zip(*np.nonzero(at >= 0), strict=True):
        after = whole[b, at[b, c]]
        np.testing.assert_allclose(margins[b, c], after[yes] - after[no], atol=1e-4)
