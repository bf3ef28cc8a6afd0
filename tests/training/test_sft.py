"""The loss against plain softmaxes over whole logits, and runs that stop and go on."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy_items
from flax import nnx

from mmsrec_jax.inputs.pipeline import batches
from mmsrec_jax.inputs.recommend import PromptContext, RecommendSource
from mmsrec_jax.models import flops, lora
from mmsrec_jax.models.config import DecoderConfig, MLLMConfig, VisionConfig
from mmsrec_jax.models.mllm import MLLM
from mmsrec_jax.runtime import sharding
from mmsrec_jax.runtime.arrays import to_devices
from mmsrec_jax.runtime.errors import UserError
from mmsrec_jax.runtime.settings import from_config, to_config
from mmsrec_jax.training import metering, sft
from mmsrec_jax.training.sft import SFTSettings
from mmsrec_jax.training.state import place

SETTINGS = SFTSettings(
    trainable="full", steps=20, warmup_steps=3, learning_rate=2e-2, weight_decay=0.01,
    clip_norm=1.0, listwise_weight=0.5, checkpoint_every=10, log_every=2, batch_size=4,
)  # fmt: skip
SHAPE = dict(batch_size=4, length=256, patches=96, answers=8, targets=48)


@pytest.fixture(scope="module")
def prompt_config(tmp_path_factory):
    return toy_items.prompt_config(toy_items.make_tokenizer(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture(scope="module")
def source(prompt_config):
    h = toy_items.histories()
    context = PromptContext(toy_items.catalog(), h, toy_items.keywords())
    return RecommendSource(
        context, prompt_config, toy_items.train_rows(h), length=256, seed=0, negatives=3,
        tasks={"pointwise": 3, "next_keywords": 1},
    )  # fmt: skip


def make_model():
    text = DecoderConfig(
        vocab_size=600, hidden=16, layers=2, heads=2, kv_heads=1, head_dim=8, intermediate=24,
        mrope_section=(2, 1, 1),
    )  # fmt: skip
    vision = VisionConfig(
        depth=1, hidden=8, heads=2, intermediate=12, fullatt_block_indexes=(0,), patch_size=4
    )
    return MLLM(MLLMConfig(text, vision, 5, 3, 4), rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def batch(source):
    iterator = iter(batches(source, **SHAPE))
    try:
        return next(iterator)
    finally:
        iterator.close()


def log_softmax(logits):
    logits = np.asarray(logits, np.float64)
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


@pytest.fixture(scope="module")
def forward(batch, prompt_config):
    """model -> logits [B, L, V], sums of rows, loss, metrics; compiled once for all tests."""

    @jax.jit
    def compute(params):
        model = nnx.merge(graphdef, params)
        logits = model.unembed(model(batch))
        return (
            logits,
            sft.row_sums(model, batch),
            *sft.loss(model, batch, yes_no_ids=prompt_config.chat.yes_no_ids, listwise_weight=0.5),
        )

    graphdef = nnx.graphdef(make_model())
    return lambda model: compute(nnx.state(model))


def balance(model, batch, yes, no):
    """Changes the head so that about half of the candidates have yes above no."""
    hidden = np.asarray(model(batch))
    hidden = np.concatenate([hidden[b, at[at >= 0]] for b, at in enumerate(batch.answer_positions)])
    kernel = np.array(model.text.head.kernel[...])
    mean = hidden.mean(0)
    off = np.median(hidden @ (kernel[:, yes] - kernel[:, no]))
    kernel[:, yes] -= off * mean / (mean @ mean)
    model.text.head.kernel[...] = jnp.asarray(kernel)


def test_loss_is_that_of_plain_softmaxes(forward, batch, prompt_config):
    yes, no = prompt_config.chat.yes_no_ids
    model = make_model()
    balance(model, batch, yes, no)
    logits, sums, total, metrics = forward(model)
    logprobs, weights = log_softmax(logits), batch.loss_weights
    of_row = np.zeros(len(logits))
    for b, t in zip(*np.nonzero(weights), strict=True):
        of_row[b] -= weights[b, t] * logprobs[b, t - 1, batch.tokens[b, t]]
    np.testing.assert_allclose(sums, np.stack([of_row, weights.sum(1)], 1), rtol=1e-4)
    token = of_row.sum()
    np.testing.assert_allclose(metrics["loss/tokens"], token / weights.sum(), rtol=1e-4)
    lists, first, right = [], [], {0: [], 1: []}
    for b in range(len(logits)):
        at = batch.answer_positions[b]
        for segment in set(batch.segment_ids[b, at[at >= 0]]):
            mine = [c for c in range(8) if at[c] >= 0 and batch.segment_ids[b, at[c]] == segment]
            score = np.array([logits[b, at[c], yes] - logits[b, at[c], no] for c in mine])
            labels = batch.labels[b][mine]
            assert labels.sum() == 1 and len(mine) == 4
            lists.append(-log_softmax(score)[labels == 1][0])
            first.append(np.argmax(score) == np.argmax(labels))
            for s, label in zip(score, labels, strict=True):
                right[int(label)].append((s > 0) == label)
    assert len(lists) >= 4 and all(0 < np.mean(found) < 1 for found in right.values())
    np.testing.assert_allclose(metrics["loss/listwise"], np.mean(lists), rtol=1e-4)
    np.testing.assert_allclose(total, token / weights.sum() + 0.5 * np.mean(lists), rtol=1e-4)
    np.testing.assert_allclose(metrics["yes_no/positive_first"], np.mean(first), atol=1e-6)
    np.testing.assert_allclose(metrics["yes_no/accuracy_yes"], np.mean(right[1]), atol=1e-6)
    np.testing.assert_allclose(metrics["yes_no/accuracy_no"], np.mean(right[0]), atol=1e-6)


def test_work_is_that_of_tokens_targets_and_images(batch):
    counted = metering.ModelFlops(make_model(), adapters=False)
    tokens, targets = (batch.segment_ids != 0).sum(1), (batch.loss_weights > 0).sum(1)
    wanted = {"tokens": tokens.sum(), "flops": counted(flops.train_step, tokens, targets, batch)}
    found = sft._work(counted, flops.train_step, batch)
    assert wanted.items() <= found.items() and targets.all()


def test_equal_scores_are_not_first(forward):
    model = make_model()
    model.text.head.kernel[...] = jnp.zeros_like(model.text.head.kernel[...])
    _, _, _, metrics = forward(model)
    assert metrics["yes_no/positive_first"] == 0
    np.testing.assert_allclose(metrics["loss/listwise"], np.log(4), rtol=1e-5)
    np.testing.assert_allclose(metrics["loss/tokens"], np.log(600), rtol=1e-5)


def test_accumulated_gradients_are_those_of_the_batch_and_the_state_is_donated(
    batch, prompt_config
):
    """Rows hold unlike numbers of targets, and one has no list."""
    batch = jax.tree.map(np.copy, batch)
    batch.target_positions[1, 3:] = -1
    batch.answer_positions[2] = -1
    mesh = sharding.make_mesh(data=2, fsdp=1, tensor=1, devices=jax.devices()[:2])
    found = {}
    for num_microbatches in (1, 2):
        with jax.set_mesh(mesh):
            graphdef, state, frozen, shardings = place(make_model(), "full", optax.sgd(1.0), mesh)
            before = jax.device_get(state.params)
            step = sft.make_step(
                graphdef, optax.sgd(1.0), yes_no_ids=prompt_config.chat.yes_no_ids,
                listwise_weight=0.5,
                num_microbatches=num_microbatches, shardings=shardings,
            )  # fmt: skip
            arguments = state, frozen, to_devices(batch, mesh)
            compiled = step.lower(*arguments).compile()
            held = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
            assert compiled.memory_analysis().alias_size_in_bytes >= held
            state, metrics = compiled(*arguments)
        gradients = jax.tree.map(lambda a, b: a - b, before, jax.device_get(state.params))
        found[num_microbatches] = gradients, jax.device_get(metrics)
    whole, parts = found[1], found[2]
    assert set(whole[1]) == set(parts[1])
    for name, value in whole[1].items():
        np.testing.assert_allclose(parts[1][name], value, rtol=1e-5, err_msg=name)
    scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(whole[0]))
    for a, b in zip(jax.tree.leaves(whole[0]), jax.tree.leaves(parts[0]), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6 * scale)


@pytest.mark.parametrize("micro_batch", [3, 2, 8])
def test_micro_batches_that_do_not_divide_are_refused(source, prompt_config, tmp_path, micro_batch):
    with pytest.raises(UserError, match=f"micro_batch={micro_batch} must divide batch_size=4"):
        train(source, prompt_config, tmp_path, micro_batch=micro_batch)


def test_a_batch_has_as_many_micro_batches_as_fit():
    mesh = sharding.make_mesh(data=2, fsdp=2, tensor=1, devices=jax.devices()[:4])
    sizes = {0: 1, 4: 6, 12: 2, 24: 1}
    settings = {
        size: dataclasses.replace(SETTINGS, batch_size=24, micro_batch=size) for size in sizes
    }
    assert {size: sft.num_microbatches(one, mesh) for size, one in settings.items()} == sizes


def train(source, prompt_config, directory, model=None, **changes):
    return sft.train(
        dataclasses.replace(SETTINGS, **changes), model or make_model(), batches(source, **SHAPE),
        name="sft", directory=directory, yes_no_ids=prompt_config.chat.yes_no_ids,
        mesh=sharding.make_mesh(data=2, fsdp=2, tensor=1, devices=jax.devices()[:4]),
    )  # fmt: skip


def leaves(model, *filters):
    return [np.asarray(x) for x in jax.tree.leaves(nnx.split(model, *filters, ...)[1])]


class Killed(Exception):
    pass


@pytest.fixture
def compiled_once(monkeypatch):
    """Runs of one test share their compiled step; `offload` alone tells two apart."""
    steps, make_step = {}, sft.make_step

    def make_step_once(*args, offload, **options):
        if offload not in steps:
            steps[offload] = make_step(*args, offload=offload, **options)
        return steps[offload]

    monkeypatch.setattr(sft, "make_step", make_step_once)


def test_stopped_run_ends_with_the_same_bits_and_has_learnt(
    source, prompt_config, tmp_path, monkeypatch, compiled_once
):
    run = sft.loop.run

    def run_and_die(state, step_fn, iterator, **options):
        calls = iter(range(13))

        def step(state, batch):
            if next(calls, None) is None:
                raise Killed
            return step_fn(state, batch)

        return run(state, step, iterator, **options)

    whole = train(source, prompt_config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(sft.loop, "run", run_and_die)
        with pytest.raises(Killed):
            train(source, prompt_config, tmp_path / "killed")
    again = train(source, prompt_config, tmp_path / "killed")
    for a, b in zip(leaves(whole, nnx.Param), leaves(again, nnx.Param), strict=True):
        np.testing.assert_array_equal(a, b)
    log = (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()
    first, last = json.loads(log[0]), json.loads(log[-1])
    assert first["loss/tokens"] > 5 and last["loss/tokens"] < 3


def test_an_optimizer_in_the_hosts_memory_makes_the_same_updates_and_resumes_there(
    source, prompt_config, tmp_path, monkeypatch, compiled_once
):
    seen, run = [], sft.loop.run

    def run_and_look(state, *args, **options):
        state = run(state, *args, **options)
        seen.append({x.sharding.memory_kind for x in jax.tree.leaves(state.opt_state) if x.ndim})
        return state

    def trained(name, **changes):
        options = dict(steps=4, checkpoint_every=2) | changes
        return leaves(train(source, prompt_config, tmp_path / name, **options), nnx.Param)

    expected = trained("devices")
    monkeypatch.setattr(sft.loop, "run", run_and_look)
    whole = trained("hosts", offload_optimizer=True)
    for name in ("hosts", "devices"):
        shutil.rmtree(tmp_path / name / "checkpoints" / "4")
    again, moved = (trained(name, offload_optimizer=True) for name in ("hosts", "devices"))
    assert seen == [{"pinned_host"}] * 3
    for a, b, c, d in zip(expected, whole, again, moved, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
        np.testing.assert_array_equal(b, c)
        np.testing.assert_allclose(a, d, atol=1e-6)


def test_adapters_alone_are_trained_and_learn(source, prompt_config, tmp_path):
    model = make_model()
    with pytest.raises(UserError, match="no such weights"):
        train(source, prompt_config, tmp_path / "none", model, trainable="lora")
    lora.add(model, rank=4, alpha=8, rngs=nnx.Rngs(1))
    frozen = nnx.All(nnx.Param, nnx.Not(nnx.LoRAParam))
    before, adapters = leaves(model, frozen), leaves(model, nnx.LoRAParam)
    trained = train(source, prompt_config, tmp_path / "lora", model, trainable="lora", steps=4)
    for a, b in zip(before, leaves(trained, frozen), strict=True):
        np.testing.assert_array_equal(a, b)
    moved = leaves(trained, nnx.LoRAParam)
    assert all((a != b).any() for a, b in zip(adapters, moved, strict=True))


def test_a_warm_up_as_long_as_the_run_is_refused():
    config = to_config(SETTINGS)
    config.update(steps=5, warmup_steps=5)
    with pytest.raises(UserError, match="config.sft.warmup_steps=5: must be below steps=5"):
        from_config(SFTSettings, config, "config.sft")
