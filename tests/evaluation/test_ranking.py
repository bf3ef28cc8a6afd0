"""Ranks from device chunks against a loop over users and items."""

import numpy as np
import pytest
from table_system import ITEMS, Table

from mmsrec_jax.evaluation import ranking
from mmsrec_jax.evaluation.protocols import sampled
from mmsrec_jax.runtime.errors import UserError


def by_hand(table, past, target, candidates):
    scores = table.values[past[-1]]
    others = [i for i in candidates if i != target]
    ties = sum(scores[i] == scores[target] for i in others)
    return 1 + sum(scores[i] >= scores[target] for i in others), 1 + len(others), ties


def test_full_ranks_equal_a_loop(histories, rows, table):
    got = ranking.full(table, histories, rows, chunk=32)
    repeated = 0
    for n, (user, position) in enumerate(rows):
        past, target = histories.of(user)[:position], histories.of(user)[position]
        repeated += target in past
        wanted = by_hand(table, past, target, set(range(ITEMS)) - set(past))
        assert (got.ranks[n], got.candidates[n], got.ties[n]) == wanted
        assert (got.users[n], got.targets[n]) == (user, target)
    assert repeated > 5


def test_histories_are_as_wide_as_the_chunk_needs_and_ranking_is_compiled_once(
    histories, rows, table
):
    seen = []

    class Recording(Table):
        def scores(self, histories, times=None):
            assert histories.shape == times.shape
            seen.append((histories.shape[1], (histories >= 0).sum(1).max()))
            return super().scores(histories, times)

    ranking._rank_full.clear_cache()
    ranking.full(Recording(table.values), histories, rows, chunk=8)
    assert len(seen) == 17 and {width for width, _ in seen} == {2, 4, 8, 16, 23}
    assert all(longest <= width <= 2 * longest for width, longest in seen)
    assert ranking._rank_full._cache_size() == 1


def test_sampled_ranks_equal_a_loop_and_ready_scores(histories, rows, table):
    frozen = sampled(histories, rows, n=9, seed=0, num_items=ITEMS)
    more = sampled(histories, rows, n=15, seed=0, num_items=ITEMS)
    whole, others, got = ranking.full_and_sampled(table, histories, [more, frozen], chunk=50, top=3)
    for name in ("ranks", "candidates", "ties", "top"):
        wanted = getattr(ranking.full(table, histories, rows, top=3), name)
        np.testing.assert_array_equal(getattr(whole, name), wanted)
    last = np.array([histories.of(u)[p - 1] for u, p in rows])
    ready = ranking.from_scores("x", table.values[last[:, None], frozen.items], frozen)
    for n, (user, position) in enumerate(rows):
        past = histories.of(user)[:position]
        wanted = by_hand(table, past, frozen.targets[n], frozen.items[n])
        assert (got.ranks[n], got.candidates[n], got.ties[n]) == wanted
        wanted = by_hand(table, past, more.targets[n], more.items[n])
        assert (others.ranks[n], others.candidates[n], others.ties[n]) == wanted
    for name in ("ranks", "candidates", "ties", "targets", "users"):
        np.testing.assert_array_equal(getattr(got, name), getattr(ready, name))


def best_by_hand(table, past, target, count):
    scores = table.values[past[-1]]
    competing = (set(range(ITEMS)) - set(past)) | {target}
    order = sorted((i for i in competing if scores[i] > -np.inf), key=lambda i: (-scores[i], i))
    return (order + [-1] * count)[:count]


@pytest.mark.parametrize("top", [1, 7, ITEMS + 5])
def test_lists_equal_a_loop_on_the_device_and_on_the_host(histories, rows, table, top):
    values = table.values.copy()
    values[:, ::3] = -np.inf  # never listed
    some = Table(values)
    got = ranking.full(some, histories, rows, chunk=32, top=top)
    last = [histories.of(u)[p - 1] for u, p in rows]
    ready = ranking.full_from_scores("x", values[last].astype(float), histories, rows, top=top)
    for n, (user, position) in enumerate(rows):
        past, target = histories.of(user)[:position], histories.of(user)[position]
        assert got.top[n].tolist() == best_by_hand(some, past, target, top)
    for name in ("users", "targets", "ranks", "candidates", "ties", "top"):
        np.testing.assert_array_equal(getattr(got, name), getattr(ready, name))


def test_no_rows_give_no_ranks(histories, table):
    none = np.zeros((0, 2), np.int32)
    assert len(ranking.full(table, histories, none, top=3)) == 0
    assert len(ranking.full_from_scores("x", np.zeros((0, ITEMS)), histories, none, top=3)) == 0


def test_scores_of_minus_infinity_do_not_revive_seen_items(histories, rows):
    got = ranking.full(Table(np.full((ITEMS, ITEMS), -np.inf)), histories, rows)
    np.testing.assert_array_equal(got.ranks, got.candidates)
    seen = [len(set(histories.of(u)[:p]) - {histories.of(u)[p]}) for u, p in rows]
    np.testing.assert_array_equal(got.candidates, ITEMS - np.array(seen))


def test_nan_names_the_system(histories, rows, table):
    values = table.values.copy()
    values[histories.of(7)[-2], 3] = np.nan
    with pytest.raises(UserError, match="system table: a score is NaN"):
        ranking.full(Table(values), histories, rows)
    frozen = sampled(histories, rows, n=9, seed=0, num_items=ITEMS)
    with pytest.raises(UserError, match="system y: a score is NaN"):
        ranking.from_scores("y", np.full(frozen.items.shape, np.nan), frozen)


def test_ranks_file_round_trip(histories, rows, table, tmp_path):
    got = ranking.full(table, histories, rows, top=4)
    path = tmp_path / "ranks.parquet"
    ranking.write_ranks(path, got, system="table", protocol="full", seed=3)
    back, metadata = ranking.read_ranks(path)
    assert metadata == {"system": "table", "protocol": "full", "seed": "3"}
    for name in ("users", "targets", "ranks", "candidates", "ties", "top"):
        np.testing.assert_array_equal(getattr(back, name), getattr(got, name))
    assert back.top.shape == (130, 4)
    with pytest.raises(UserError, match="no such ranks file"):
        ranking.read_ranks(tmp_path / "none.parquet")
