"""Frozen candidates: what may be among them, where the positive stands, that they stay frozen."""

import numpy as np
import pyarrow.parquet as pq
import pytest

from mmsrec_jax.data import splits
from mmsrec_jax.data.records import Histories
from mmsrec_jax.evaluation.protocols import Candidates, sampled
from mmsrec_jax.runtime.errors import UserError


def histories_of(sequences):
    owner = np.repeat(np.arange(len(sequences)), [len(s) for s in sequences])
    times = np.concatenate([np.arange(len(s)) for s in sequences])
    return Histories.from_rows(
        np.arange(len(sequences)).astype(str), owner, np.concatenate(sequences), times
    )


@pytest.fixture(scope="module")
def histories():
    rng = np.random.default_rng(0)
    return histories_of([rng.integers(0, 60, rng.integers(3, 30)) for _ in range(800)])


def test_negatives_are_distinct_and_never_in_the_full_history(histories):
    rows = splits.leave_one_out(histories).validation  # the test target must be avoided as well
    found = sampled(histories, rows, n=20, seed=1, num_items=60)
    assert found.items.shape == (len(rows), 21)
    for (user, position), items, positive in zip(rows, found.items, found.positive, strict=True):
        assert len(set(items)) == 21
        assert items[positive] == histories.of(user)[position]
        assert not set(np.delete(items, positive)) & set(histories.of(user))


def test_negatives_and_positions_of_positives_are_uniform(histories):
    rows = np.repeat(splits.leave_one_out(histories).test[:1], 8000, axis=0)
    found = sampled(histories, rows, n=4, seed=0, num_items=60)
    places = np.bincount(found.positive, minlength=5)
    assert np.abs(places - 1600).max() < 5 * np.sqrt(1600)
    allowed = np.setdiff1d(np.arange(60), histories.of(0))
    drawn = np.bincount(found.items[found.items != found.targets[:, None]], minlength=60)
    mean = 4 * 8000 / len(allowed)
    assert np.abs(drawn[allowed] - mean).max() < 5 * np.sqrt(mean)


def test_users_who_leave_exactly_n_items_get_them_all():
    histories = histories_of([np.arange(5, 100), np.array([0, 1, 2])])
    rows = np.array([[0, 94], [1, 2]])
    found = sampled(histories, rows, n=5, seed=0, num_items=100)
    assert set(found.items[0]) == {0, 1, 2, 3, 4, 99}


def test_too_few_items_name_the_user():
    histories = histories_of([np.arange(18)])
    with pytest.raises(UserError, match="names 5, but user '0' has only 2 unseen items"):
        sampled(histories, np.array([[0, 17]]), n=5, seed=0, num_items=20)


def test_same_seed_same_digest_other_seed_another(histories):
    rows = splits.leave_one_out(histories).test
    first, again, other = (
        sampled(histories, rows, n=20, seed=seed, num_items=60) for seed in (3, 3, 4)
    )
    assert first.name == "sampled@20"
    assert first.digest == again.digest != other.digest


def test_round_trip_and_tampering(histories, tmp_path):
    found = sampled(histories, splits.leave_one_out(histories).test, n=20, seed=3, num_items=60)
    path = tmp_path / "run" / "candidates.parquet"
    found.write(path)
    back = Candidates.read(path)
    assert back.digest == found.digest and back.seed == 3
    np.testing.assert_array_equal(back.items, found.items)
    assert [p.name for p in path.parent.iterdir()] == ["candidates.parquet"]

    table = pq.read_table(path)
    changed = table.set_column(2, "positive", [(table["positive"].to_numpy() + 1) % 21])
    pq.write_table(changed, path)
    with pytest.raises(UserError, match="differ from their stored digest"):
        Candidates.read(path)
    with pytest.raises(UserError, match="no such candidates file"):
        Candidates.read(tmp_path / "nothing.parquet")
