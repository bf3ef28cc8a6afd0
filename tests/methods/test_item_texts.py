"""Item understanding in a run: what is written, resumed and checked, and at what cost."""

import dataclasses
import io
import json
from types import SimpleNamespace

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest
import toy_items
import toy_model
from PIL import Image

from mmsrec_jax.data import splits
from mmsrec_jax.data.records import Catalog, Dataset
from mmsrec_jax.inference import sampler
from mmsrec_jax.inference.settings import UnderstandingSettings
from mmsrec_jax.methods.item_texts import ItemTexts
from mmsrec_jax.methods.settings import Settings, UseSettings
from mmsrec_jax.runtime import sharding
from mmsrec_jax.runtime.errors import UserError
from mmsrec_jax.runtime.settings import from_config, to_config
from mmsrec_jax.runtime.workdir import run_steps

ITEMS, BATCH = 12, 4
PICTURED = [i for i in range(ITEMS) if i not in (toy_items.NO_IMAGE, toy_items.CORRUPT)]
C = UnderstandingSettings(
    questions=("colour", "thing"), batch_size=BATCH, prompt_length=40, patches=16,
    answer_tokens=4, summary_tokens=4, examples=6,
)  # fmt: skip
NUM_ANSWERS = len(C.questions) * len(PICTURED)


def toy_items_sound() -> list:
    items = toy_items.items(ITEMS)
    items[toy_items.CORRUPT] = dataclasses.replace(items[toy_items.CORRUPT], image=None)
    return items


@pytest.fixture(scope="module")
def model_and_tokenizer(tmp_path_factory):
    tokenizer = toy_items.make_tokenizer(tmp_path_factory.mktemp("tokenizer"))
    return toy_model.make(tokenizer), tokenizer


@pytest.fixture
def calls(monkeypatch):
    """Shapes of the tokens of every call of the model; a run stops where `limit` are made."""
    made = SimpleNamespace(shapes=[], limit=10**6)
    generate = sampler.generate_compiled

    def counted(graphdef, sampling, state, batch, *rest):
        if len(made.shapes) == made.limit:
            raise KeyboardInterrupt
        made.shapes.append((sampling, jax.tree.map(lambda x: x.shape, batch)))
        return generate(graphdef, sampling, state, batch, *rest)

    monkeypatch.setattr(sampler, "generate_compiled", counted)
    return made


@pytest.fixture
def make(model_and_tokenizer, tmp_path):
    model, tokenizer = model_and_tokenizer

    def make_one(name="run", items=None, use=UseSettings(), **changes) -> ItemTexts:  # noqa: B008
        settings = dataclasses.replace(C, **changes)
        catalog, histories = (
            Catalog.from_items(items or toy_items_sound()),
            toy_items.histories(count=ITEMS),
        )
        (tmp_path / name).mkdir(exist_ok=True)
        config = dataclasses.replace(Settings(), understanding=settings, use=use)
        prompt_config = toy_items.prompt_config(tokenizer, text_tokens=12)
        if not use.images:
            prompt_config = dataclasses.replace(prompt_config, processor=None)
        run = SimpleNamespace(
            config=config,
            workdir=tmp_path / name,
            mesh=sharding.make_mesh(devices=jax.devices()[:1]),
            tokenizer=tokenizer,
            prompt_config=prompt_config,
            dataset=Dataset(catalog, histories, splits.leave_one_out(histories)),
            base=SimpleNamespace(load=lambda name: model),
            prompt_record=lambda: {"images": use.images},
            world=lambda: None,
        )
        return ItemTexts(run)

    return make_one


def run(texts: ItemTexts):
    """Runs its steps and returns the folder."""
    folder = texts._run.workdir
    run_steps(folder, texts.steps([]))
    return folder


def files(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "step.json"
    }


def test_a_run_that_is_stopped_anywhere_ends_as_if_unbroken(make, calls):
    unbroken = files(run(make("unbroken")))
    expected = -(-NUM_ANSWERS // BATCH) + -(-ITEMS // BATCH)
    assert len(calls.shapes) == expected
    assert len({repr(shape) for shape in calls.shapes}) == 2  # one program for each pass
    calls.shapes.clear()
    for limit in (2, 3, expected - 1):
        calls.limit = limit
        with pytest.raises(KeyboardInterrupt):
            run(make("broken"))
    calls.limit = expected
    assert files(run(make("broken"))) == unbroken
    assert len(calls.shapes) == expected  # no batch was made twice
    run(make("broken"))
    assert len(calls.shapes) == expected


def test_a_changed_item_is_asked_and_summarized_again_and_no_other(make, calls):
    folder = run(make())
    before = {path: content.splitlines() for path, content in files(folder).items()}
    calls.shapes.clear()
    items = toy_items_sound()
    items[4] = dataclasses.replace(items[4], image=items[0].image)
    items[6] = dataclasses.replace(items[6], text={"title": "lamp for work"})
    texts = make(items=items)
    texts.write_answers(folder / "visual_answers")
    texts.write_summaries(folder / "item_texts")
    # Two questions about one image in one call; summaries of two items in another.
    assert len(calls.shapes) == 2
    for path, changed in (
        ("visual_answers/answers.jsonl", {4}),
        ("item_texts/summaries.jsonl", {4, 6}),
    ):
        after = files(folder)[path].splitlines()
        lines = [json.loads(a) for a, b in zip(after, before[path], strict=True) if a != b]
        assert {line["item"] for line in lines} <= changed
        hashes = [
            json.loads(a)["inputs"] != json.loads(b)["inputs"]
            for a, b in zip(after, before[path], strict=True)
        ]
        assert {json.loads(after[i])["item"] for i in np.flatnonzero(hashes)} == changed


def test_the_export_holds_answers_summaries_and_hashes(make):
    texts = make()
    folder = run(texts)
    rows = pq.read_table(folder / "item_texts" / "item_texts.parquet").to_pylist()
    assert [row["id"] for row in rows] == [f"i{i}" for i in range(ITEMS)]
    for item, row in enumerate(rows):
        stored = texts.summaries()[item]
        assert (row["summary"], row["inputs"]) == (stored["summary"], stored["inputs"])
        asked = [(pair["question"], pair["answer"]) for pair in row["answers"]]
        answers = texts.answers()
        assert asked == [
            (question, answers[item, question]["answer"])
            for question in (C.questions if item in PICTURED else ())
        ]
        assert "<|" not in row["summary"]
    words = texts.words()
    assert len(words) == ITEMS and len(set(words)) > 3
    assert all(not row["summary"] or word for row, word in zip(rows, words, strict=True))


def test_claims_and_examples_are_told(make):
    texts = make()
    folder = run(texts)
    parts = json.loads((folder / "claims" / "claims.json").read_text())
    assert list(sorted(parts)) == sorted(
        ["summaries", "with image", "without image", "answers"]
        + (["in training", "new"] if "new" in parts else [])
    )
    assert parts["summaries"]["texts"] == ITEMS and parts["answers"]["texts"] == len(PICTURED)
    assert parts["with image"]["texts"] == len(PICTURED)
    assert parts["summaries"]["claims"] == sum(
        parts[name]["claims"] for name in ("with image", "without image")
    )
    assert (folder / "claims" / "claims.txt").read_text().splitlines()[1].startswith("summaries")
    lines = (folder / "claims" / "examples.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert len(rows) == C.examples
    for row in rows:
        assert row["id"] == f"i{row['item']}" and {c["outcome"] for c in row["claims"]} <= {
            "supported", "unsupported", "contradicted"
        }  # fmt: skip
        assert (row["image"] is None) == (row["item"] not in PICTURED)
        if row["image"]:
            Image.open(io.BytesIO((folder / "claims" / row["image"]).read_bytes())).verify()


def test_other_images_are_asked_about(make):
    own, shuffled, blank = (make(images, images=images) for images in ("own", "shuffled", "blank"))
    stores = []
    for texts in (own, shuffled, blank):
        run(texts)
        stores.append(texts.answers())
    hashes = [{row["item"]: row["inputs"] for row in store} for store in stores]
    assert all(hashes[0][item] != hashes[1][item] != hashes[2][item] for item in PICTURED)
    # A shuffle asks about the same images: the same answers, at other items.
    answered = [sorted((row["question"], row["answer"]) for row in store) for store in stores]
    assert answered[0] == answered[1] != answered[2]


@pytest.mark.parametrize("mode", ["text", "image", "both"])
def test_other_modes_ask_nothing(make, calls, mode):
    texts = make(mode=mode)
    assert [step.name for step in texts.steps([])] == ["item_texts", "claims"]
    folder = run(texts)
    assert len(calls.shapes) == ITEMS // BATCH
    assert not (folder / "visual_answers").exists()
    assert "answers" not in json.loads((folder / "claims" / "claims.json").read_text())


def test_a_run_without_images_reads_texts(make):
    without = make("without", use=UseSettings(images=False))
    assert without.mode == "text" and "visual_answers" not in [s.name for s in without.steps([])]
    run(without)
    texts = make("texts", mode="text")
    run(texts)
    assert without.words() == texts.words()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"questions": ()}, "understanding.mode='both_vqa' asks config.understanding.questions"),
        ({"questions": ("a", "a")}, "'a' stands twice"),
        ({"mode": "pictures"}, "must be one of 'text', 'image', 'both', 'both_vqa'"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes, message):
    config = to_config(Settings())
    config.understanding.update(changes)
    with pytest.raises(UserError, match=message):
        from_config(Settings, config)


def test_images_alone_need_images():
    config = to_config(Settings())
    config.understanding.mode, config.use.images = "image", False
    with pytest.raises(UserError, match="set the mode to text"):
        from_config(Settings, config)
