"""The public face: its examples run, and it says what the parts beneath it say."""

import ast
import dataclasses
import doctest
import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import toy_items

import mmsrec_jax
from mmsrec_jax.api import _recommend
from mmsrec_jax.data.records import Catalog, Item
from mmsrec_jax.evaluation.comparison import compare
from mmsrec_jax.hf import tokenizer
from mmsrec_jax.inference import sampler
from mmsrec_jax.inference.embed import embed_items
from mmsrec_jax.inputs.item_prompts import ContentSource
from mmsrec_jax.inputs.item_renderer import PromptConfig
from mmsrec_jax.prompts import TEMPLATES, Chat
from mmsrec_jax.runtime import sharding
from mmsrec_jax.runtime.errors import UserError
from mmsrec_jax.sequential.recommender import SequentialRecommender

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def inside(shop_folder, monkeypatch):
    monkeypatch.chdir(shop_folder)


@pytest.fixture(scope="module")
def model(shop_folder):
    return mmsrec_jax.load(shop_folder / "models" / "tiny")


@pytest.fixture(scope="module")
def tokens(shop_folder):
    return tokenizer.load(shop_folder / "models" / "tiny")


def photo(height=56, width=56, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


# --- the face itself ------------------------------------------------------------------------------


def test_importing_the_package_imports_no_jax():
    code = "import mmsrec_jax, sys; assert 'jax' not in sys.modules; assert mmsrec_jax.load"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_every_name_is_importable_and_seen_by_editors():
    tree = ast.parse(Path(mmsrec_jax.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    stubs = {alias.name: node.module for node in block.body for alias in node.names}
    assert stubs == mmsrec_jax._WHERE
    assert sorted([*stubs, "UserError"]) == mmsrec_jax.__all__
    assert set(mmsrec_jax.__all__) <= set(dir(mmsrec_jax))
    for name, module in stubs.items():
        assert getattr(mmsrec_jax, name) is getattr(sys.modules[module], name)
    with pytest.raises(AttributeError, match="no attribute 'recomend'"):
        mmsrec_jax.recomend  # noqa: B018


@pytest.mark.parametrize("name", sorted(mmsrec_jax._WHERE))
def test_examples_of_docstrings_run(name):
    found = getattr(mmsrec_jax, name)
    namespace = {"mmsrec_jax": mmsrec_jax, "np": np}
    (test,) = doctest.DocTestFinder(recurse=False).find(found, name, globs=namespace)
    assert test.examples or isinstance(found, type)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    assert runner.run(test).failed == 0


# --- text and vectors -----------------------------------------------------------------------------


def greedy(model, tokens, text, images, steps):
    """One token at a time by whole forward passes, without a cache."""
    end = tokens.convert_tokens_to_ids("<|im_end|>")
    marks = "".join(f"<|vision_start|>{'<|image_pad|>' * n}<|vision_end|>" for n in images[1])
    ids = tokens.encode(f"<|im_start|>{marks}{text}<|im_end|>", add_special_tokens=False)
    written = []
    for _ in range(steps):
        row, length = [*ids, *written], len(ids) + len(written)
        padded = np.array([row + [0] * (64 - length)])
        known = (np.arange(64) < length).astype(int)[None]
        scores = mmsrec_jax.logits(model, padded, known, [images[0]])[0, length - 1].copy()
        scores[[5, 3, 4]] = -np.inf  # an image slot and the marks around it
        scores[len(tokens) :] = -np.inf
        written.append(int(np.argmax(scores)))
        if written[-1] == end:
            break
    return tokens.decode(written, skip_special_tokens=True)


def test_greedy_text_is_that_of_whole_forward_passes(model, tokens):
    images = [[photo(56, 28, 1), photo(28, 28, 2)], [], [photo(28, 28, 3)]]
    slots = [
        [model.processor.num_slots(model.processor.grid(*image.shape[:2])) for image in row]
        for row in images
    ]
    texts = ["Which of them?", "linen bag for the garden", "What is this?"]
    found = mmsrec_jax.generate(model, tokens, texts, images, max_new_tokens=4)
    for row, text in enumerate(texts):
        assert found[row] == greedy(model, tokens, text, (images[row], slots[row]), 4)


def test_calls_of_other_lengths_share_a_program(model, tokens):
    def generate(count, words):
        texts = [" ".join(["bag"] * (words + row)) for row in range(count)]
        return mmsrec_jax.generate(model, tokens, texts, max_new_tokens=3)

    generate(4, 3)
    compiled = sampler.generate_compiled._cache_size()
    for count, words in ((3, 1), (4, 6), (3, 9)):
        assert len(generate(count, words)) == count
    assert sampler.generate_compiled._cache_size() == compiled


def test_drawn_text_depends_on_the_seed_and_a_prompts_place_alone(model, tokens):
    def draw(texts, **options):
        defaults = dict(max_new_tokens=6, temperature=1.0, seed=1)
        return mmsrec_jax.generate(model, tokens, texts, **defaults | options)

    three = draw(["oak lamp", "bag", "bag"])
    assert draw(["vase", "bag", "bag"])[1:] == three[1:]
    assert three[1] != three[2]
    assert draw(["oak lamp", "bag", "bag"], seed=2) != three
    assert draw(["oak lamp"] * 4 + ["bag"] * 3, batch_size=4)[1] != three[0]


def test_sharded_over_devices_the_text_is_the_same(shop_folder, model, tokens):
    mesh = sharding.make_mesh(fsdp=2, devices=jax.devices()[:2])
    sharded = mmsrec_jax.load(shop_folder / "models" / "tiny", mesh=mesh)
    arguments = (tokens, ["oak lamp", "linen bag", "bag"], [[photo()], [], []])
    expected = mmsrec_jax.generate(model, *arguments, max_new_tokens=4)
    assert mmsrec_jax.generate(sharded, *arguments, max_new_tokens=4) == expected


def test_vectors_are_the_features_of_a_run(model, tokens):
    items = toy_items.items(12)
    catalog = Catalog.from_items(
        [Item(item.id, {"title": item.text["description"]}, item.image) for item in items]
    )
    config = PromptConfig(
        Chat.of(model, tokens), TEMPLATES["full"], model.processor, fields=("title",)
    )
    source = ContentSource(catalog, config, length=64, content="item")
    expected = embed_items(
        model, source, name="items", batch_size=8, patches=16, workers=0,
        mesh=sharding.make_mesh(fsdp=1, devices=jax.devices()[:1]),
    )  # fmt: skip
    readable = [i for i in range(12) if i != toy_items.CORRUPT]
    images = [catalog.image(i) for i in readable]
    texts = [catalog[i].text["title"] for i in readable]
    found = mmsrec_jax.embed(model, tokens, texts, images, batch_size=4)
    np.testing.assert_allclose(found, expected[readable], atol=1e-5)


def test_a_row_without_text_and_image_is_zero(model, tokens):
    found = mmsrec_jax.embed(model, tokens, ["bag", " "])
    assert found[0].any() and not found[1].any()


TEXT, SIZE = ["bag"], (56, 56, 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, t: mmsrec_jax.generate(m, t, "bag"), "prompts is one text"),
        (lambda m, t: mmsrec_jax.generate(m, t, TEXT, []), "0 lists of images for 1 prompts"),
        (lambda m, t: mmsrec_jax.generate(m, t, TEXT, max_new_tokens=0), "max_new_tokens=0"),
        (lambda m, t: mmsrec_jax.generate(m, t, TEXT, temperature=-1), "temperature=-1"),
        (
            lambda m, t: mmsrec_jax.generate(m, t, TEXT, [[photo() / 255]]),
            r"row 0: an image must be uint8 \[height, width, 3\], got float64 \[56, 56, 3\]",
        ),
        (
            lambda m, t: mmsrec_jax.generate(m, t, TEXT, [["bag.jpg"]]),
            "row 0: an image must be uint8",
        ),
        (
            lambda m, t: mmsrec_jax.generate(
                m, t, [[{"role": "user", "content": "bag"}]], [[photo()]]
            ),
            "row 0: 1 images for 0 image parts",
        ),
        (
            lambda m, t: mmsrec_jax.generate(
                m, t, [[{"role": "user", "content": [{"type": "video"}]}]]
            ),
            "of type 'video'",
        ),
        (lambda m, t: mmsrec_jax.generate(m, "shop", TEXT), "shop: no tokenizer.json"),
        (lambda m, t: mmsrec_jax.embed(m, t), "give texts, images"),
        (lambda m, t: mmsrec_jax.embed(m, t, TEXT, []), "1 texts and 0 images"),
        (lambda m, t: mmsrec_jax.embed(m, t, TEXT, batch_size=0), "batch_size=0"),
        (
            lambda m, t: mmsrec_jax.embed(m, t, images=[None, np.zeros((56, 56), np.uint8)]),
            r"row 1: an image must be uint8 .* got uint8 \[56, 56\]",
        ),
    ],
)
def test_mistakes_with_text_and_images_get_one_line(model, tokens, call, message):
    with pytest.raises(UserError, match=message) as error:
        call(model, tokens)
    assert "\n" not in str(error.value)


# --- runs and data --------------------------------------------------------------------------------


def test_the_catalog_is_ranked_as_the_runs_model_scores_it():
    catalog, histories, split = mmsrec_jax.open_dataset("runs/shop")
    recommender = SequentialRecommender.load("runs/shop/sasrec/model")
    past = histories.of(3)
    scores = np.asarray(recommender.scores(past[None]))[0]
    expected = [item for item in np.argsort(-scores) if item not in past][:7]
    found = mmsrec_jax.recommend("runs/shop", catalog.ids[past].tolist(), top=7)
    assert [row.item_id for row in found] == [str(catalog.ids[item]) for item in expected]
    assert [row.title for row in found] == [catalog[int(i)].text["title"] for i in expected]
    np.testing.assert_allclose([row.score for row in found], scores[expected], rtol=1e-5)
    everything = mmsrec_jax.recommend("runs/shop", catalog.ids[past].tolist(), top=1000)
    assert len(everything) == len(catalog) - len(set(past.tolist()))


def test_a_model_that_reads_the_clock_asks_for_times(monkeypatch):
    run = _recommend._open(Path("runs/shop"), "fingerprint")
    monkeypatch.setattr(run.recommender, "uses_times", True)
    with pytest.raises(UserError, match="sasrec reads the clock: give times"):
        _recommend._scores(run, np.array([1, 2]), None)
    with pytest.raises(UserError, match="times: 1 for 2 items"):
        _recommend._scores(run, np.array([1, 2]), [1.6e9])
    _recommend._open.cache_clear()


def test_the_comparison_is_the_one_that_is_written_to_disk(tmp_path):
    options = dict(baseline="random", resamples=50, seed=3)
    compare.run([Path("runs/shop")], cutoffs=[1, 5], out=tmp_path, **options)
    written = json.loads((tmp_path / "comparison.json").read_text())["rows"]
    assert mmsrec_jax.evaluate(["runs/shop"], k=(1, 5), **options) == written


def test_a_folder_of_atomic_files_is_read_as_a_run_reads_it():
    read = mmsrec_jax.open_dataset("shop", user_core=3, item_core=1)
    stored = mmsrec_jax.open_dataset("runs/shop")
    for field in dataclasses.fields(stored.histories):
        mine, its = (getattr(data.histories, field.name) for data in (read, stored))
        np.testing.assert_array_equal(mine, its, err_msg=field.name)
    for part in ("train", "validation", "test", "train_end"):
        mine, its = (getattr(data.split, part) for data in (read, stored))
        np.testing.assert_array_equal(mine, its, err_msg=part)
    assert [read.catalog[i] for i in range(60)] == [stored.catalog[i] for i in range(60)]
    assert read.catalog.has_image.all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mmsrec_jax.recommend("runs/none", ["i0001"]), "runs/none: no such workdir"),
        (lambda: mmsrec_jax.recommend("shop", ["i0001"]), "step evaluation has not finished"),
        (lambda: mmsrec_jax.recommend("runs/shop", "i0001"), "not one text"),
        (lambda: mmsrec_jax.recommend("runs/shop", []), "history is empty"),
        (lambda: mmsrec_jax.recommend("runs/shop", ["i0001"], top=0), "top=0"),
        (lambda: mmsrec_jax.recommend("runs/shop", ["i1", "i2"]), "no item 'i1' and 1 more; ids"),
        (lambda: mmsrec_jax.recommend("runs/shop", ["i0001"], ["i0002"]), "recommender alone"),
        (lambda: mmsrec_jax.evaluate("runs/shop"), "workdirs is one path"),
        (
            lambda: mmsrec_jax.evaluate(["runs/shop"], baseline="bert", k=5),
            "baseline=bert is none of",
        ),
        (lambda: mmsrec_jax.evaluate(["runs/shop"], ties="optimistic"), "ties='optimistic'"),
        (lambda: mmsrec_jax.evaluate(["shop"]), "shop: step evaluation has not finished"),
        (lambda: mmsrec_jax.open_dataset("nowhere"), "nowhere: no such folder"),
        (lambda: mmsrec_jax.open_dataset("models"), "neither models.inter nor models.inter.gz"),
        (lambda: mmsrec_jax.open_dataset("shop", usercore=3), "did you mean 'user_core'"),
        (lambda: mmsrec_jax.open_dataset("runs/shop", user_core=3), "a run has its own settings"),
    ],
)
def test_mistakes_with_runs_and_data_get_one_line(call, message):
    with pytest.raises(UserError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
