"""The loss of the cached form by hand, and its updates on one and on eight devices."""

import dataclasses
from collections import Counter

import jax
import numpy as np
import pytest
import toy_items
import toy_model
from flax import nnx
from toy_examples import ROWS, context

from mmsrec_jax.inference.yes_no import margins_after
from mmsrec_jax.inputs.pairs import PairBatches, PairPrompts, PairRoom, dataset
from mmsrec_jax.models.late_interaction import Tail, encode, read_pairs
from mmsrec_jax.runtime.arrays import to_devices
from mmsrec_jax.runtime.errors import UserError
from mmsrec_jax.runtime.sharding import make_mesh
from mmsrec_jax.training import pairs, sft
from mmsrec_jax.training.sft import make_optimizer
from mmsrec_jax.training.state import place

ROOM = PairRoom(prompt=60, item=24, patches=16, tail=1, words=24)
SIZES = {"history": 5, "similar": 3, "history_end": True}
SETTINGS = pairs.CachedSettings(
    steps=4, evaluate_every=1, checkpoint_every=2, log_every=1, warmup_steps=0, learning_rate=1e-2,
    trainable="lora", prompt_length=ROOM.prompt, closeness=3.0, next_keywords=0.4,
    next_in_history=0.3, close_in_history=0.7,
)  # fmt: skip
WEIGHTS = SETTINGS.task_weights


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    tokenizer = toy_items.make_tokenizer(tmp_path_factory.mktemp("tokenizer"))
    config = toy_items.prompt_config(tokenizer)
    prompts = PairPrompts(context(), config, ROWS, room=ROOM, **SIZES)
    return tokenizer, prompts


def batches(prompts, steps=6):
    return PairBatches(prompts, steps=steps, users=8, items=16, align=0.25, seed=1)


def ids(prompts):
    return prompts.renderer.prompt_config.chat.yes_no_ids


def compiled(model, function):
    """`function(model, batch)` as one program of the batch: run bare it is hundreds of them."""
    graphdef, state = nnx.split(model)
    run = jax.jit(lambda state, batch: function(nnx.merge(graphdef, state), batch))
    return lambda batch: run(state, batch)


def read_states(model, rows):
    """Unit vectors of the last hidden states, of users on average with where the history ends, by a
    plain forward: float64[rows, hidden]."""
    last = np.asarray(rows.segment_ids).sum(1) - 1
    hidden = compiled(model, lambda model, rows: model(rows))(rows)
    read = rows.ends if rows.ends is not None else last[:, None]
    hidden = sum(np.asarray(hidden, np.float64)[np.arange(len(last)), at] for at in read.T)
    return hidden / np.linalg.norm(hidden, axis=1, keepdims=True)


def cosines(model, users, items):
    return read_states(model, users) @ read_states(model, items).T


def metrics_of(model, batch, prompts):
    """What the loss says of a batch."""
    return compiled(
        model,
        lambda model, batch: pairs.loss(
            model, batch, prompts.tail,
            start=ROOM.prompt, yes_no_ids=ids(prompts), closeness=3.0, weights=WEIGHTS,
        ),
    )(batch)[1]  # fmt: skip


@pytest.fixture(scope="module")
def measured(made):
    """(model, batch, what the loss says of it)."""
    tokenizer, prompts = made
    model = toy_model.make(tokenizer, rank=0)
    batch, _ = batches(prompts)[5]
    return model, batch, metrics_of(model, batch, prompts)


def test_the_loss_by_hand(made, measured):
    _, prompts = made
    model, batch, metrics = measured

    def margins_of_pairs(model, batch):
        users, items = encode(model, batch.users), encode(model, batch.items)
        hidden = read_pairs(model, users, items, Tail(prompts.tail, batch.tails))
        return margins_after(model, hidden, ids(prompts))

    margins = np.asarray(compiled(model, margins_of_pairs)(batch), np.float64)
    margins += 3.0 * cosines(model, batch.users, batch.items)
    listwise = first = 0.0
    for at, target in enumerate(batch.targets):
        among = np.flatnonzero(batch.competes[at])
        logits = margins[at] - batch.log_frequency
        listwise += np.log(np.exp(logits[among]).sum()) - logits[target]
        first += among[np.argmax(logits[among])] == target
    assert float(metrics["first_of_batch"]) == first / 8 > 0
    assert float(metrics["loss/listwise"]) == pytest.approx(listwise / 8, rel=1e-4)
    plain_logits = compiled(model, lambda model, rows: model.unembed(model(rows)))
    told, count = 0.0, 0
    for at in range(8):  # the answers, by a plain forward of prompt and answer
        n = int(batch.users.segment_ids[at].sum())
        tokens, there = (np.zeros((1, ROOM.prompt + ROOM.words), np.int32) for _ in range(2))
        tokens[0, : n + ROOM.words] = [*batch.users.tokens[at, :n], *batch.words[at]]
        there[0, : n + ROOM.words] = 1
        weights = np.concatenate([np.zeros(n), batch.word_weights[at]])
        positions = np.arange(tokens.size, dtype=np.int32) + ROOM.prompt - n
        plain = type(batch.users)(tokens, np.broadcast_to(positions, (1, 3, tokens.size)), there)
        logprobs = np.asarray(jax.nn.log_softmax(plain_logits(plain), axis=-1))[0]
        for place_ in np.flatnonzero(weights):
            told -= logprobs[place_ - 1, tokens[0, place_]]
            count += 1
    assert float(metrics["loss/next_keywords"]) == pytest.approx(told / count, rel=1e-4)
    assert float(metrics["loss"]) == pytest.approx(
        float(metrics["loss/listwise"])
        + 0.4 * float(metrics["loss/next_keywords"])
        + 0.3 * float(metrics["loss/next_in_history"])
        + 0.7 * float(metrics["loss/close_in_history"]),
        rel=1e-5,
    )


def test_the_loss_of_finding_later_items_of_a_history_by_hand(measured):
    """By a plain forward of the prompts, read where an item ends."""
    model, batch, metrics = measured
    hidden = np.asarray(compiled(model, lambda model, rows: model(rows))(batch.users), np.float64)
    items = read_states(model, batch.items)
    total, count = 0.0, 0
    for at, places in enumerate(batch.history_nexts):
        for end, place_ in zip(batch.history_ends[at], places, strict=True):
            if place_ < 0:
                continue
            state = hidden[at, end] / np.linalg.norm(hidden[at, end])
            logits = 3.0 * items @ state - batch.log_frequency
            among = batch.competes[at] | (np.arange(len(logits)) == place_)
            total += np.log(np.exp(logits[among]).sum()) - logits[place_]
            count += 1
    assert count > 8
    assert float(metrics["loss/close_in_history"]) == pytest.approx(total / count, rel=1e-4)


def updates(made, devices, **mesh):
    """Losses of some updates and the weights after them."""
    tokenizer, prompts = made
    optimizer = make_optimizer(SETTINGS)
    mesh = make_mesh(devices=jax.devices()[:devices], **mesh)
    model = toy_model.make(tokenizer)
    with jax.set_mesh(mesh):
        graphdef, state, frozen, shardings = place(model, "lora", optimizer, mesh)
        step = pairs.make_step(
            graphdef, optimizer, prompts.tail, start=ROOM.prompt, yes_no_ids=ids(prompts),
            closeness=3.0, weights=WEIGHTS, shardings=shardings,
        )  # fmt: skip
        losses = []
        for batch in 2 * list(dataset(batches(prompts, 2), 0, Counter())):
            state, metrics = step(state, frozen, to_devices(batch, mesh))
            losses.append(float(metrics["loss"]))
        assert step._cache_size() == 1
    return losses, [np.asarray(x) for x in jax.tree.leaves(state.params)]


def test_without_a_tail_the_loss_is_of_the_cosines(made):
    tokenizer, with_tail = made
    room = dataclasses.replace(ROOM, tail=0)
    prompts = PairPrompts(context(), with_tail.renderer.prompt_config, ROWS, room=room, **SIZES)
    model = toy_model.make(tokenizer, rank=0)
    batch, _ = batches(prompts)[5]
    logits = 3.0 * cosines(model, batch.users, batch.items) - batch.log_frequency
    expected = np.mean(
        [
            np.log(np.exp(logits[at][batch.competes[at]]).sum()) - logits[at, target]
            for at, target in enumerate(batch.targets)
        ]
    )
    metrics = metrics_of(model, batch, prompts)
    assert float(metrics["loss/listwise"]) == pytest.approx(expected, rel=1e-4)


def test_eight_devices_make_the_same_updates(made):
    losses, weights = updates(made, 1)
    spread, others = updates(made, 8, data=2, fsdp=2, tensor=2)
    np.testing.assert_allclose(spread, losses, rtol=1e-4)
    for a, b in zip(weights, others, strict=True):
        np.testing.assert_allclose(a, b, atol=3e-3)
    assert losses[2] < losses[0] and losses[3] < losses[1]


def test_settings_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match="num_items=8"):
        pairs.CachedSettings(num_users=16, num_items=8).check("config.cached")
    with pytest.raises(UserError, match="tail=0 and config.cached.closeness=0"):
        pairs.CachedSettings(tail=0, closeness=0.0).check("config.cached")


def adapters(model):
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(nnx.state(model, nnx.LoRAParam))])


def test_weights_of_the_best_validation_are_returned(made, tmp_path):
    """By the program that made the updates on one device."""
    tokenizer, prompts = made
    seen = []

    def validate(model):
        seen.append(adapters(model))
        return {sft.SELECTED_BY: [0.1, 0.4, 0.3, 0.2][len(seen) - 1]}

    trained = pairs.train(
        SETTINGS, toy_model.make(tokenizer),
        dataset(batches(prompts, 4), 0, Counter()), prompts.tail,
        name="toy", directory=tmp_path, mesh=make_mesh(devices=jax.devices()[:1]),
        yes_no_ids=ids(prompts), validate=validate,
    )  # fmt: skip
    np.testing.assert_array_equal(adapters(trained), seen[1])
    assert np.abs(seen[1] - seen[3]).max() > 0
