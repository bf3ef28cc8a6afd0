"""Rollouts and rankings on 8 simulated devices equal those of 1, by the functions that a run calls.

Losses, gradients and updates: models/test_eight_devices.py.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy_items
import toy_model

from mmsrec_jax.inference.scoring import candidate_scores
from mmsrec_jax.inference.texts import make_sampling
from mmsrec_jax.inputs import pipeline
from mmsrec_jax.inputs.item_prompts import SummarySource
from mmsrec_jax.inputs.recommend import CandidateSource, PromptContext
from mmsrec_jax.models import lora
from mmsrec_jax.rl.rollout import make_rollout
from mmsrec_jax.runtime import sharding
from mmsrec_jax.runtime.arrays import to_devices
from mmsrec_jax.training.state import place

BATCH, CANDIDATES = 8, 5
ROOM = dict(length=48, patches=16)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return toy_items.make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def make_model(tokenizer):
    model = toy_model.make(tokenizer)
    for linear in lora.adapted(model).values():
        linear.lora_b[...] = jnp.full(linear.lora_b.shape, 0.02)  # adapters that do something
    return model


def rollout(tokenizer, mesh):
    model = make_model(tokenizer)
    source = SummarySource(
        toy_items.catalog(),
        toy_items.prompt_config(tokenizer, text_tokens=12),
        length=ROOM["length"],
    )
    sampling = make_sampling(
        model, tokenizer, source, num_generations=2, max_new_tokens=6,
        gather_weights=mesh.shape["tensor"] == 1,  # meshes differ, what is sampled does not
    )  # fmt: skip
    iterator = iter(pipeline.batches(source, batch_size=BATCH, pack=False, **ROOM))
    batch = next(iterator)
    iterator.close()
    with jax.set_mesh(mesh):
        graphdef, state, frozen, _ = place(model, "lora", optax.identity(), mesh)
        batch, rows = to_devices((batch.model_inputs(), batch.index), mesh)
        roll = make_rollout(graphdef, sampling, seed=0)
        return jax.device_get(roll(state.params, frozen, batch, rows, state.step))


def ranking(tokenizer, mesh):
    histories = toy_items.histories()
    rows = toy_items.train_rows(histories)[: BATCH + 3]  # the second batch is filled up
    lists = np.random.default_rng(0).permuted(np.tile(np.arange(24), (len(rows), 1)), axis=1)
    context = PromptContext(toy_items.catalog(), histories, toy_items.keywords())
    source = CandidateSource(
        context, toy_items.prompt_config(tokenizer), rows, lists[:, :CANDIDATES], length=128
    )
    return candidate_scores(
        make_model(tokenizer), source, name="toy", num_candidates=CANDIDATES, batch_size=BATCH,
        patches=128, workers=0, yes_no_ids=source.renderer.prompt_config.chat.yes_no_ids, mesh=mesh,
    )  # fmt: skip


@pytest.fixture(scope="module")
def on_one_device(tokenizer):
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    return rollout(tokenizer, mesh), ranking(tokenizer, mesh)


@pytest.mark.parametrize("sizes", [(8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 2, 4)])
def test_eight_devices_sample_and_rank_as_one(sizes, tokenizer, on_one_device):
    mesh = sharding.make_mesh(*sizes)
    sampled, scores = on_one_device
    got = rollout(tokenizer, mesh)
    assert len(np.unique(sampled.tokens.reshape(-1, 6), axis=0)) > BATCH
    np.testing.assert_array_equal(got.tokens, sampled.tokens)
    np.testing.assert_array_equal(got.lengths, sampled.lengths)
    np.testing.assert_allclose(got.logprobs, sampled.logprobs, atol=1e-4)
    again = ranking(tokenizer, mesh)
    assert np.ptp(scores, axis=1).min() > 0.1
    np.testing.assert_allclose(again, scores, atol=1e-4)
    np.testing.assert_array_equal(again.argsort(axis=1), scores.argsort(axis=1))
