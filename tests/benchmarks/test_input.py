"""What benchmarks/input.py compares is the same on both sides."""

import importlib

import pytest


@pytest.mark.parity
def test_both_sides_make_the_same_prompts(tmp_path):
    sides = importlib.import_module("benchmarks.input_sides")  # of torch
    case = sides.Case(
        "", "", items=24, users=32, negatives=3, pixels=16 * 28 * 28, workers=0, look_ahead=5,
        rows=1,
    )  # fmt: skip
    world = sides.World(case, tmp_path)
    assert sides.check_equal(world) == (24 + 2 * 4, 24 + 2 * 4)
    for job in ("summarizer", "sft", "sft, pictures kept"):
        for side in (sides.ours, sides.theirs):
            made = side(world, job)
            batch = next(made)
            made.close()
            assert batch["pictures"] and 0 < batch["tokens"] <= batch["slots"]
            assert batch["examples"] == batch["pictures"]  # each has one of its own
