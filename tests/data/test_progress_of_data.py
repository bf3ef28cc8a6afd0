"""Step `data`, and the tokenizer of step `model`, say how far they are once they take long."""

import gzip
import re
import types

import numpy as np
import pytest

from mmsrec_jax.data import build
from mmsrec_jax.data.atomic_table import Table
from mmsrec_jax.data.published import files
from mmsrec_jax.hf import tokenizer
from mmsrec_jax.runtime import digests, progress


@pytest.fixture
def lines(monkeypatch, caplog):
    """What is logged, on a clock that goes on by three seconds whenever somebody looks."""
    seconds = iter(range(0, 1 << 30, 3))
    monkeypatch.setattr(progress, "time", types.SimpleNamespace(monotonic=lambda: next(seconds)))
    caplog.set_level("INFO", logger="absl")
    return lambda: [record.getMessage() for record in caplog.records]


def with_rate(lines, name):
    """Lines of `name` on the way, with a rate and the time that is left."""
    form = rf"{re.escape(name)}  \d+/\d+ \D+  [\d.e+-]+/s  ETA \d+:\d\d"
    return [line for line in lines if re.match(form, line)]


def test_every_part_of_a_generated_shop_and_the_tokenizer_have_a_rate(lines, tmp_path):
    shop = build.ToyshopSettings(num_users=30, num_items=20, history=(6, 8))
    build.build(build.DataSettings(source="toyshop", toyshop=shop), tmp_path)
    tokenizer.train([f"item {i}" for i in range(9)], 300, tmp_path / "model")
    for name in ("draw choices", "draw items", "write items", "write histories"):
        assert with_rate(lines(), name), name
    assert with_rate(lines(), "count words for the tokenizer")
    assert "tokenizer: joining what stands together, to at most 300 tokens" in lines()


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
def test_a_file_that_is_read_has_a_rate(packed, lines, tmp_path):
    rows = np.random.default_rng(0).integers(0, 1 << 60, (150_000, 2))
    table = "user_id:token\titem_id:token\n" + "".join(f"{a}\t{b}\n" for a, b in rows.tolist())
    path = tmp_path / ("shop.inter.gz" if packed else "shop.inter")
    path.write_bytes(gzip.compress(table.encode(), 1) if packed else table.encode())
    name = f"read {path.name}"
    assert Table(path, ["user_id"]).strings("user_id") == [str(a) for a in rows[:, 0]]
    assert with_rate(lines(), name)
    assert b"".join(chunk.data for chunk in files.chunks(path)) == table.encode()
    assert sum(line.startswith(name) and "took" in line for line in lines()) == 2
    digests.whole(path)
    assert with_rate(lines(), f"hash {path.name}")


def test_what_is_read_at_once_says_nothing(caplog, tmp_path):
    caplog.set_level("INFO", logger="absl")
    path = tmp_path / "file.csv"
    path.write_bytes(b"a,b\n" * 400_000)
    assert sum(len(chunk.data) for chunk in files.chunks(path)) == 1_600_000
    assert digests.whole(path) and not caplog.records
