"""Another library's scores: ranked as our own, and every mistake in the file named by its row."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmsrec_jax.data import splits
from mmsrec_jax.data.records import Histories
from mmsrec_jax.evaluation import ranking
from mmsrec_jax.evaluation.comparison import external
from mmsrec_jax.evaluation.protocols import sampled
from mmsrec_jax.runtime.errors import UserError

ITEMS = 40
IDS = np.array([f"{i:03d}" for i in range(ITEMS)])  # leading zeros that a number would lose


@pytest.fixture(scope="module")
def histories():
    rng = np.random.default_rng(0)
    lengths = rng.integers(3, 12, 30)
    items = np.concatenate([rng.permutation(ITEMS)[:n] for n in lengths])
    times = np.concatenate([np.arange(n) for n in lengths])
    return Histories.from_rows(
        np.array([f"u{u}" for u in range(30)]), np.repeat(np.arange(30), lengths), items, times
    )


def as_csv(path, rows, header="user,item,score"):
    path.write_text("\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n")
    return path


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_ranks_equal_those_of_the_dense_scores(histories, tmp_path, kind):
    rng = np.random.default_rng(1)
    dense = rng.integers(0, 9, (30, ITEMS)).astype(float)
    dense[rng.random(dense.shape) < 0.4] = -np.inf  # not in the file
    users, items = np.nonzero(dense > -np.inf)
    order = rng.permutation(len(users))
    users, items = users[order], items[order]
    columns = {"item": IDS[items], "score": dense[users, items], "user": histories.users[users]}
    if kind == "csv":
        path = as_csv(
            tmp_path / "x.csv", zip(*columns.values(), strict=True), header=",".join(columns)
        )
    else:
        path = tmp_path / "x.parquet"
        pq.write_table(pa.table({name: pa.array(list(v)) for name, v in columns.items()}), path)
    scores = external.read(path, histories.users, IDS)

    rows = splits.leave_one_out(histories).test
    got = external.full("x", scores, histories, rows, top=5)
    wanted = ranking.full_from_scores("x", dense[rows[:, 0]], histories, rows, top=5)
    frozen = sampled(histories, rows, n=9, seed=0, num_items=ITEMS)
    listed = external.sampled("x", scores, frozen)
    also = ranking.from_scores("x", dense[rows[:, :1], frozen.items], frozen)
    for name in ("users", "targets", "ranks", "candidates", "ties", "top"):
        np.testing.assert_array_equal(getattr(got, name), getattr(wanted, name))
        np.testing.assert_array_equal(getattr(listed, name), getattr(also, name))
    unscored = np.isneginf(dense[rows[:, 0], got.targets])
    assert external.missing(scores, got) == unscored.sum() > 0
    np.testing.assert_array_equal(got.ranks[unscored], got.candidates[unscored])


def test_numbers_serve_as_ids(tmp_path):
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"user": [7, 8], "item": [1, 2], "score": [1, 2]}), path)
    scores = external.read(path, np.array(["8", "7"]), np.array(["1", "2"]))
    assert scores.of(np.array([[0], [1]]), np.arange(2)).tolist() == [[-np.inf, 2], [1, -np.inf]]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "x.csv: has no rows"),
        ([("u1", "001", 1), ("u1", "1", 2)], r"x.csv, row 2: item '1' is not in .* data \(1 such"),
        ([("u1", "001", 1), ("who", "001", 2)], "x.csv, row 2: user 'who' is not in the run's"),
        ([("u1", "001", 1), ("u2", "001", 2), ("u1", "001", 3)],
         "x.csv, row 3: user u1 and item 001 have a score already"),
        ([("u1", "001", 1), ("u1", "002", "nan")], "x.csv, row 2: the score is NaN or missing"),
        ([("u1", "001", 1), ("u1", "002", "high")], "x.csv, row 2: the score 'high' is no number"),
        ([("u1", "001", 1), ("u1", "002", 1, 5)], "x.csv: cannot be read .*Expected 3 columns"),
    ],
)  # fmt: skip
def test_mistakes_name_the_row(histories, tmp_path, rows, message):
    with pytest.raises(UserError, match=message) as error:
        external.read(as_csv(tmp_path / "x.csv", rows), histories.users, IDS)
    assert "\n" not in str(error.value)


def test_mistakes_name_the_file(histories, tmp_path):
    missing = as_csv(tmp_path / "x.csv", [("u1", "001", 1)], header="user_id,item,score")
    (tmp_path / "x.parquet").write_text("user,item,score\n")
    for path, message in (
        (missing, r"column 'user' is missing \(there are: user_id, item, score\)"),
        (tmp_path / "x.parquet", "x.parquet: cannot be read"),
        (tmp_path / "none.csv", "none.csv: no such file"),
        (tmp_path, "is a folder; a regular file is expected"),
    ):
        with pytest.raises(UserError, match=message):
            external.read(path, histories.users, IDS)
    odd = tmp_path / "x.tsv"
    odd.write_text("")
    with pytest.raises(UserError, match="neither"):
        external.read(odd, histories.users, IDS)
