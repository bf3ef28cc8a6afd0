import itertools
import json

import chex
import jax
import jax.numpy as jnp
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
from mmsrec_jax.prompts import Summary
from mmsrec_jax.rl import grpo, metrics, policy_loss, rewards
from mmsrec_jax.rl.rewards.base import Reward
from mmsrec_jax.rl.rewards.context import RewardContext
from mmsrec_jax.rl.rollout import make_rollout
from mmsrec_jax.rl.settings import GRPOSettings
from mmsrec_jax.runtime import sharding
from mmsrec_jax.runtime.errors import UserError
from mmsrec_jax.runtime.settings import from_config, to_config
from mmsrec_jax.training.state import TrainState


def config(**changes) -> GRPOSettings:
    base = dict(
        steps=4, batch_size=4, num_generations=2, max_new_tokens=8, temperature=1.0, top_k=0,
        top_p=1.0, gather_weights=True, patches=16, micro_batch=4, updates_per_rollout=2,
        clip_epsilon=0.2, kl_coef=0.04, scale_by_std=True, learning_rate=1e-2, warmup_steps=0,
        weight_decay=0.0, clip_norm=1.0, length="keywords", reconstruction="bounded", center=True,
        distractors=2, image_tokens=6, seed=0, workers=0, checkpoint_every=2, log_every=1,
        input_shards=0, weights=dict(
            semantic=0.5, reconstruction=1.0, length=0.01, image_contrastive=0.5, format=0.2
        ),
    )  # fmt: skip
    return GRPOSettings(**(base | changes))


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
    GROUP, ITEMS = 8, 4

    def __init__(self, num_microbatches: int, learning_rate: float = 3e-2):
        model = tiny.model(3, vision=False)
        model = nnx.clone(model)
        lora.add(model, 4, alpha=8.0, rngs=nnx.Rngs(0))
        self.graphdef, self.params, self.frozen = nnx.split(model, nnx.LoRAParam, ...)
        self.batch = tiny.prompts([[5, 6], [8, 9, 10], [3], [4, 4]], images=False, length=4)
        settings = config(
            learning_rate=learning_rate, kl_coef=0.0, num_generations=self.GROUP,
            batch_size=self.ITEMS, micro_batch=self.GROUP * self.ITEMS // num_microbatches,
        )  # fmt: skip
        optimizer = grpo.make_optimizer(settings)
        self.state = TrainState.create(jax.tree.map(jnp.copy, self.params), optimizer)
        sampling = Sampling(self.GROUP, 6, (1,), 0, gather_weights=True)
        self.roll = make_rollout(self.graphdef, sampling, seed=0)
        self.update = grpo.make_update(self.graphdef, optimizer, settings)

    def rollout(self) -> tuple[Generation, jax.Array]:
        rows = np.arange(self.ITEMS)
        out = self.roll(self.state.params, self.frozen, self.batch, rows, self.state.step)
        return out, jnp.mean(out.tokens == self.TOKEN, axis=-1)

    def step(self) -> float:
        out, rewards = self.rollout()
        advantages = policy_loss.group_advantages(rewards, scale_by_std=True)
        scored = grpo.Scored(advantages, reference_logprobs=out.logprobs)
        self.state, self.metrics = self.update(self.state, self.frozen, self.batch, out, scored)
        return float(rewards.mean())


def test_a_rewarded_token_becomes_frequent():
    bandit = TokenBandit(num_microbatches=1)
    rewards = [bandit.step() for _ in range(25)]
    assert np.mean(rewards[:3]) < 0.15 < 0.6 < np.mean(rewards[-3:])


def test_micro_batches_give_the_same_update():
    whole, divided = TokenBandit(num_microbatches=1), TokenBandit(num_microbatches=2)
    assert whole.step() == divided.step()
    for name in ("loss", "gradient_norm", "logprob_gap"):
        np.testing.assert_allclose(whole.metrics[name], divided.metrics[name], rtol=1e-4, atol=1e-6)
    chex.assert_trees_all_close(whole.state.params, divided.state.params, atol=2e-4)


def traced_once(jit, names: set[str]):
    """`jit` that fails where a function of rl is traced twice; adds their names to `names`."""

    def checked(function, **options):
        if function.__module__.startswith("mmsrec_jax.rl"):
            names.add(function.__name__)
            function = chex.assert_max_traces(function, n=1)
        return jit(function, **options)

    return checked


@pytest.fixture(scope="module")
def unbroken(world, mesh, tmp_path_factory):
    tokenizer, source = world
    directory = tmp_path_factory.mktemp("unbroken")
    compiled, at_step = [], []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: compiled.append(event) if "backend_compile" in event else None
    )
    patch = pytest.MonkeyPatch()
    of_keywords = metrics.of_keywords

    def counting(summaries):
        at_step.append(len(compiled))
        return of_keywords(summaries)

    patch.setattr(metrics, "of_keywords", counting)
    names: set[str] = set()
    patch.setattr(jax, "jit", traced_once(jax.jit, names))
    model = grpo.train(
        config(), toy_model.make(tokenizer), tokenizer, source, directory=directory, mesh=mesh
    )
    patch.undo()
    assert names == {"roll", "score", "update"}
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return model, lines, at_step  # and no function of rl was traced twice


class Killed(BaseException):
    pass


def test_a_resumed_run_equals_an_unbroken_one(world, mesh, unbroken, tmp_path, monkeypatch):
    tokenizer, source = world
    rollouts, parse = itertools.count(1), grpo.parse

    def killed_in_the_third(*args):
        if next(rollouts) == 3:
            raise Killed
        return parse(*args)

    def go():
        model = toy_model.make(tokenizer)
        return grpo.train(config(), model, tokenizer, source, directory=tmp_path, mesh=mesh)

    monkeypatch.setattr(grpo, "parse", killed_in_the_third)
    with pytest.raises(Killed):
        go()
    resumed = adapters(go())
    assert next(rollouts) == 6  # three before it was killed, then the third and the fourth
    chex.assert_trees_all_equal(adapters(unbroken[0]), resumed)
    start = adapters(toy_model.make(tokenizer))
    assert all(np.any(now != before) for now, before in zip(resumed, start, strict=True))


def test_metrics_show_every_reward(unbroken):
    _, lines, _ = unbroken
    assert len(lines) == 4
    for name in (*config().weights, "total"):
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


class Vowels(Reward):
    """A new reward: this class, and one entry of REWARDS."""

    name, origin, default_weight, runs_model = "vowels", "ours", 1.0, True

    def prepare(self, items):
        return {"count": np.array([[vowels(s) for s in item.summaries] for item in items])}

    def score(self, context):
        shared = context.keyword_states[..., 0] + context.text_states[:, None, 0]
        return context.inputs.own["vowels"]["count"] + 0.0 * shared


def vowels(summary: Summary) -> float:
    return np.float32(sum(word.count(v) for word in summary.keywords for v in "aeiou"))


def test_a_new_reward_is_a_class_and_an_entry(world, mesh, tmp_path, monkeypatch):
    tokenizer, source = world
    parse, parsed, read = grpo.parse, [], []
    monkeypatch.setitem(rewards.REWARDS, "vowels", Vowels)
    monkeypatch.setattr(grpo, "parse", lambda *a: parsed.append(parse(*a)) or parsed[-1])
    mean_states = RewardContext._mean_states
    monkeypatch.setattr(RewardContext, "_mean_states", lambda *a: read.append(a) or mean_states(*a))
    changes = dict(steps=1, micro_batch=8, weights={"semantic": 0.5, "vowels": 0.25})
    model = toy_model.make(tokenizer)
    grpo.train(config(**changes), model, tokenizer, source, directory=tmp_path, mesh=mesh)
    line = json.loads((tmp_path / "metrics.jsonl").read_text())
    counts = np.array([[vowels(s) for s in group] for group in parsed[0]])
    assert np.ptp(counts) > 0
    assert line["reward/vowels"] == pytest.approx(counts.mean())
    assert line["reward_std/vowels"] == pytest.approx(counts.std(axis=1, ddof=1).mean())
    total = 0.5 * line["reward/semantic"] + 0.25 * counts.mean()
    assert line["reward/total"] == pytest.approx(total, abs=1e-5)
    assert {name for name in line if name.startswith("reward/")} == {
        "reward/semantic", "reward/vowels", "reward/total", "reward/groups_without_spread",
    }  # fmt: skip
    assert len(read) == 2  # of keywords and of texts, once for both rewards


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(micro_batch=3), r"config\.summarizer\.micro_batch=3 would split a group"),
        (dict(micro_batch=6), r"config\.summarizer\.micro_batch=6 does not divide"),
        (dict(distractors=4), r"config\.summarizer\.distractors=4"),
    ],
)
def test_sizes_that_cannot_work_are_refused(world, mesh, tmp_path, changes, message):
    tokenizer, source = world
    model = toy_model.make(tokenizer)
    with pytest.raises(UserError, match=message):
        grpo.train(config(**changes), model, tokenizer, source, directory=tmp_path, mesh=mesh)


@pytest.mark.parametrize(
    "field, value",
    [("num_generations", 1), ("updates_per_rollout", 0), ("length", "words"),
     ("reconstruction", "ppl")],
)  # fmt: skip
def test_a_value_that_makes_no_sense_is_refused_when_it_is_read(field, value):
    section = to_config(GRPOSettings())
    section[field] = value
    with pytest.raises(UserError, match=rf"config\.summarizer\.{field}={value!r}"):
        from_config(GRPOSettings, section, "config.summarizer")


def test_a_model_without_adapters_is_refused(world, mesh, tmp_path):
    tokenizer, source = world
    model = toy_model.make(tokenizer, rank=0)
    with pytest.raises(UserError, match=r"summarizer\.lora_rank: the model has no adapters"):
        grpo.train(config(), model, tokenizer, source, directory=tmp_path, mesh=mesh)
