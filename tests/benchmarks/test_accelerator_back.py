"""What goes back from a rented machine: sizes, what is needed, and the way there and back."""

import json

import numpy as np
import pytest

from benchmarks.accelerator import back
from benchmarks.accelerator.loads import LoadError

STEPS = ("data", "summarizer", "summaries", "sasrec", "retrieval", "plain_sft", "sft")
TRAINS = {"summarizer": "weights", "sasrec": "model", "plain_sft": "weights", "sft": "weights"}


def make_run(work, *, finished, under_way=None, size=1000):
    """A run in the form of its folders: the contents are random bytes of their own."""
    rng = np.random.default_rng(0)
    for name in (*finished, *filter(None, [under_way])):
        folder = work / "run" / name
        files = [folder / "metrics.jsonl", folder / "tensorboard" / "events"]
        files += [folder / "checkpoints" / step / "array" / "0" for step in ("2", "10")]
        files.append(folder / "checkpoints" / "11.partial" / "0")
        if name in TRAINS and name in finished:
            files.append(folder / TRAINS[name] / "deep" / "er" / "array")
        for file in files:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(rng.bytes(size))
        record = {"finished": name in finished, "seconds": 1.0}
        (folder / "step.json").write_text(json.dumps(record))
    (work / "run" / "compiled").mkdir()
    (work / "run" / "compiled" / "program").write_bytes(bytes(size))


def files(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*") if path.is_file()
    }  # fmt: skip


def there_and_back(tmp_path, **options):
    saved = back.save(tmp_path / "work", ["run"], tmp_path / "out" / "back", **options)
    (tmp_path / "there").mkdir()
    back.restore(tmp_path / "out" / "back", tmp_path / "there")
    return saved, files(tmp_path / "there" / "run")


def test_what_a_run_needs_comes_back_the_same(tmp_path):
    make_run(tmp_path / "work", finished=STEPS[:5], under_way="plain_sft")
    saved, found = there_and_back(tmp_path, running=False)
    held = files(tmp_path / "work" / "run")
    assert not saved.left_out
    assert found.items() <= held.items()
    assert "plain_sft/checkpoints/10/array/0" in found
    assert {"sasrec/model/deep/er/array", "sasrec/metrics.jsonl", "plain_sft/step.json"} <= set(
        found
    )
    made_again = ("data/", "compiled/", "tensorboard", "checkpoints/2/", "partial")
    assert not [name for name in found if any(part in name for part in made_again)]
    assert not [name for name in found if name.startswith("sasrec/checkpoints")]


def test_of_a_step_under_way_nothing_is_taken_while_it_writes(tmp_path):
    make_run(tmp_path / "work", finished=STEPS[:3], under_way="sasrec")
    _, found = there_and_back(tmp_path, running=True)
    assert {name.split("/")[0] for name in found} == {"summarizer", "summaries"}


def test_a_sequential_model_begins_again(tmp_path):
    make_run(tmp_path / "work", finished=STEPS[:3], under_way="sasrec")
    _, found = there_and_back(tmp_path, running=False)
    assert not [name for name in found if name.startswith("sasrec")]


def test_parts_are_within_the_limits_of_a_machine(tmp_path):
    make_run(tmp_path / "work", finished=STEPS, size=5 * 2**20)
    saved, _ = there_and_back(tmp_path, running=False)
    parts = sorted((tmp_path / "out" / "back").iterdir())
    assert len(parts) <= 5
    assert max(part.stat().st_size for part in parts) <= 16 * 2**20
    assert sum(part.stat().st_size for part in parts) <= 64 * 2**20 - 2 * 2**20
    assert saved.size > 2 * back.PART_BYTES  # several were needed


def test_without_room_what_is_read_no_more_goes_first_and_is_named(tmp_path):
    make_run(tmp_path / "work", finished=STEPS, size=100_000)
    all_of_it, _ = there_and_back(tmp_path, running=False)
    (tmp_path / "second").mkdir()
    saved = back.save(
        tmp_path / "work", ["run"], tmp_path / "second" / "back", running=False,
        room=all_of_it.size - 60_000,
    )  # fmt: skip
    assert list(saved.left_out) == ["run/summarizer/weights"]  # its summaries are written
    back.restore(tmp_path / "second" / "back", tmp_path / "second")
    assert "sft/weights/deep/er/array" in files(tmp_path / "second" / "run")


def test_what_is_there_already_is_left(tmp_path):
    make_run(tmp_path / "work", finished=STEPS[:2])
    back.save(tmp_path / "work", ["run"], tmp_path / "back", running=False)
    (tmp_path / "work" / "run" / "summarizer" / "metrics.jsonl").write_bytes(b"newer")
    back.restore(tmp_path / "back", tmp_path / "work")
    assert (tmp_path / "work" / "run" / "summarizer" / "metrics.jsonl").read_bytes() == b"newer"


def test_a_damaged_part_is_named(tmp_path):
    make_run(tmp_path / "work", finished=STEPS[:2])
    back.save(tmp_path / "work", ["run"], tmp_path / "back", running=False)
    (tmp_path / "back" / "part-1.tar").write_bytes(b"")
    with pytest.raises(LoadError, match="part-1.tar: missing or damaged"):
        back.restore(tmp_path / "back", tmp_path / "work")
    with pytest.raises(LoadError, match="--out of the call to continue"):
        back.restore(tmp_path / "nowhere", tmp_path / "work")
