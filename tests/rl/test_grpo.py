import itertools
import json

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
import tiny_mllm as tiny
import toy_items
import toy_model
from flax import nnx
from jax.experimental.compilation_cache.compilation_cache import reset_cache

from mmsrec_jax.inference.sampler import Generation, Sampling
from mmsrec_jax.inputs.item_prompts import SummarySource
from mmsrec_jax.models import lora
from mmsrec_jax.rl import grpo, policy_loss
from mmsrec_jax.runtime import sharding
from mmsrec_jax.runtime.errors import UserError
from mmsrec_jax.training.state import TrainState


def config(**changes) -> ml_collections.ConfigDict:
    base = ml_collections.ConfigDict(
        dict(
            steps=4, batch_size=4, samples=2, max_new_tokens=8, temperature=1.0, top_k=0, top_p=1.0,
            gather_weights=True,
            patches=16, micro_batch=4, updates_per_rollout=2, clip=0.2, kl=0.04, scale_by_std=True,
            learning_rate=1e-2, warmup_steps=0, weight_decay=0.0, clip_norm=1.0,
            weights=dict(information=0.5, reconstruction=1.0, length=0.01, image=0.5, form=0.2),
            length="keywords", reconstruction="bounded", center=True, distractors=2,
            image_tokens=6, seed=0, workers=0, checkpoint_every=2, log_every=1, input_shards=0,
        )
    )  # fmt: skip
    base.update(changes)
    return base


@pytest.fixture(scope="module", autouse=True)
def compilation_cache(tmp_path_factory):
    """The runs of this file compile the same programs."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = [getattr(jax.config, name) for name in names]
    for name, value in zip(names, (str(tmp_path_factory.mktemp("cache")), 0.0), strict=True):
        jax.config.update(name, value)
    reset_cache()
    yield
    for name, value in zip(names, before, strict=True):
        jax.config.update(name, value)
    reset_cache()


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    tokenizer = toy_items.make_tokenizer(tmp_path_factory.mktemp("tokenizer"))
    prompt_config = toy_items.prompt_config(tokenizer, text_tokens=12)
    return tokenizer, SummarySource(toy_items.catalog(), prompt_config, length=48)


@pytest.fixture(scope="module")
def mesh():
    return sharding.make_mesh(devices=jax.devices()[:1])


def adapters(model) -> list[np.ndarray]:
    return [np.asarray(x) for x in jax.tree.leaves(nnx.state(model, nnx.LoRAParam))]


class TokenBandit:
    """Prompts without images; the reward is the share of one token among those written."""

    TOKEN = 7
    SAMPLES, ROWS = 8, 4

    def __init__(self, num_microbatches: int, learning_rate: float = 3e-2):
        model = tiny.model(3, vision=False)
        model = nnx.clone(model)
        lora.add(model, 4, alpha=8.0, rngs=nnx.Rngs(0))
        self.graphdef, self.params, self.frozen = nnx.split(model, nnx.LoRAParam, ...)
        self.batch = tiny.prompts([[5, 6], [8, 9, 10], [3], [4, 4]], images=False, length=4)
        settings = config(learning_rate=learning_rate, kl=0.0)
        optimizer = grpo.make_optimizer(settings)
        self.state = TrainState.create(jax.tree.map(jnp.copy, self.params), optimizer)
        sampling = Sampling(self.SAMPLES, 6, (1,), 0, gather_weights=True)
        self.roll = grpo.make_rollout(self.graphdef, sampling, seed=0)
        self.update = grpo.make_update(self.graphdef, optimizer, settings, num_microbatches)

    def rollout(self) -> tuple[Generation, jax.Array]:
        rows = np.arange(self.ROWS)
        out = self.roll(self.state.params, self.frozen, self.batch, rows, self.state.step)
        return out, jnp.mean(out.tokens == self.TOKEN, axis=-1)

    def step(self) -> float:
        out, rewards = self.rollout()
        scored = {
            "advantages": policy_loss.group_advantages(rewards, scale_by_std=True),
            "reference": out.logprobs,
        }
        self.state, self.metrics = self.update(self.state, self.frozen, self.batch, out, scored)
        return float(rewards.mean())


def test_a_rewarded_token_becomes_frequent():
    bandit = TokenBandit(num_microbatches=1)
    rewards = [bandit.step() for _ in range(25)]
    assert np.mean(rewards[:3]) < 0.15 < 0.6 < np.mean(rewards[-3:])


def test_micro_batches_give_the_same_update():
    whole, parts = TokenBandit(num_microbatches=1), TokenBandit(num_microbatches=2)
    assert whole.step() == parts.step()
    for name in ("loss", "gradient_norm", "logprob_gap"):
        np.testing.assert_allclose(whole.metrics[name], parts.metrics[name], rtol=1e-4, atol=1e-6)
    for a, b in zip(*(jax.tree.leaves(x.state.params) for x in (whole, parts)), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-4)


@pytest.fixture(scope="module")
def unbroken(world, mesh, tmp_path_factory):
    tokenizer, source = world
    directory = tmp_path_factory.mktemp("unbroken")
    compiled, at_step = [], []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: compiled.append(event) if "backend_compile" in event else None
    )
    patch = pytest.MonkeyPatch()
    count_words = grpo.count_words

    def counting(summaries):
        at_step.append(len(compiled))
        return count_words(summaries)

    patch.setattr(grpo, "count_words", counting)
    model = grpo.train(
        config(), toy_model.make(tokenizer), tokenizer, source, directory=directory, mesh=mesh
    )
    patch.undo()
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return model, lines, at_step


class Killed(BaseException):
    pass


def test_a_resumed_run_equals_an_unbroken_one(world, mesh, unbroken, tmp_path, monkeypatch):
    tokenizer, source = world
    rollouts, read = itertools.count(1), grpo.read

    def killed_in_the_third(*args):
        if next(rollouts) == 3:
            raise Killed
        return read(*args)

    def go():
        model = toy_model.make(tokenizer)
        return grpo.train(config(), model, tokenizer, source, directory=tmp_path, mesh=mesh)

    monkeypatch.setattr(grpo, "read", killed_in_the_third)
    with pytest.raises(Killed):
        go()
    resumed = adapters(go())
    assert next(rollouts) == 6  # three before it was killed, then the third and the fourth
    start = adapters(toy_model.make(tokenizer))
    for whole, again, before in zip(adapters(unbroken[0]), resumed, start, strict=True):
        np.testing.assert_array_equal(whole, again)
        assert np.any(whole != before)


def test_metrics_show_every_part(unbroken):
    _, lines, _ = unbroken
    assert len(lines) == 4
    for name in ("information", "reconstruction", "length", "image", "form", "total"):
        assert all(np.isfinite(line[f"reward/{name}"]) for line in lines)
        assert all(line[f"reward_std/{name}"] >= 0 for line in lines)
    weights = config().weights
    for line in lines:
        total = sum(weights[name] * line[f"reward/{name}"] for name in weights)
        assert line["reward/total"] == pytest.approx(total, abs=1e-4)
        assert line["rollout/logprob_gap"] < 1e-4  # float32: the cache changes nothing
        assert 0 <= line["clip_fraction"] <= 1 and 0 < line["rollout/entropy"] < np.log(600)
        assert 1 <= line["rollout/tokens"] <= 8 and line["rollout/unique_keywords"] >= 0
    # the last update of a step starts from weights that an earlier one has moved
    assert all(line["kl"] > 0 for line in lines)


def test_nothing_compiles_after_the_first_step(unbroken):
    *_, at_step = unbroken
    assert len(at_step) == 4
    assert at_step[3] == at_step[2]  # the second step still compiles what follows the first rollout


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(micro_batch=3), "split a group"),
        (dict(micro_batch=6), "does not divide"),
        (dict(samples=1, micro_batch=4), "group of at least 2"),
        (dict(distractors=4), "distractors"),
        (dict(length="words"), "keywords"),
    ],
)
def test_sizes_that_cannot_work_are_refused(world, mesh, tmp_path, changes, message):
    tokenizer, source = world
    model = toy_model.make(tokenizer)
    with pytest.raises(UserError, match=message):
        grpo.train(config(**changes), model, tokenizer, source, directory=tmp_path, mesh=mesh)


def test_a_model_without_adapters_is_refused(world, mesh, tmp_path):
    tokenizer, source = world
    model = toy_model.make(tokenizer, rank=0)
    with pytest.raises(UserError, match="no adapters"):
        grpo.train(config(), model, tokenizer, source, directory=tmp_path, mesh=mesh)
