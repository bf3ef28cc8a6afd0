"""Rewards of summaries against plain full forwards, one text at a time."""

from collections import Counter

import jax
import numpy as np
import pytest
import toy_items
import toy_model
from flax import nnx
from tiny_mllm import full_logprobs, prompt

from mmsrec_jax.inputs import pipeline
from mmsrec_jax.inputs.batch import Room, collate
from mmsrec_jax.inputs.item_prompts import SummarySource
from mmsrec_jax.models.batch import Batch
from mmsrec_jax.prompts import parse_summary, tasks
from mmsrec_jax.rl import reference
from mmsrec_jax.rl.reward_inputs import RewardInputs

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
    source = SummarySource(toy_items.catalog(), prompt_config, length=48, rows=INDEX)
    dataset = pipeline.batches(
        source, batch_size=4, length=48, patches=16, shuffle=False, repeat=False, pack=False
    )
    return source, next(iter(dataset)), toy_model.make(tokenizer, rank=2)


@pytest.fixture(scope="module")
def scored(world):
    source, batch, model = world
    reward_inputs = RewardInputs(source.renderer, word_tokens=12, image_tokens=9, prompt_length=48)
    texts = reward_inputs.arrays(INDEX, [[parse_summary(t) for t in row] for row in WRITTEN])
    graphdef, state = nnx.split(model)

    @jax.jit
    def run(state, batch, texts):
        return reference.scores(
            nnx.merge(graphdef, state), batch, texts, length="keywords",
            reconstruction="bounded", center=True, distractors=2, num_microbatches=2,
        )  # fmt: skip

    batch = batch.model_inputs()
    return jax.tree.map(np.asarray, run(state, batch, texts))


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


def test_information(world, scored):
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
                assert scored["information"][b, g] == -1
                continue
            u, v = words[b, g] - shift_w, texts[b] - shift_t
            expected = u @ v / np.sqrt((u @ u) * (v @ v))
            np.testing.assert_allclose(scored["information"][b, g], expected, atol=1e-3)


def test_image(world, scored):
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
                assert scored["image"][b, g] == 0
                continue
            own = values[0] - np.log(np.exp(values).sum())
            expected = np.clip(1 + own / np.log(len(values)), -1, 1)
            np.testing.assert_allclose(scored["image"][b, g], expected, atol=1e-3)


def test_length_and_form(scored):
    np.testing.assert_array_equal(scored["length"], [[-3, -3], [-3, -1], [-2, -2], [-2, 0]])
    third = 1 / 3  # of the three rules; the last item has no image and two rules
    np.testing.assert_allclose(scored["form"], [[1, 1], [1, third], [1, third], [1, 0]])


def test_everything_ignores_the_adapters(world, scored):
    """The reference is the model without adapters, whatever they have learned."""
    source, batch, model = world
    reward_inputs = RewardInputs(source.renderer, word_tokens=12, image_tokens=9, prompt_length=48)
    texts = reward_inputs.arrays(INDEX, [[parse_summary(t) for t in row] for row in WRITTEN])
    graphdef, adapters, rest = nnx.split(model, nnx.LoRAParam, ...)
    adapters = jax.tree.map(lambda x: x + 1.0, adapters)
    batch = batch.model_inputs()
    run = jax.jit(
        lambda a, r: reference.scores(
            nnx.merge(graphdef, a, r), batch, texts, length="keywords",
            reconstruction="perplexity", center=True, distractors=2, num_microbatches=1,
        )
    )  # fmt: skip
    moved = run(adapters, rest)
    for name in ("information", "image"):
        np.testing.assert_allclose(moved[name], scored[name], atol=1e-4)
    assert np.all(np.asarray(moved["reconstruction"]) < -1)
