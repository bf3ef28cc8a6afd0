"""Training of the connector, alone and beside adapters, on models of two families: nothing else
moves, pictures are learnt by heart, a stopped run ends with the same bits, devices agree."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

import mmsrec_jax
from mmsrec_jax.inputs.example import Example
from mmsrec_jax.inputs.pipeline import batches
from mmsrec_jax.models import lora, trainable
from mmsrec_jax.runtime import sharding
from mmsrec_jax.training import sft
from mmsrec_jax.training.sft import FineTuneSettings
from mmsrec_jax.training.state import place

GOLDEN = Path(__file__).parents[1] / "golden"
NAMES, KINDS = ("qwen2_5_vl", "llava_clip"), ("connector", "connector+lora")
PICTURES, QUESTION, ANSWER = 8, (7, 9), 3


class Pictures:
    """Eight pictures of noise, and what to answer to each: the picture alone tells."""

    def __init__(self, model):
        self.processor, self.image_token = model.processor, model.config.image_token_id
        self.patch_width = 3 * self.processor.patch_size**2

    def __len__(self):
        return PICTURES

    def example(self, row, draw):
        rng = np.random.default_rng(row)
        image = self.processor.patchify(rng.integers(0, 256, (16, 16, 3), np.uint8))
        slots = [self.image_token] * self.processor.num_slots(image["grid"])
        tokens = np.array([*slots, *QUESTION, *rng.integers(0, 40, ANSWER)], np.int32)
        weights = np.zeros(len(tokens), np.float32)
        weights[-ANSWER:] = 1
        positions = self.processor.positions(tokens, [image["grid"]], self.image_token)
        return Example(tokens, weights, np.zeros(len(tokens), np.int32), positions, (image,))


def make_model(name, kind):
    model = mmsrec_jax.load(GOLDEN / name, trainable=kind)
    if "lora" in trainable.parts(kind):
        lora.add(model, 2, 4.0, rngs=nnx.Rngs(1))
    return model


def train(model, kind, directory, *, sizes=(1, 1, 1), **changes):
    settings = dict(steps=6, warmup_steps=1, batch_size=8, learning_rate=3e-2, log_every=1)
    settings = FineTuneSettings(trainable=kind, **settings | dict(checkpoint_every=50) | changes)
    data = batches(Pictures(model), batch_size=8, length=32, patches=32, targets=16)
    mesh = sharding.make_mesh(*sizes, devices=jax.devices()[: int(np.prod(sizes))])
    return sft.train(
        settings, model, data, name="test", directory=directory, mesh=mesh, yes_no_ids=(1, 2)
    )


def parameters(model, kind="full"):
    """By path, those of `kind`."""
    flat = nnx.to_flat_state(nnx.state(model, trainable.filter_of(kind)))
    return {".".join(map(str, path)): np.asarray(leaf[...]) for path, leaf in flat}


def losses(directory):
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", KINDS)
def test_it_alone_moves_and_learns_pictures_by_heart(name, kind, tmp_path):
    model = make_model(name, kind)
    before, trained = parameters(model), set(parameters(model, kind))
    frozen = nnx.state(model, nnx.All(nnx.Param, nnx.Not(trainable.filter_of(kind))))
    after = parameters(train(model, kind, tmp_path, steps=25))
    for path, value in after.items():
        assert np.array_equal(value, before[path]) == (path not in trained), path
    assert all(not leaf.is_deleted() for leaf in jax.tree.leaves(frozen))
    first, last = losses(tmp_path)[0], losses(tmp_path)[-1]
    assert first > 3 and last < 0.8 * first


@pytest.mark.parametrize("kind", KINDS)
def test_frozen_parameters_have_no_moments(kind):
    model = make_model("qwen2_5_vl", kind)
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    settings = FineTuneSettings(trainable=kind)
    _, state, frozen, _ = place(model, kind, sft.make_optimizer(settings), mesh)
    size = sum(value.size for value in parameters(model, kind).values())
    held = sum(leaf.size for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim)
    assert held == 2 * size and len(jax.tree.leaves(state.params)) == len(parameters(model, kind))
    everything = len(jax.tree.leaves(nnx.state(model)))
    assert len(jax.tree.leaves(frozen)) == everything - len(parameters(model, kind))


@pytest.mark.parametrize("name, kind", zip(NAMES, KINDS, strict=True))
def test_a_stopped_run_ends_with_the_same_bits(name, kind, tmp_path, monkeypatch):
    steps, make_step, run = {}, sft.make_step, sft.loop.run

    class Killed(Exception):
        pass

    def run_and_die(state, step_fn, iterator, **options):
        calls = iter(range(5))

        def step(state, batch):
            if next(calls, None) is None:
                raise Killed
            return step_fn(state, batch)

        return run(state, step, iterator, **options)

    def make_step_once(*args, **options):
        return steps.setdefault("one", make_step(*args, **options))

    monkeypatch.setattr(sft, "make_step", make_step_once)  # to compile it once
    whole = parameters(train(make_model(name, kind), kind, tmp_path / "whole", checkpoint_every=2))
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(sft.loop, "run", run_and_die)
        train(make_model(name, kind), kind, tmp_path / "killed", checkpoint_every=2)
    again = parameters(train(make_model(name, kind), kind, tmp_path / "killed", checkpoint_every=2))
    assert whole.keys() == again.keys()
    assert all(np.array_equal(whole[path], again[path]) for path in whole)


def test_eight_devices_make_the_updates_of_one(tmp_path):
    """Of the connector with the most parts; tests/models compares gradients of every family."""
    name, kind, found = "qwen3_vl", "connector+lora", {}
    for sizes in ((1, 1, 1), (2, 2, 2)):
        directory = tmp_path / "x".join(map(str, sizes))
        model = train(make_model(name, kind), kind, directory, sizes=sizes, steps=3)
        found[sizes] = parameters(model, kind), losses(directory)
    (one, loss), (eight, losses_of_eight) = found.values()
    np.testing.assert_allclose(losses_of_eight, loss, rtol=1e-4)
    start = parameters(make_model(name, kind), kind)
    for path, value in one.items():
        moved = np.abs(value - start[path]).max()
        np.testing.assert_allclose(eight[path], value, atol=5e-2 * moved, err_msg=path)
