"""What the sides of the comparison with transformers share: inputs, and what counts as a result."""

import dataclasses
import time
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks.accelerator.parts import ranking, rollouts, sft
from benchmarks.accelerator.peers import pieces, prompts, sft_work, side, users, weights
from benchmarks.accelerator.record import Ask
from mmsrec_jax.hf.processor import ImageProcessor


@pytest.fixture
def ask(tmp_path, monkeypatch):
    """An Ask of the tiny run whose weights have no tensors yet."""
    monkeypatch.setenv(weights.PLACE, str(tmp_path))
    vision = weights.config(True)["vision_config"]
    ImageProcessor(min_pixels=56 * 56, window_size=vision["window_size"]).save_pretrained(
        weights.directory(True)
    )
    end = time.time() + 60
    return Ask(
        tiny=True, out=tmp_path, done=frozenset(), report=lambda case, row: None,
        seconds_left=lambda: end - time.time(),
    )  # fmt: skip


def test_pixels_and_grids_are_those_of_transformers(ask):
    transformers = pytest.importorskip("transformers")
    image = np.random.default_rng(0).integers(0, 256, (56, 84, 3), dtype=np.uint8)
    writer = pieces.Writer(weights.config(True), seed=0)
    piece = pieces.Piece(np.arange(3), np.zeros((3, 3)), 3, (writer.processor.patchify(image),))
    ours = pieces.padded([piece], writer.processor)
    theirs = transformers.Qwen2VLImageProcessorPil.from_pretrained(weights.directory(True))
    expected = theirs(image, return_tensors="np")
    np.testing.assert_allclose(ours.pixels, expected["pixel_values"], atol=1e-5)
    np.testing.assert_array_equal(ours.grids, expected["image_grid_thw"])


def test_padding_leaves_pieces_as_they_are(ask):
    writer = pieces.Writer(weights.config(True), seed=0)
    made = [writer.piece(20, (56, 56)), writer.piece(12)]
    for left in (False, True):
        rows = pieces.padded(made, writer.processor, left=left)
        for row, piece in enumerate(made):
            kept = rows.mask[row] == 1
            np.testing.assert_array_equal(rows.tokens[row, kept], piece.tokens)
            np.testing.assert_array_equal(rows.positions[:, row, kept], piece.positions)


def test_an_answer_goes_on_where_mrope_says(ask):
    """Pieces put together have the positions of the whole."""
    writer = pieces.Writer(weights.config(True), seed=0)
    first, second = writer.piece(20, (56, 84)), writer.piece(16, (56, 56))
    whole = pieces.with_text(pieces.joined(first, second), writer.words(5))
    grids = [image["grid"] for image in whole.images]
    image_token = weights.config(True)["image_token_id"]
    expected = writer.processor.positions(whole.tokens, grids, image_token)
    np.testing.assert_array_equal(whole.positions, expected)
    assert whole.next_position == expected.max() + 1


def test_every_process_makes_the_same(ask):
    for make in (
        lambda: [s.prompt for s in sft_work.work(True).segments],
        lambda: list(prompts.prompts(True).pieces),
        lambda: users.users(True, "images").candidates,
    ):
        for a, b in zip(make(), make(), strict=True):
            np.testing.assert_array_equal(a.tokens, b.tokens)
            np.testing.assert_array_equal(a.images[0]["patches"], b.images[0]["patches"])


def test_rows_are_nearly_full():
    """What is not a token of a segment is lost for both sides."""
    sizes = sft_work.SIZES
    least = [n * (sizes.length // n - sizes.length // n // 10) for n in sizes.rows]
    assert min(least) > 0.89 * sizes.length


def test_only_measured_cases_are_the_best(ask):
    rows = {
        "ours, a": {"seconds": 2.0},
        "ours, b": {"error": "out of memory"},
        "theirs, a": {"seconds": 6.0},
        "ours, c": {"seconds": 1.5},
    }
    assert side.best(rows, "ours") == side.Best("ours, c", 1.5)
    assert side.best(rows, "nobody") is None


def test_other_losses_and_nan_fail():
    rows = {case: {"loss": 7.0, "gradient_norm": 1.0} for case in ("a", "b, full, x", "c, full, y")}
    sft.check(rows, 1e-3, 1e-2)
    for case, name, value in (
        ("a", "loss", 7.1),
        ("a", "loss", float("nan")),
        ("c, full, y", "gradient_norm", 1.1),
    ):
        wrong = rows | {case: rows[case] | {name: value}}
        with pytest.raises(RuntimeError, match=name):
            sft.check(wrong, 1e-3, 1e-2)
    # Adapters of both sides begin at random.
    sft.check(rows | {"a": {"loss": 7.0, "gradient_norm": 3.0}}, 1e-3, 1e-2)
    # A norm may be further apart than a loss.
    sft.check(rows | {"b, full, x": {"loss": 7.0, "gradient_norm": 1.005}}, 1e-3, 1e-2)


def test_weights_stay_where_they_are_when_the_ram_disk_is_full(tmp_path, monkeypatch):
    monkeypatch.delenv(weights.PLACE, raising=False)
    monkeypatch.setattr(weights, "_RAM_DISK", tmp_path)
    free = weights._ROOM + 1
    monkeypatch.setattr(weights.shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    folder = weights.directory(False)
    assert folder.parent == tmp_path
    free = 0
    assert weights.directory(False).parent != tmp_path
    folder.mkdir()
    assert weights.directory(False) == folder


def test_what_sides_keep_is_not_in_the_results(ask):
    out = ask.out / "results"
    out.mkdir()
    ours = dataclasses.replace(ask, out=out)
    side.keep(ours, "scores", values=np.arange(3))
    found = side.kept(ours, "scores")
    assert found is not None and found["values"].tolist() == [0, 1, 2]
    assert not list(out.iterdir())
    assert side.kept(ask, "scores") is None  # another record has others


@pytest.mark.parametrize("value", [0.2, float("nan")])
def test_a_case_with_other_results_is_an_error(value):
    with pytest.raises(ValueError, match="loss"):
        side.need_agreement("loss", value, 0.1, 0.01)


def test_texts_that_differ_fail():
    same = {
        "equal_tokens": 1.0, "first_choice": 1.0, "behind": 0.0, "logprobs_apart": 1e-6,
        "logprobs_apart_mean": 1e-6, "same_in_all_samples": True,
    }  # fmt: skip
    rollouts.check({"agreement": same}, tiny=True)
    rollouts.check({"agreement": same | {"equal_tokens": 0.4}}, tiny=False)  # after a near tie
    for wrong, tiny in (
        ({"equal_tokens": 0.9}, True),
        ({"logprobs_apart": float("nan")}, True),
        ({"behind": 2.0}, False),
        ({"same_in_all_samples": False}, False),
        ({"error": "no"}, False),
    ):
        with pytest.raises(RuntimeError):
            rollouts.check({"agreement": same | wrong}, tiny=tiny)


@pytest.mark.parametrize("wrong", [1e-3, np.nan])
def test_scores_that_differ_fail(ask, monkeypatch, wrong):
    monkeypatch.setattr(weights, "written", lambda tiny: True)
    sides = side.Sides("ranking", ask)
    scores = np.random.default_rng(0).normal(size=(2, 21)).astype(np.float32)
    for case in ("ours, images", "transformers, images, one forward each, sdpa"):
        sides.report(case, {"seconds": 1.0})
        side.keep(ask, case.replace(" ", "_"), scores=scores)
    ranking.agree(sides, ask, "images")
    assert sides.rows["images, agreement"]["scores_apart"] == 0
    scores[1, 3] += wrong
    side.keep(ask, "ours,_images", scores=scores)
    with pytest.raises(RuntimeError, match="images"):
        ranking.agree(sides, ask, "images")


def _reports(ask: Ask) -> None:
    ask.report("a", {"value": 1})


def _hangs(ask: Ask) -> None:
    ask.report("b", {"value": 2})
    time.sleep(600)


def _fails(ask: Ask) -> None:
    raise OSError("no such thing")


def test_sides_report_at_once_and_end_in_time(ask, monkeypatch):
    monkeypatch.setattr(weights, "written", lambda tiny: True)
    seen = []
    ask = dataclasses.replace(ask, report=lambda case, row: seen.append((case, dict(row))))
    sides = side.Sides("sft", ask)
    assert sides.run(_reports)
    start = time.monotonic()
    assert not sides.run(_hangs, reserve=ask.seconds_left() - 15)
    assert time.monotonic() - start < 40
    assert seen == [("a", {"value": 1}), ("b", {"value": 2})]
    with pytest.raises(RuntimeError, match="_fails"):
        sides.run(_fails)


def test_the_second_side_runs_though_the_first_failed(ask, monkeypatch):
    monkeypatch.setattr(weights, "written", lambda tiny: True)
    sides = side.Sides("sft", ask)
    assert sides.both(_fails, _reports, reserve=0.0)
    assert sides.rows["a"] == {"value": 1}
    with pytest.raises(RuntimeError, match="_fails"):
        sides.finish(True)
