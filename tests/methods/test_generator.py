"""Ranks by generated keywords against the log-probability of every item's keywords."""

import dataclasses
import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import toy_items
import toy_model
from toy_examples import HISTORIES, KEYWORDS, NEIGHBORS, ROWS, context

from configs import base
from mmsrec_jax.data.records import Split
from mmsrec_jax.evaluation import ranking
from mmsrec_jax.evaluation.leaderboard import Leaderboard
from mmsrec_jax.evaluation.settings import EvaluationSettings
from mmsrec_jax.inputs import pipeline
from mmsrec_jax.inputs.recommend import RecommendSource
from mmsrec_jax.methods import generator
from mmsrec_jax.methods.generator import Generator
from mmsrec_jax.methods.settings import Settings
from mmsrec_jax.runtime import sharding
from mmsrec_jax.runtime.errors import UserError
from mmsrec_jax.runtime.settings import from_config

ITEMS = 24
# Items 0 to 2 share their keywords, and so do the last two.
WORDS = [KEYWORDS[0]] * 3 + KEYWORDS[3:-1] + [KEYWORDS[-2]]
TARGETS = ROWS[np.array([1, 3, 8, 12, 19, 26])]  # one of each user


def known(rows):
    at = [int(np.flatnonzero((ROWS == row).all(1))[0]) for row in rows]
    return context(keywords=WORDS, neighbors=NEIGHBORS[at])


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return toy_items.make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def make_run(tokenizer, width):
    evaluation = EvaluationSettings(generate=width, batch_size=4, workers=0, k=(1, 5))
    return SimpleNamespace(
        config=dataclasses.replace(Settings(), evaluation=evaluation),
        prompt_config=toy_items.prompt_config(tokenizer),
        base=SimpleNamespace(trained=lambda name, step: toy_model.make(tokenizer)),
        mesh=sharding.make_mesh(devices=jax.devices()[:1]),
        dataset=SimpleNamespace(histories=HISTORIES),
        test_targets=lambda: TARGETS,
    )


@pytest.fixture(scope="module")
def exact(tokenizer):
    """float64[targets, items]: a training example of every item as the target, by one forward."""
    model, found = toy_model.make(tokenizer), np.zeros((len(TARGETS), ITEMS))
    for item in range(ITEMS):
        items = HISTORIES.items.copy()
        items[HISTORIES.offsets[TARGETS[:, 0]] + TARGETS[:, 1]] = item
        changed = dataclasses.replace(
            known(TARGETS), histories=dataclasses.replace(HISTORIES, items=items)
        )
        source = RecommendSource(
            changed, dataclasses.replace(toy_items.prompt_config(tokenizer), processor=None),
            TARGETS, length=96, seed=0, tasks={"next_keywords": 1}, negatives=1,
        )  # fmt: skip
        batches = pipeline.batches(
            source, batch_size=len(TARGETS), length=96, pack=False, shuffle=False, repeat=False
        )
        (batch,) = list(batches)
        logits = np.asarray(model.unembed(model(batch.model_inputs())), np.float64)
        logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
        weighted = batch.loss_weights[:, 1:] > 0
        own = np.take_along_axis(logits[:, :-1], batch.tokens[:, 1:, None], 2)[..., 0]
        found[:, item] = (own * weighted).sum(1)
    return found


def test_as_wide_as_the_catalog_ranks_are_those_of_all_keywords(tokenizer, exact):
    system = Generator(make_run(tokenizer, ITEMS), "sft", known, TARGETS)
    assert isinstance(system, ranking.RowSystem)
    found = system.row_scores(np.arange(len(TARGETS)))
    seen = np.isneginf(found)
    np.testing.assert_allclose(found[~seen], exact[~seen], atol=1e-4)
    for row, (user, position) in enumerate(TARGETS):
        past, target = np.split(HISTORIES.of(user)[: position + 1], [position])
        shown = {WORDS[i] for i in range(ITEMS) if i not in past or i == target}
        assert np.flatnonzero(seen[row]).tolist() == [
            i for i in range(ITEMS) if WORDS[i] not in shown
        ]
    got = ranking.full(system, HISTORIES, TARGETS, top=5)
    tied = [WORDS.index(words) for words in WORDS]  # equal keywords tie to the last bit
    wanted = ranking.full_from_scores("x", exact[:, tied], HISTORIES, TARGETS, top=5)
    for name in ("ranks", "candidates", "ties", "top"):
        np.testing.assert_array_equal(getattr(got, name), getattr(wanted, name))
    assert got.ties.max() > 0


def test_a_target_that_is_not_found_ranks_behind_all(tokenizer, exact):
    system = Generator(make_run(tokenizer, 3), "sft", known, TARGETS)
    ranks = ranking.full(system, HISTORIES, TARGETS, top=5)
    found = np.isfinite(system.row_scores(np.arange(len(TARGETS))))
    inside = found[np.arange(len(TARGETS)), ranks.targets]
    assert inside.any() and not inside.all()
    np.testing.assert_array_equal(ranks.ranks[~inside], ranks.candidates[~inside])
    assert (ranks.ranks[inside] <= 5).all()  # three texts, of five items at most
    for row, (user, position) in enumerate(TARGETS):
        shown = ranks.top[row][ranks.top[row] >= 0]
        assert found[row, shown].all()
        assert not set(shown) & set(HISTORIES.of(user)[:position])


def test_the_row_of_the_table_and_what_it_cost(tokenizer, tmp_path):
    def board(directory):
        return Leaderboard(
            directory, catalog=toy_items.catalog(), histories=HISTORIES,
            split=Split(ROWS, TARGETS, TARGETS, "leave_one_out", HISTORIES.lengths - 2),
            targets=TARGETS, negatives=(5,), cutoffs=(1, 5), seed=0, run_seed=0, run_settings={},
            data="toy",
        )  # fmt: skip

    run = make_run(tokenizer, 4)
    made = board(tmp_path)
    generator.add(made, run, known, tmp_path)
    made.finish()
    (row,) = json.loads((tmp_path / "table.json").read_text())
    assert (row["system"], row["protocol"], row["users"]) == ("mmsrarec/generate", "full", 6)
    cost = json.loads((tmp_path / "generate.json").read_text())
    assert (cost["users"], cost["width"]) == (6, 4)
    assert cost["users_per_second"] == pytest.approx(6 / cost["seconds"])
    run.base = None  # what lies on disk is not made again
    generator.add(board(tmp_path), run, known, tmp_path)


def test_a_task_that_is_not_trained_generates_nothing():
    for changes in ({"use.multitask": False}, {"sft.tasks.next_keywords": 0.0}):
        config = base.get_config()
        config.evaluation.generate = 5
        assert from_config(Settings, config).evaluation.generate == 5
        config.update_from_flattened_dict(changes)
        with pytest.raises(UserError, match="the task next_keywords is not trained"):
            from_config(Settings, config)
