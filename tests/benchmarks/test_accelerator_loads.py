"""Loads for a machine without network: cut, joined, and refused when something is missing."""

import shutil

import numpy as np
import pytest

from benchmarks.accelerator import loads


def write(path, size, seed):
    path.write_bytes(np.random.default_rng(seed).bytes(size))
    return path


@pytest.fixture
def packed(tmp_path):
    """Two groups; in the first a file of 2.5 loads."""
    small = [write(tmp_path / name, 30, seed) for seed, name in enumerate("abc")]
    large = write(tmp_path / "large", 250, 9)
    groups = [
        [*((f"wheels/{path.name}", path) for path in small), ("weights/large", large)],
        [("data/a", small[0])],
    ]
    return loads.pack(groups, tmp_path / "carried", room=100)


def test_loads_keep_their_size_and_join_to_the_same_bytes(packed, tmp_path):
    carried = tmp_path / "carried"
    for load in carried.iterdir():
        held = [p for p in load.rglob("*") if p.is_file() and p.name != "manifest.json"]
        assert 0 < sum(path.stat().st_size for path in held) <= 100
    assert loads.read_manifest(carried) == packed
    for entry in packed:
        loads.join(entry, carried, tmp_path / "out" / entry.name)
        assert (tmp_path / "out" / entry.name).read_bytes() == (
            tmp_path / entry.name.split("/")[1]
        ).read_bytes()
    assert sorted(path.name for path in carried.iterdir()) == [f"load-{n}" for n in range(1, 6)]


def test_only_large_files_are_cut_and_a_group_begins_a_load(packed):
    by_name = {entry.name: [path for path, _ in entry.pieces] for entry in packed}
    assert by_name["wheels/a"] == ["load-1/wheels/a"]
    assert by_name["weights/large"][0] == "load-1/weights/large.1"
    assert len(by_name["weights/large"]) == 4
    assert by_name["data/a"] == ["load-5/data/a"]


def test_a_small_file_is_not_cut_at_the_end_of_a_load(tmp_path):
    first, second = write(tmp_path / "first", 95, 0), write(tmp_path / "second", 20, 1)
    packed = loads.pack([[("first", first), ("second", second)]], tmp_path / "out", room=100)
    assert [entry.pieces for entry in packed] == [
        (("load-1/first", 95),), (("load-2/second", 20),),
    ]  # fmt: skip


def test_a_load_that_is_missing_is_named(packed, tmp_path):
    shutil.rmtree(tmp_path / "carried" / "load-3")
    large = next(entry for entry in packed if entry.name == "weights/large")
    with pytest.raises(loads.LoadError, match="load-3/weights/large.3: missing.*bring load-3"):
        loads.join(large, tmp_path / "carried", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_damaged_piece_is_found(packed, tmp_path):
    piece = tmp_path / "carried" / "load-1" / "weights" / "large.1"
    piece.write_bytes(bytes(len(piece.read_bytes())))
    large = next(entry for entry in packed if entry.name == "weights/large")
    with pytest.raises(loads.LoadError, match="not what was packed"):
        loads.join(large, tmp_path / "carried", tmp_path / "out")


def test_what_is_joined_stays(packed, tmp_path):
    out = tmp_path / "out"
    loads.join(packed[0], tmp_path / "carried", out)
    before = out.stat().st_mtime_ns
    shutil.rmtree(tmp_path / "carried" / "load-1")
    loads.join(packed[0], tmp_path / "carried", out)
    assert out.stat().st_mtime_ns == before


def test_a_second_packing_replaces_the_first(packed, tmp_path):
    loads.pack([[("only", tmp_path / "a")]], tmp_path / "carried", room=100)
    assert [path.name for path in (tmp_path / "carried").iterdir()] == ["load-1"]


def test_loads_of_two_calls_are_refused(packed, tmp_path):
    loads.pack([[("a", tmp_path / "a")]], tmp_path / "other", room=100)
    shutil.rmtree(tmp_path / "carried" / "load-1")
    shutil.copytree(tmp_path / "other" / "load-1", tmp_path / "carried" / "load-1")
    with pytest.raises(loads.LoadError, match="different calls"):
        loads.read_manifest(tmp_path / "carried")
