"""Texts for every row of a source: greedy, complete, rewritten when their inputs change."""

import dataclasses
import itertools
import json
import os
import sys

import jax
import numpy as np
import pytest
import toy_items
import toy_model

from mmsrec_jax.data.records import Catalog
from mmsrec_jax.inference import sampler, texts
from mmsrec_jax.inference.text_store import SharedStores, TextStore, digest_of
from mmsrec_jax.inference.texts import Decoding, write_texts
from mmsrec_jax.inputs import example as examples
from mmsrec_jax.inputs.item_prompts import SummarySource
from mmsrec_jax.inputs.item_renderer import ItemRenderer
from mmsrec_jax.runtime import sharding
from mmsrec_jax.runtime.errors import UserError

DECODING = Decoding(batch_size=1, patches=16, max_new_tokens=5, gather_weights=True)


@pytest.fixture(scope="module")
def mesh():
    return sharding.make_mesh(devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return toy_items.make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def model(tokenizer):
    return toy_model.make(tokenizer)


@pytest.fixture
def calls(monkeypatch):
    """Every call of the model, one entry each."""
    made, generate = [], sampler.generate_compiled
    counted = lambda *inputs: made.append(1) or generate(*inputs)  # noqa: E731
    monkeypatch.setattr(sampler, "generate_compiled", counted)
    return made


def source_of(tokenizer, items) -> SummarySource:
    catalog = Catalog.from_items(items)
    return SummarySource(catalog, toy_items.prompt_config(tokenizer, text_tokens=12), length=48)


def generated(model, tokenizer, source, rows, mesh, **changes):
    decoding = dataclasses.replace(DECODING, **{"batch_size": 5, **changes})
    found = texts.generate(model, tokenizer, source, rows, decoding=decoding, mesh=mesh)
    return list(itertools.chain(*found))


def test_texts_are_greedy_and_complete(model, tokenizer, mesh):
    source = source_of(tokenizer, toy_items.items())
    found = generated(model, tokenizer, source, range(24), mesh)
    assert [row for row, _ in found] == list(range(24))  # 24 = 5 * 5 - 1: the last one is filler
    assert len({text for _, text in found}) > 3
    assert generated(model, tokenizer, source, [3, 20], mesh) == [found[3], found[20]]


def test_an_image_that_needs_more_room_names_the_field(model, tokenizer, mesh):
    source = source_of(tokenizer, toy_items.items(2))
    with pytest.raises(UserError, match=r"^config\.understanding\.patches: the example of row 0 n"):
        generated(model, tokenizer, source, [0], mesh, patches=1, section="config.understanding")


def test_a_sampled_text_does_not_depend_on_what_is_written_beside_it(model, tokenizer, mesh):
    source = source_of(tokenizer, toy_items.items(10))
    found = generated(model, tokenizer, source, range(10), mesh, temperature=1.0)
    assert generated(model, tokenizer, source, [2, 9], mesh, temperature=1.0) == [
        found[2], found[9]
    ]  # fmt: skip
    assert generated(model, tokenizer, source, range(10), mesh, temperature=1.0, seed=1) != found


def test_one_changed_input_of_ten_is_one_call_of_the_model(model, tokenizer, mesh, tmp_path, calls):
    def write(items):
        store = TextStore(tmp_path / "summaries.jsonl", key="item")
        source = source_of(tokenizer, items)
        return write_texts(
            store, source, range(10), lambda: model, tokenizer,
            name="test", decoding=DECODING, mesh=mesh,
        )  # fmt: skip

    items = toy_items.items(10)
    assert write(items) == len(calls) == 10
    before = (tmp_path / "summaries.jsonl").read_text().splitlines()
    assert [json.loads(line)["item"] for line in before] == list(range(10))

    calls.clear()
    assert write(items) == len(calls) == 0

    items[4] = dataclasses.replace(items[4], text={"title": "lamp for work"})
    assert write(items) == len(calls) == 1
    after = (tmp_path / "summaries.jsonl").read_text().splitlines()
    assert [i for i in range(10) if before[i] != after[i]] == [4]  # in its old place

    calls.clear()
    items[6] = dataclasses.replace(items[6], image=items[0].image)
    assert write(items) == len(calls) == 1  # pixels are inputs too


def test_a_given_digest_decides_and_the_model_is_made_only_when_needed(
    model, tokenizer, mesh, tmp_path
):
    versions = ["a", "a", "a"]

    def write(make_model):
        return write_texts(
            TextStore(tmp_path / "x.jsonl", key="item"),
            source_of(tokenizer, toy_items.items(3)), range(3), make_model, tokenizer,
            name="test", decoding=DECODING, mesh=mesh, digest=lambda row: versions[row],
            fields=lambda row, text: {"length": len(text)},
        )  # fmt: skip

    def unwanted():
        raise AssertionError("nothing is to be written")

    assert write(lambda: model) == 3
    assert write(unwanted) == 0
    versions[1] = "b"
    assert write(lambda: model) == 1
    rows = list(TextStore(tmp_path / "x.jsonl", key="item"))
    assert [row["inputs"] for row in rows] == ["a", "b", "a"]
    assert all(set(row) == {"item", "length", "inputs"} for row in rows)


class Windows:
    """Prompts of users' windows: its items, after the text of the window before it."""

    length, patch_width = 40, 0

    def __init__(self, items, histories, window, previous):
        self.renderer, self._histories, self._window = items, histories, window
        self._previous = previous

    def __len__(self):
        return len(self._histories)

    def example(self, row, draw):
        del draw
        chat, at = self.renderer.prompt_config.chat, 2 * self._window
        words = [toy_items.THINGS[i % 4] for i in self._histories[row][at : at + 2]]
        text = " ".join([*words, self._previous[row]])
        prompt = chat.encode(chat.head + chat.cut(text, 20)[0] + chat.middle)
        return examples.sequence(prompt, np.zeros(0, np.int32), index=row)


def test_a_chain_of_windows_is_rewritten_from_the_changed_one_on(model, tokenizer, mesh, tmp_path):
    config = dataclasses.replace(toy_items.prompt_config(tokenizer), processor=None)
    items = ItemRenderer(toy_items.catalog(), config)
    decoding = dataclasses.replace(DECODING, patches=0, batch_size=2)

    def write(histories):
        store = TextStore(tmp_path / "windows.jsonl", key=("user", "window"))
        written, previous = [], [""] * len(histories)
        for window in range(3):
            keys = [(f"u{u}", window) for u in range(len(histories))]
            source = Windows(items, histories, window, previous)
            count = write_texts(
                store, source, keys, lambda: model, tokenizer,
                name="windows", decoding=decoding, mesh=mesh,
            )  # fmt: skip
            written.append(count)
            previous = [store[key]["written"] for key in keys]
        return written, (tmp_path / "windows.jsonl").read_text()

    histories = [list(range(u, u + 6)) for u in range(4)]
    assert write(histories)[0] == [4, 4, 4]
    unchanged = write(histories)
    assert unchanged[0] == [0, 0, 0]
    histories[2][5] = 20  # of the last window
    written, text = write(histories)
    assert written == [0, 0, 1]
    lines, old = text.splitlines(), unchanged[1].splitlines()
    changed = [json.loads(a) for a, b in zip(lines, old, strict=True) if a != b]
    assert [(row["user"], row["window"]) for row in changed] == [("u2", 2)]


def test_a_store_drops_half_a_line_and_goes_on(tmp_path):
    path = tmp_path / "texts.jsonl"
    store = TextStore(path, key=("user", "window"))
    store.append(
        [(("a", 0), {"written": "x"}, "1"), (("a", np.int64(1)), {"written": "y\u2028"}, "2")]
    )
    whole = path.read_text()
    path.write_text(whole + '{"user": "b", "win')
    store = TextStore(path, key=("user", "window"))
    assert path.read_text() == whole and len(store) == 2
    assert ("a", 1) in store and ("b", 0) not in store
    assert store[("a", 1)] == {"user": "a", "window": 1, "written": "y\u2028", "inputs": "2"}
    keys = [("a", 0), ("a", 1), ("b", 0)]
    assert store.outdated(keys, lambda place: "1") == [1, 2]
    store.append([(("a", 0), {"written": "z"}, "3")])
    assert TextStore(path, key=("user", "window"))[("a", 0)]["written"] == "z"  # the later line
    store.compact()
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(row["user"], row["window"], row["written"]) for row in rows] == [
        ("a", 0, "z"), ("a", 1, "y\u2028")
    ]  # fmt: skip


def test_programs_write_a_file_in_turn_and_read_it_again_only_when_others_wrote(
    tmp_path, monkeypatch
):
    path, count = tmp_path / "asked" / "texts.jsonl", 25

    def write(name):
        stores = SharedStores(tmp_path / "asked")
        for number in range(count):
            with stores.turn():
                store = stores.open(path, ("name", "number"))
                done = store["sum", 0]["done"] + 1 if ("sum", 0) in store else 1
                store.append(
                    [((name, number), {"done": done}, "1"), (("sum", 0), {"done": done}, "1")]
                )
                store.compact()

    children = []
    for name in ("a", "b"):
        children.append(os.fork())
        if not children[-1]:
            try:
                write(name)
            finally:
                os._exit(int(sys.exception() is not None))
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
    whole = TextStore(path, ("name", "number"))
    assert len(whole) == 2 * count + 1 and whole["sum", 0]["done"] == 2 * count
    assert sorted(row["done"] for row in whole if row["name"] != "sum") == [
        *range(1, 2 * count + 1)
    ]

    reads, own = [], TextStore._read
    monkeypatch.setattr(TextStore, "_read", lambda store: (reads.append(store.path), own(store)))
    one, two = SharedStores(tmp_path / "asked"), SharedStores(tmp_path / "asked")
    for number in range(5):
        with one.turn():
            one.open(path, ("name", "number")).append([(("c", number), {}, "1")])
    assert len(reads) == 1
    with two.turn():
        two.open(path, ("name", "number")).append([(("c", 5), {}, "1")])
    with one.turn():
        assert ("c", 5) in one.open(path, ("name", "number"))
    with one.turn():
        assert len(one.open(path, ("name", "number"))) == 2 * count + 7
    assert len(reads) == 3


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda line: "nonsense", "line 2: no JSON"),
        (lambda line: "[1]", "line 2: no JSON object"),
        (lambda line: '{"x": 1}', "line 2: was changed"),
        (lambda line: line.replace("oak", "elm"), "line 2: was changed"),
        (lambda line: line.replace('"item": 1', '"item": -1'), "line 2: was changed"),
        (lambda line: line.replace('"written": "oak", ', ""), "line 2: was changed"),
    ],
)
def test_a_damaged_line_is_named(tmp_path, damage, message):
    path = tmp_path / "texts.jsonl"
    store = TextStore(path, key="item")
    store.append([(i, {"written": word}, "1") for i, word in enumerate(("fir", "oak"))])
    assert list(TextStore(path, key="item")) == list(store)
    first, second = path.read_text().splitlines()
    assert damage(second) != second
    path.write_text(f"{first}\n{damage(second)}\n")
    with pytest.raises(UserError, match=message):
        TextStore(path, key="item")


def test_digests_tell_apart_what_is_joined():
    assert digest_of("ab", "c") != digest_of("a", "bc")
    assert digest_of(b"1") != digest_of(1) != digest_of("1")
    assert digest_of({"a": 1, "b": None}) == digest_of({"b": None, "a": 1})
