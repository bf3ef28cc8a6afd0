"""Rewards of summaries against plain full forwards, one text at a time."""

from collections import Counter

import chex
import jax
import numpy as np
import pytest
import toy_items
import toy_model
from flax import nnx
from tiny_mllm import full_logprobs, prompt

from mmsrec_jax.inputs.batch import Room, collate
from mmsrec_jax.inputs.item_prompts import SummarySource
from mmsrec_jax.models.batch import Batch
from mmsrec_jax.prompts import parse_summary, tasks
from mmsrec_jax.rl import rewards
from mmsrec_jax.rl.rewards.semantic import Semantic
from mmsrec_jax.rl.settings import GRPOSettings
from mmsrec_jax.runtime.errors import UserError

WRITTEN = [
    ["image: red, mug\ntext: home", "image: mug\ntext: work, number"],
    ["image: blue\ntext: lamp, home", "nothing of that form"],
    ["image: green\ntext: bag", "image: green, green\ntext:"],
    ["image: clock\ntext: work", ""],
]
INDEX = np.array([0, 1, 2, toy_items.NO_IMAGE])


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    tokenizer = toy_items.make_tokenizer(tmp_path_factory.mktemp("tokenizer"))
    prompt_config = toy_items.prompt_config(tokenizer, text_tokens=12)
    source = SummarySource(toy_items.catalog(), prompt_config, length=48)
    room = Room(4, 48, targets=24, patches=16, patch_width=source.patch_width, packed=False)
    batch = collate([[source.example(int(item), 0)] for item in INDEX], room)
    return source, batch, toy_model.make(tokenizer, rank=2)


def make_rewards(settings: GRPOSettings, source: SummarySource):
    return rewards.make_rewards(settings.weights, settings, source)


def config(**changes) -> GRPOSettings:
    weights = dict.fromkeys(rewards.REWARDS, 1.0)
    base = dict(
        weights=weights, batch_size=4, max_new_tokens=12, image_tokens=9, distractors=2,
        length="keywords", reconstruction="bounded", center=True,
    )  # fmt: skip
    return GRPOSettings(**(base | changes))


def scores(world, config, *, num_microbatches=1, adapters=None) -> dict[str, np.ndarray]:
    """Of the summaries WRITTEN. adapters: what replaces those of the model."""
    source, batch, model = world
    weighted = make_rewards(config, source)
    inputs = weighted.prepare(INDEX, [[parse_summary(t) for t in row] for row in WRITTEN])
    graphdef, own, rest = nnx.split(model, nnx.LoRAParam, ...)

    @jax.jit
    def run(adapters, rest, batch, inputs):
        model = nnx.merge(graphdef, adapters, rest)
        return weighted.score(model, batch, inputs, num_microbatches=num_microbatches)

    return jax.device_get(run(adapters or own, rest, batch.model_inputs(), inputs))


@pytest.fixture(scope="module")
def scored(world):
    return scores(world, config(), num_microbatches=2)


def plain(piece, length: int | None = None) -> Batch:
    """One row of `length` tokens, by default unpadded."""
    n = len(piece.tokens)
    room = Room(1, length or n, 1, patches=16 if piece.images else 0, patch_width=48)
    return collate([[prompt(piece.tokens, piece.positions, piece.images)]], room).model_inputs()


def log_likelihood(model, piece, ids) -> float:
    """Of ids after the prompt, adapters off: the toy model's adapters have no effect yet."""
    full = full_logprobs(model, plain(piece), 0, ids[:-1], length=64)
    return float(full[np.arange(len(ids)), ids].sum())


def test_reconstruction(world, scored):
    source, _, model = world
    chat, templates = source.renderer.prompt_config.chat, source.renderer.prompt_config.templates
    expected = np.zeros((4, 2))
    for b, i in enumerate(INDEX):
        text = source.renderer.text(int(i), 12, Counter())
        ids = chat.ids(tasks.answer(templates, text))

        def nll(words, ids=ids):
            prompt = chat.encode(chat.head + tasks.align_words(templates, words) + chat.middle)
            return -log_likelihood(model, prompt, ids)

        for g, written in enumerate(WRITTEN[b]):
            words = templates.keyword_separator.join(parse_summary(written).keywords)
            expected[b, g] = 1 - nll(words) / nll("")
    assert np.abs(expected).max() > 0.02
    np.testing.assert_allclose(scored["reconstruction"], expected, atol=2e-4)
    assert scored["reconstruction"][3, 1] == pytest.approx(0, abs=1e-5)  # nothing was written


def test_semantic(world, scored):
    source, _, model = world
    chat, templates = source.renderer.prompt_config.chat, source.renderer.prompt_config.templates
    graphdef, state = nnx.split(model)
    forward = jax.jit(lambda s, b: nnx.merge(graphdef, s)(b, adapters=False))

    def phi(text):
        piece = chat.encode(tasks.answer(templates, text))
        n = len(piece.tokens)
        return np.asarray(forward(state, plain(piece, 16)))[0, :n].mean(0)

    texts = np.stack([phi(source.renderer.text(int(i), 12, Counter())) for i in INDEX])
    words = {
        (b, g): phi(templates.keyword_separator.join(parse_summary(t).keywords))
        for b, row in enumerate(WRITTEN)
        for g, t in enumerate(row)
        if t
    }
    shift_w, shift_t = np.mean(list(words.values()), axis=0), texts.mean(0)
    for b in range(4):
        for g in range(2):
            if (b, g) not in words:
                assert scored["semantic"][b, g] == -1
                continue
            u, v = words[b, g] - shift_w, texts[b] - shift_t
            expected = u @ v / np.sqrt((u @ u) * (v @ v))
            np.testing.assert_allclose(scored["semantic"][b, g], expected, atol=1e-3)


def test_image_contrastive(world, scored):
    """Distractors are the next two items of the batch, cyclically; one of the four has no image."""
    source, _, model = world
    chat, templates = source.renderer.prompt_config.chat, source.renderer.prompt_config.templates
    for b, i in enumerate(INDEX):
        for g, written in enumerate(WRITTEN[b]):
            line = "image: " + ", ".join(parse_summary(written).image)
            ids = chat.ids(line.rstrip())[:9]
            values = []
            for k in range(3):
                other = int(INDEX[(b + k) % 4])
                if other == toy_items.NO_IMAGE:
                    continue
                image = source.renderer.image(other, Counter())
                question = tasks.summarize(templates, "", True)
                prompt = chat.encode(chat.head + question + chat.middle, (image,))
                values.append(log_likelihood(model, prompt, ids))
            if i == toy_items.NO_IMAGE:
                assert scored["image_contrastive"][b, g] == 0
                continue
            own = values[0] - np.log(np.exp(values).sum())
            expected = np.clip(1 + own / np.log(len(values)), -1, 1)
            np.testing.assert_allclose(scored["image_contrastive"][b, g], expected, atol=1e-3)


def test_length_and_format(scored):
    np.testing.assert_array_equal(scored["length"], [[-3, -3], [-3, -1], [-2, -2], [-2, 0]])
    third = 1 / 3  # of the three rules; the last item has no image and two rules
    np.testing.assert_allclose(scored["format"], [[1, 1], [1, third], [1, third], [1, 0]])


def test_the_reference_is_the_model_without_adapters_whatever_they_have_learned(world, scored):
    learned = jax.tree.map(lambda x: x + 1.0, nnx.state(world[2], nnx.LoRAParam))
    chex.assert_trees_all_close(scores(world, config(), adapters=learned), scored, atol=1e-3)


def test_the_paper_s_options(world):
    """Minus the perplexity; a length in tokens of the keywords, cut to `max_new_tokens`."""
    source, _, _ = world
    chat, templates = source.renderer.prompt_config.chat, source.renderer.prompt_config.templates
    weights = {"length": 0.5, "reconstruction": 1.0}
    options = dict(reconstruction="perplexity", length="tokens", weights=weights, max_new_tokens=3)
    got = scores(world, config(**options))
    assert set(got) == {"length", "reconstruction", "total"}
    assert np.all(got["reconstruction"] < -1)
    for b, row in enumerate(WRITTEN):
        for g, written in enumerate(row):
            words = templates.keyword_separator.join(parse_summary(written).keywords)
            tokens = len(chat.ids(tasks.answer(templates, words))) if words else 0
            assert got["length"][b, g] == -min(tokens, 3)
    np.testing.assert_allclose(got["total"], 0.5 * got["length"] + got["reconstruction"], rtol=1e-6)


def test_weight_0_leaves_the_others_alone_and_runs_no_model(world, scored, monkeypatch):
    """What needs no forward pass is still scored, for its metrics."""
    monkeypatch.setattr(Semantic, "score", None)
    weights = {"semantic": 0, "length": 0, "reconstruction": 2.0, "image_contrastive": 1.0}
    got = scores(world, config(weights=weights), num_microbatches=2)
    assert set(got) == {"length", "reconstruction", "image_contrastive", "total"}
    for name in ("length", "reconstruction", "image_contrastive"):
        np.testing.assert_allclose(got[name], scored[name], atol=1e-6)
    total = 2.0 * scored["reconstruction"] + scored["image_contrastive"]
    np.testing.assert_allclose(got["total"], total, rtol=1e-6)


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(weights={"image": 1.0}), r"config\.summarizer\.weights\.image: no such reward"),
        (dict(weights={"semantic": 0.0}), r"config\.summarizer\.weights: at least one"),
    ],
)
def test_settings_that_cannot_work_are_refused(world, changes, message):
    with pytest.raises(UserError, match=message):
        make_rewards(config(**changes), world[0])


def test_the_image_reward_needs_images(tmp_path):
    tokenizer = toy_items.make_tokenizer(tmp_path)
    prompt_config = toy_items.prompt_config(tokenizer, processor=None)
    source = SummarySource(toy_items.catalog(), prompt_config, length=48)
    with pytest.raises(UserError, match=r"weights\.image_contrastive: .* set it to 0"):
        make_rewards(config(), source)
    weights = dict.fromkeys(rewards.REWARDS, 1.0) | {"image_contrastive": 0.0}
    make_rewards(config(weights=weights), source)
