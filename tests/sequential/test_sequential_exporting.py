"""Exported recommenders: in a process that cannot import this package, the same best items."""

import json
import subprocess
import sys

import content
import jax
import jax.export
import numpy as np
import pytest

from mmsrec_jax.runtime.errors import UserError
from mmsrec_jax.sequential import exporting, standalone
from mmsrec_jax.sequential.recommender import SequentialRecommender

KINDS = {"sasrec": (), "bert4rec": (), "gru4rec": (), "molar": ("item",), "hm4sr": ("text",)}
TOP = 4
_CHILD = """
import json, sys
for name in ("mmsrec_jax", "flax", "safetensors", "ml_collections", "absl"):
    sys.modules[name] = None  # cannot be imported
sys.path.insert(0, sys.argv[1])
from recommend import Recommender
found = Recommender(sys.argv[1])
cases = json.load(sys.stdin)
print(json.dumps([found.top(*case[:2], repeat=case[2]) for case in cases]))
"""


@pytest.fixture(scope="module", autouse=True)
def needed():
    pytest.importorskip("flatbuffers", reason="jax.export needs flatbuffers")


def made(kind, names):
    return SequentialRecommender(*content.weights(kind, names, layers=1))


def ids_of(recommender):
    return [f"id {i * 7}" for i in range(recommender.config.num_items)]


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_items_without_the_package(kind, tmp_path):
    recommender = made(kind, KINDS[kind])
    ids, length = ids_of(recommender), recommender.config.length
    exporting.write(tmp_path / "out", recommender, ids, top_k=TOP, card="# card\n")
    program = jax.export.deserialize(bytearray((tmp_path / "out" / "program.jax").read_bytes()))
    about = json.loads((tmp_path / "out" / "recommender.json").read_text())
    assert list(program.platforms) == about["platforms"] == ["cpu", "cuda", "tpu"]
    rng = np.random.default_rng(0)
    rows = [rng.permutation(len(ids))[:n].tolist() for n in (1, 3, min(length + 2, len(ids) - TOP))]
    times = [(1_600_000_000 + 86_400 * np.arange(len(row))).tolist() for row in rows]
    cases = [(rows, times, False), (rows[:1], times[:1], True)]
    told = [([[ids[i] for i in row] for row in r], t, repeat) for r, t, repeat in cases]
    ran = subprocess.run(
        [sys.executable, "-c", _CHILD, str(tmp_path / "out")],
        input=json.dumps(told), capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-2000:]
    for (rows, times, repeat), found in zip(cases, json.loads(ran.stdout), strict=True):
        width = max(map(len, rows))
        padded = np.array([row + [-1] * (width - len(row)) for row in rows])
        clock = np.array([t + [0] * (width - len(t)) for t in times], np.float64)
        scores = np.array(recommender.scores(padded, clock))
        for row, all_scores, best in zip(rows, scores, found, strict=True):
            if not repeat:
                all_scores[row] = -np.inf
            order = np.argsort(-all_scores, kind="stable")[:TOP]
            assert [id for id, _ in best] == [ids[i] for i in order]
            np.testing.assert_allclose([s for _, s in best], all_scores[order], atol=1e-5)


def test_damaged_and_foreign_folders_are_one_line(tmp_path):
    recommender = made("sasrec", ())
    out = tmp_path / "out"
    exporting.write(out, recommender, ids_of(recommender), top_k=1000, card="")
    assert json.loads((out / "recommender.json").read_text())["top_k"] == len(ids_of(recommender))
    assert {path.name for path in out.iterdir()} == {
        "README.md", "items.json", "program.jax", "recommend.py", "recommender.json", "weights.npz",
    }  # fmt: skip

    def refused(*arguments):
        ran = subprocess.run(
            [sys.executable, str(out / "recommend.py"), *arguments], capture_output=True, text=True
        )
        assert ran.returncode == 2 and not ran.stdout
        (line,) = ran.stderr.splitlines()
        return line

    assert "item 'nothing' is not among" in refused("nothing")
    assert "a history is empty" in refused()
    kept = (out / "program.jax").read_bytes()
    (out / "program.jax").write_bytes(kept[: len(kept) // 2])
    assert "program.jax: damaged" in refused("id 0")
    (out / "weights.npz").unlink()
    (out / "program.jax").write_bytes(kept)
    assert "weights.npz: missing; export it again" in refused("id 0")
    (out / "recommender.json").write_text('{"format": "another"}')
    assert "its format is 'another'" in refused("id 0")

    with pytest.raises(UserError, match="not empty"):
        exporting.write(out, recommender, ids_of(recommender), top_k=3, card="")
    with pytest.raises(UserError, match="2 item ids for a model of"):
        exporting.write(tmp_path / "other", recommender, ["a", "b"], top_k=3, card="")


def test_times_belong_to_the_ids_and_few_programs_are_compiled(tmp_path, capsys, monkeypatch):
    recommender = made("hm4sr", KINDS["hm4sr"])
    ids = ids_of(recommender)
    exporting.write(tmp_path / "out", recommender, ids, top_k=3, card="")
    found = standalone.Recommender(tmp_path / "out")
    for times in (None, [[5]], [[5, 6, 7]]):
        with pytest.raises(standalone.ExportError, match="times"):
            found.top([ids[:2]], times)
    both = found.top([ids[:2], ids[:1]], [[5, 9], [5]])
    assert dict(both[0]) == pytest.approx(dict(found.top([ids[:2]], [[5, 9]])[0]))
    for rows in (3, 4):
        found.top([ids[:3]] * rows, [[1, 2, 3]] * rows)
    assert found._program._cache_size() == 3  # of 2, 1 and 4 rows
    monkeypatch.setattr(standalone, "__file__", str(tmp_path / "out" / "recommend.py"))
    assert standalone.main([f"{ids[0]}@5", f"{ids[1]}@9"]) == 0
    said = [line.split("\t")[0] for line in capsys.readouterr().out.splitlines()]
    assert said == [id for id, _ in both[0]]
    for wrong in (ids[0], "123", "@123"):
        assert standalone.main([wrong]) == 2
        assert "give ITEM_ID@SECONDS" in capsys.readouterr().err
