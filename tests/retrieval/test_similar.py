"""Similar users against numpy brute force: each exclusion by itself, folds, shards."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmsrec_jax.data import splits
from mmsrec_jax.data.records import Histories
from mmsrec_jax.retrieval import similar
from mmsrec_jax.retrieval.similar import RetrievalSettings
from mmsrec_jax.runtime.sharding import make_mesh
from mmsrec_jax.sequential.recommender import SequentialRecommender, init_params
from mmsrec_jax.sequential.sasrec import SASRecConfig

ITEMS, USERS = 30, 40


@pytest.fixture(scope="module")
def histories():
    rng = np.random.default_rng(0)
    lengths = rng.integers(3, 20, USERS)
    times = [np.sort(rng.integers(0, 40, n)) for n in lengths]  # many equal moments
    return Histories.from_rows(
        np.arange(USERS).astype(str),
        np.repeat(np.arange(USERS), lengths),
        rng.integers(0, ITEMS, lengths.sum()),
        1.4e9 + np.concatenate(times),  # float32 could not tell these apart
    )


@pytest.fixture(scope="module")
def recommender():
    config = SASRecConfig(ITEMS, length=8, dim=16, layers=1, heads=2, mlp_dim=16)
    return SequentialRecommender(config, init_params(config, 0))


class Stub:
    """Embeds every position by a table of its item: cheap, and different for every seed."""

    def __init__(self, seed):
        self.config, self.causal, self.dim = types.SimpleNamespace(length=64), True, 5
        self.table = np.random.default_rng(seed).normal(size=(ITEMS + 1, 5)).astype(np.float32)

    def states(self, ids, times):
        return jnp.asarray(self.table[ids])

    def unit(self, item):
        return self.table[item] / np.linalg.norm(self.table[item])


def brute_force(
    stub, histories, split, row, k, *, excluded=(), before=None, distinct_items=False, last=99
):
    """Next items, users and cosines for one row, by loops over every training prefix."""
    query = stub.unit(histories.of(row[0])[row[1] - 1])
    entries = []
    for user in range(USERS):
        for position in range(1, split.train_end[user])[-last:]:
            if user in excluded or (
                before is not None and histories.times(user)[position] >= before
            ):
                continue
            past, item = histories.of(user)[position - 1], histories.of(user)[position]
            entries.append((float(stub.unit(past) @ query), user, int(item)))
    entries.sort(key=lambda e: -e[0])
    picked = []
    for similarity, user, item in entries:
        if user in [p[1] for p in picked]:
            continue
        if distinct_items and item in [p[2] for p in picked]:
            continue
        picked.append((similarity, user, item))
    return picked[:k]


def assert_equal_up_to_ties(got, n, wanted, histories, split, stub):
    """Equal cosines are frequent (many prefixes end with one item): compare what is determined."""
    wanted_similarity = [w[0] for w in wanted] + [-np.inf] * (got.items.shape[1] - len(wanted))
    np.testing.assert_allclose(got.similarity[n], wanted_similarity, atol=1e-5)
    assert len(set(got.users[n][: len(wanted)])) == len(wanted)
    assert (got.items[n][len(wanted) :] == -1).all()


def pairs(stub, histories, split, user, item, query):
    """Whether (user, next item) is a training prefix with that cosine."""
    return [
        float(stub.unit(histories.of(user)[p - 1]) @ query)
        for p in range(1, split.train_end[user])
        if histories.of(user)[p] == item
    ]


@pytest.mark.parametrize("distinct_items", [False, True])
def test_own_user_is_excluded_and_the_rest_is_exact(histories, distinct_items):
    stub, split = Stub(0), splits.leave_one_out(histories)
    rows = np.concatenate([split.train[::7], split.validation, split.test])
    got = similar.neighbors(
        stub, histories, split, rows, k=3,
        settings=RetrievalSettings(distinct_items=distinct_items),
    )  # fmt: skip
    own_would_have_won = 0
    for n, row in enumerate(rows):
        assert row[0] not in got.users[n]
        query = stub.unit(histories.of(row[0])[row[1] - 1])
        for user, item, similarity in zip(
            got.users[n], got.items[n], got.similarity[n], strict=True
        ):
            assert np.isclose(pairs(stub, histories, split, user, item, query), similarity).any()
        if distinct_items:
            assert len(set(got.items[n])) == 3
        else:
            wanted = brute_force(stub, histories, split, row, 3, excluded=[row[0]])
            assert_equal_up_to_ties(got, n, wanted, histories, split, stub)
        own_would_have_won += row[0] in [p[1] for p in brute_force(stub, histories, split, row, 3)]
    assert own_would_have_won > 10


@pytest.mark.parametrize("distinct_items", [False, True])
@pytest.mark.parametrize("base_chunk", [37, 2048])
def test_search_equals_greedy_choice_among_all_entries(distinct_items, base_chunk):
    """Whole numbers, so that cosines tie exactly: the earlier entry is chosen. One user owns the
    most entries, so that the first candidates do not suffice for queries that are near to them."""
    rng = np.random.default_rng(1)
    size = 3000
    users = np.where(rng.random(size) < 0.9, 7, rng.integers(0, 60, size))
    order = np.argsort(users, kind="stable")
    embeddings = rng.integers(-2, 3, (size, 6)).astype(np.float32)[order]
    base = similar.KnowledgeBase(
        embeddings,
        users[order].astype(np.int32),
        rng.integers(0, 8, size).astype(np.int32),
        np.zeros(size),
    )
    owners = np.arange(50, dtype=np.int32)
    got = similar.search(
        base, embeddings[::60], owners, k=4,
        settings=RetrievalSettings(distinct_items=distinct_items),
        query_chunk=16, base_chunk=base_chunk,
    )  # fmt: skip
    beyond = 0
    for n in range(50):
        picked = []
        similarity = embeddings @ embeddings[60 * n]
        order = np.argsort(-similarity, kind="stable")
        order = order[base.users[order] != owners[n]]
        for rank, at in enumerate(order):
            taken = [base.users[p] for p in picked]
            items = [base.items[p] for p in picked] if distinct_items else []
            if len(picked) < 4 and base.users[at] not in taken and base.items[at] not in items:
                picked.append(at)
                beyond += rank >= 32
        np.testing.assert_array_equal(got.users[n], base.users[picked])
        np.testing.assert_array_equal(got.items[n], base.items[picked])
        np.testing.assert_array_equal(got.similarity[n], similarity[picked])
    assert beyond > 20


def test_nothing_of_validation_and_test_is_in_the_base(histories):
    stub, split = Stub(0), splits.leave_one_out(histories)
    before = similar.neighbors(stub, histories, split, split.test, k=3)
    items = histories.items.copy()
    last = histories.offsets[1:] - 1
    items[last] = (items[last] + 7) % ITEMS  # test targets of everybody
    changed = Histories(histories.users, histories.offsets, items, histories.timestamps)
    after = similar.neighbors(stub, changed, split, split.test, k=3)
    np.testing.assert_array_equal(before.items, after.items)
    base = similar.knowledge_base(stub, histories, split)
    wanted = [histories.of(u)[p] for u in range(USERS) for p in range(1, len(histories.of(u)) - 2)]
    np.testing.assert_array_equal(base.items, wanted)


def test_global_time_allows_only_the_past(histories):
    stub = Stub(0)
    split = splits.global_time(histories, validation_quantile=0.7, test_quantile=0.85)
    rows = np.concatenate([split.train[::3], split.validation, split.test])
    got = similar.neighbors(stub, histories, split, rows, k=3)
    future_would_have_won = 0
    for n, row in enumerate(rows):
        now = histories.times(row[0])[row[1]]
        wanted = brute_force(stub, histories, split, row, 3, excluded=[row[0]], before=now)
        assert_equal_up_to_ties(got, n, wanted, histories, split, stub)
        anytime = brute_force(stub, histories, split, row, 3, excluded=[row[0]])
        future_would_have_won += [a[0] for a in anytime] != [w[0] for w in wanted]
        for user, item in zip(got.users[n], got.items[n], strict=True):
            if user >= 0:
                taken = histories.times(user)[: split.train_end[user]]
                bought = histories.of(user)[: split.train_end[user]]
                assert (taken[bought == item] < now).any()
    assert future_would_have_won > 20


def test_training_rows_use_the_model_that_has_not_seen_their_user(histories):
    split = splits.leave_one_out(histories)
    full, fold_models = Stub(0), [Stub(1), Stub(2)]
    folds = similar.assign_folds(USERS, 2, seed=0)
    assert np.bincount(folds).tolist() == [20, 20]
    rows = np.concatenate([split.train[::5], split.test])
    got = similar.neighbors(
        full, histories, split, rows, k=2, fold_models=fold_models, folds=folds
    )  # fmt: skip
    for n, row in enumerate(rows):
        trained = row[1] < split.train_end[row[0]]
        stub = fold_models[folds[row[0]]] if trained else full
        wanted = brute_force(stub, histories, split, row, 2, excluded=[row[0]])
        assert_equal_up_to_ties(got, n, wanted, histories, split, stub)


@pytest.mark.parametrize("kind", ["folds", "global_time"])
def test_the_last_prefixes_of_each_user_alone_are_searched(histories, kind):
    stub, options, timed = Stub(0), {}, kind == "global_time"
    if timed:
        split = splits.global_time(histories, validation_quantile=0.7, test_quantile=0.85)
    else:
        split = splits.leave_one_out(histories)
        folds = similar.assign_folds(USERS, 2, seed=0)
        options = {"fold_models": [Stub(1), Stub(2)], "folds": folds}
    rows = np.concatenate([split.train[::5], split.validation, split.test])
    got = similar.neighbors(
        stub, histories, split, rows, k=3, settings=RetrievalSettings(last_prefixes=2), **options
    )
    missing = {name: [] for name in ("train", "validation", "test")}
    older_would_have_won = 0
    for n, row in enumerate(rows):
        trained = row[1] < split.train_end[row[0]]
        used = options["fold_models"][folds[row[0]]] if options and trained else stub
        limits = {
            "excluded": [row[0]],
            "before": histories.times(row[0])[row[1]] if timed else None,
        }
        wanted = brute_force(used, histories, split, row, 3, last=2, **limits)
        assert_equal_up_to_ties(got, n, wanted, histories, split, used)
        every = brute_force(used, histories, split, row, 3, **limits)
        older_would_have_won += [p[0] for p in every] != [p[0] for p in wanted]
        part = "train" if trained else "test" if row in split.test else "validation"
        missing[part].append(len(wanted) < 3)
    assert older_would_have_won > 20
    found = {name: sum(of) for name, of in missing.items() if any(of)}
    assert similar.short(got, split, rows) == found
    assert ("train" in found) == timed  # early rows know nothing that other users did last


def test_prefixes_that_are_left_out_are_not_embedded(histories):
    stub, split = Stub(0), splits.leave_one_out(histories)
    base = similar.knowledge_base(stub, histories, split, RetrievalSettings(last_prefixes=2))
    positions = [
        (user, position)
        for user in range(USERS)
        for position in range(max(split.train_end[user] - 2, 1), split.train_end[user])
    ]
    assert base.users.tolist() == [user for user, _ in positions]
    assert base.items.tolist() == [histories.of(user)[position] for user, position in positions]
    assert base.embeddings.shape == (len(positions), 5) and len(positions) < len(split.train) / 2


# 70,000 prefixes of 35,000 users: bins of 64, so 1,094 of them.
BIN = 64
IN_BINS = RetrievalSettings(approximate_above=69_999)


@pytest.fixture(scope="module")
def large():
    """Base, queries, whose they are, and before when: every query may see most of the entries."""
    rng = np.random.default_rng(3)
    embeddings = rng.normal(size=(70_000, 6)).astype(np.float32)
    base = similar.KnowledgeBase(
        embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True),
        np.repeat(np.arange(35_000, dtype=np.int32), 2),
        rng.integers(0, 1000, 70_000, dtype=np.int32),
        1.4e9 + rng.permutation(70_000),
    )
    owners = np.arange(0, 35_000, 350, dtype=np.int32)
    return base, base.embeddings[2 * owners], owners, 1.4e9 + rng.integers(60_000, 70_000, 100)


@pytest.fixture(scope="module")
def found_in_bins(large):
    base, queries, owners, before = large
    return similar.search(base, queries, owners, k=20, before=before, settings=IN_BINS)


def test_of_each_bin_the_nearest_entry_counts(large, found_in_bins):
    base, queries, owners, before = large
    for n, query in enumerate(queries):
        cosines = base.embeddings @ query
        cosines[(base.users == owners[n]) | (base.times >= before[n])] = -np.inf
        bins = np.append(cosines, np.full(-len(cosines) % BIN, -np.inf)).reshape(-1, BIN)
        entries = bins.argmax(1) + BIN * np.arange(len(bins))
        entries = entries[np.argsort(-bins.max(1))][:40]
        _, first = np.unique(base.users[entries], return_index=True)  # two bins may share a user
        entries = entries[np.sort(first)][:20]
        np.testing.assert_array_equal(found_in_bins.users[n], base.users[entries])
        np.testing.assert_array_equal(found_in_bins.items[n], base.items[entries])
        np.testing.assert_allclose(found_in_bins.similarity[n], cosines[entries], atol=1e-6)


def test_bins_hide_as_many_of_the_nearest_users_as_expected(large, found_in_bins):
    base, queries, owners, before = large
    exact = similar.search(base, queries, owners, k=20, before=before)
    same = (found_in_bins.users[:, :, None] == exact.users[:, None]).any(1)
    expected = 1 - similar.expected_recall(70_000, 20, IN_BINS)
    assert expected == pytest.approx(19 / 2 / 1094, rel=0.02)
    assert 0.5 * expected < 1 - same.mean() < 1.6 * expected  # 17 of 2,000, give or take 4
    for above, entries in ((0, 70_000), (70_000, 70_000), (1, 65_535)):
        settings = RetrievalSettings(approximate_above=above)
        assert similar.expected_recall(entries, 20, settings) == 1
    settings = RetrievalSettings(approximate_above=70_000)
    again = similar.search(base, queries[:10], owners[:10], k=20, before=before, settings=settings)
    np.testing.assert_array_equal(again.users, exact.users[:10])


def test_bins_are_the_same_on_every_mesh(large, found_in_bins):
    base, queries, owners, before = large
    many = similar.search(
        base, queries, owners, k=20, before=before, settings=IN_BINS, mesh=make_mesh(2, 2, 2),
        query_chunk=64,
    )  # fmt: skip
    np.testing.assert_array_equal(found_in_bins.users, many.users)
    np.testing.assert_array_equal(found_in_bins.items, many.items)


def test_queries_with_too_few_bins_are_searched_exactly(large):
    """Before the second moment one entry is allowed, before the sixth five of one bin."""
    base, queries, owners, _ = large
    times = base.times.copy()
    early = BIN * 100 + 2 * np.arange(5)  # each of another user
    times[early] = np.arange(5)
    base = similar.KnowledgeBase(base.embeddings, base.users, base.items, times)
    before = np.where(np.arange(100) % 2, 5.0, 1.0)
    got = similar.search(base, queries, owners, k=5, before=before, settings=IN_BINS)
    for n in range(100):
        allowed = early[: 5 if n % 2 else 1]
        order = allowed[np.argsort(-(base.embeddings[allowed] @ queries[n]))]
        assert got.users[n].tolist() == base.users[order].tolist() + [-1] * (5 - len(order))


def test_a_query_that_is_searched_again_leaves_the_others_in_bins(large, found_in_bins):
    """However many are searched again: no entry is before the moment of most of the first chunk."""
    base, queries, owners, before = large
    before = np.append(np.full(6, -np.inf), before[6:])
    got = similar.search(
        base, queries, owners, k=found_in_bins.users.shape[1], before=before, settings=IN_BINS,
        query_chunk=10,
    )  # fmt: skip
    assert (got.users[:6] == -1).all()
    np.testing.assert_array_equal(got.users[6:], found_in_bins.users[6:])


def test_users_of_a_base_with_bins_are_shuffled(histories, monkeypatch):
    """Else users beside each other who are similar, such as those of one month, would share a bin
    and hide each other."""
    monkeypatch.setattr(similar, "_BINS", 16)
    monkeypatch.setattr(similar, "_BIN", (2, 4))
    stub, split = Stub(0), splits.leave_one_out(histories)
    base = similar.knowledge_base(stub, histories, split, RetrievalSettings(approximate_above=1))
    plain = similar.knowledge_base(stub, histories, split)
    assert np.all(np.diff(plain.users) >= 0)
    starts = np.flatnonzero(np.diff(base.users, prepend=-1))
    order = base.users[starts]
    assert len(order) == len(np.unique(plain.users)) and np.mean(np.diff(order) > 0) < 0.7
    back = np.argsort(base.users, kind="stable")  # each user's prefixes in their order
    for name in ("users", "items", "times", "embeddings"):
        np.testing.assert_array_equal(getattr(base, name)[back], getattr(plain, name))
    found = similar.neighbors(
        stub, histories, split, split.test, k=2, settings=RetrievalSettings(approximate_above=1)
    )
    assert (found.users >= 0).all() and (found.users != split.test[:, :1]).all()


def test_prefixes_in_one_pass_equal_prefixes_alone(histories, recommender):
    rows = splits.leave_one_out(histories).train
    got = similar.prefix_embeddings(recommender, histories, rows)
    np.testing.assert_allclose(np.linalg.norm(got, axis=1), 1, atol=1e-5)
    past = np.full((len(rows), 8), -1)
    for n, (user, position) in enumerate(rows):
        window = histories.of(user)[:position]
        if position > 8:  # windows start every 4 items and hold the latest 5 to 8
            window = window[-(5 + (position - 1) % 4) :]
        past[n, : len(window)] = window
    assert (rows[:, 1] > 12).any()
    alone = recommender.embed(past)
    np.testing.assert_allclose(got, alone / np.linalg.norm(alone, axis=1)[:, None], atol=2e-5)


@pytest.mark.parametrize("distinct_items", [False, True])
def test_sharded_search_equals_search_on_one_device(histories, distinct_items):
    assert jax.device_count() == 8
    stub, split = Stub(0), splits.leave_one_out(histories)
    base = similar.knowledge_base(stub, histories, split)
    rng = np.random.default_rng(0)
    queries = rng.normal(size=(20, 5)).astype(np.float32)
    settings = RetrievalSettings(distinct_items=distinct_items)
    options = {"k": 3, "settings": settings, "base_chunk": 16}
    one = similar.search(base, queries, np.arange(20), **options)
    many = similar.search(base, queries, np.arange(20), mesh=make_mesh(2, 2, 2), **options)
    np.testing.assert_allclose(one.similarity, many.similarity, atol=1e-5)
    np.testing.assert_array_equal(one.users, many.users)
    np.testing.assert_array_equal(one.items, many.items)


def test_hit_rates_of_each_part(histories):
    split = splits.leave_one_out(histories)
    rows = np.concatenate([split.train, split.test])
    right = np.array([histories.of(u)[p] for u, p in rows])
    items = np.stack([np.full(len(rows), -1), right], 1)
    items[len(split.train) :: 2] = -1  # every other test row misses
    rates = similar.hit_rates(similar.Neighbors(items, items, items), histories, split, rows)
    assert rates == {"train": 1.0, "test": 0.5}
