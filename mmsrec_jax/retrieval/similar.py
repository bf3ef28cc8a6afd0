"""Similar users: the nearest histories by cosine, and the items that followed them.

*Paper* (MMSRARec, stage 2): embed each history with an ID-only sequence model, take the k = 3 users
from the training set nearest by cosine; their next items become context.

*Ours*: the knowledge base is every training prefix, so that "next item" is exact; one entry per
distinct user, that user's nearest prefix; the query's own user is excluded; nothing of validation
or test is in the base, and under a global-time split nothing at or after the query's time. A model
has been trained on the very next items that training queries ask for, so neighbors of training
queries hit more often than they will at test time; `neighbors` can therefore embed training
queries with models that have not seen their users (`fold_models`), and `hit_rate` makes the
difference visible.

Large bases (*ours*): `last_prefixes` leaves out what users did long ago, and `approximate_above`
gives up exactness. The entries are then bins of equally many, of each of which a query sees the
nearest entry alone (`_nearest_of_bins`). This is TPU-KNN's search (Chern et al. 2022, arXiv
2206.14286), which `jax.lax.approx_max_k` does on a TPU; that sorts everything on other devices,
and bins that are written out save time on all. Here bins are neighboring entries, most of them of
the same users, of whom one entry is wanted: only other users in its bin can hide a neighbor. As
users are shuffled, each of the k - 1 nearer ones does with probability 1 / bins.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import PartitionSpec

from mmsrec_jax.data import sequences
from mmsrec_jax.data.records import Histories, Split
from mmsrec_jax.data.sequences import gather_ragged, targets
from mmsrec_jax.runtime import arrays
from mmsrec_jax.runtime.progress import Progress
from mmsrec_jax.runtime.settings import Section, seed_setting, setting
from mmsrec_jax.runtime.sharding import LOGICAL_AXES, batch_sharding, num_batch_shards
from mmsrec_jax.sequential.recommender import SequentialRecommender, pad_rows

# The base as `search` puts it on devices: embeddings, users, items and times, each [N, ...].
_Entries = Mapping[str, jax.Array]
_Pair = tuple[jax.Array, jax.Array]
_Found = tuple[jax.Array, jax.Array, jax.Array]  # similarity, users and items, each [Q, columns]
_NEVER = np.iinfo(np.int32).max
_BLOCK = 16  # entries of which the largest is looked at first
_FEWEST = 32  # candidates of a query
_MORE = 4  # times as many, for queries whose candidates did not suffice
_BINS = 1024  # fewest bins of an approximate search
_BIN = (64, 8192)  # entries of a bin at least, else it saves little, and at most
_OF_BINS = 8  # times as many candidates are taken of bins, which are not searched twice
_ENCODE_ROWS = 256
_EMBED_ROWS = 8192  # prefixes gathered at a time when each is embedded by itself


@dataclass(frozen=True)
class RetrievalSettings(Section):
    """Stage 2: similar users."""

    folds: int = setting(
        1,
        "Above 1: training queries are embedded by models that never saw their user (ours).",
        low=1,
        high=100,
    )
    distinct_items: bool = setting(False, "No next item is given twice (ours).")
    last_prefixes: int = setting(
        0,
        "Of each user only so many latest training prefixes are searched (ours). 0 is all.",
        low=0,
        high=1_000_000_000,
    )
    approximate_above: int = setting(
        0,
        "Prefixes above which the search is approximate (ours), if 65,536 or more. 0 is never.",
        low=0,
        high=1_000_000_000_000,
    )
    seed: int = seed_setting("Of the assignment of users to folds.")


_DEFAULT = RetrievalSettings()


@dataclass(frozen=True)
class Neighbors:
    """Aligned with the queries, nearest first; -1 (similarity -inf) where fewer than k qualify.

    items int32[n, k]: next items; users int32[n, k]: whose; similarity float32[n, k]: cosine.
    """

    items: np.ndarray
    users: np.ndarray
    similarity: np.ndarray


@dataclass(frozen=True)
class KnowledgeBase:
    """One entry per training prefix; those of a user side by side, in their order.

    embeddings float32[N, D] of unit length; users, items int32[N]: whose, and the next item; times
    float64[N]: when that next item was taken.
    """

    embeddings: np.ndarray
    users: np.ndarray
    items: np.ndarray
    times: np.ndarray


def prefix_embeddings(
    recommender: SequentialRecommender, histories: Histories, rows: np.ndarray
) -> np.ndarray:
    """Unit-length embeddings of the history before each row's target: float32[n, D].

    rows int32[n, 2] (user, position). With a causal model all prefixes of a user come from one
    forward pass over the sequence; with another each prefix is embedded by itself. Histories longer
    than the model's window are read in windows that start every half window, so that a long prefix
    is seen with at least half a window of its latest items.
    """
    rows = np.asarray(rows, np.int64)
    length = recommender.config.length
    if not recommender.causal:
        return _one_by_one(recommender, histories, rows)
    stride = max(length // 2, 1)
    start = -(-np.maximum(rows[:, 1] - length, 0) // stride) * stride
    windows, window_of_row = np.unique(
        np.stack([rows[:, 0], start], 1), axis=0, return_inverse=True
    )
    window_of_row = window_of_row.reshape(-1)
    lengths = np.zeros(len(windows), np.int64)
    np.maximum.at(lengths, window_of_row, rows[:, 1] - start)
    by_length = np.argsort(lengths, kind="stable")
    windows, lengths = windows[by_length], lengths[by_length]
    window_of_row = np.argsort(by_length)[window_of_row]

    order = np.argsort(window_of_row, kind="stable")
    chunk_of_row = window_of_row[order] // _ENCODE_ROWS
    found = np.empty((len(rows), recommender.dim), np.float32)
    for chunk, first in enumerate(range(0, len(windows), _ENCODE_ROWS)):
        part = slice(first, first + _ENCODE_ROWS)
        width = min(sequences.power_of_two(lengths[part][-1]), length)  # few compiled shapes
        starts = histories.offsets[windows[part, 0]] + windows[part, 1]
        ids = pad_rows(gather_ragged(histories.items, starts, lengths[part], width), _ENCODE_ROWS)
        times = pad_rows(
            gather_ragged(histories.timestamps, starts, lengths[part], width), _ENCODE_ROWS
        )
        states = arrays.fetch(_unit(recommender.states(ids, times)))
        at = order[slice(*np.searchsorted(chunk_of_row, [chunk, chunk + 1]))]
        found[at] = states[window_of_row[at] - first, rows[at, 1] - start[at] - 1]
    return found


def _one_by_one(
    recommender: SequentialRecommender, histories: Histories, rows: np.ndarray
) -> np.ndarray:
    found = np.empty((len(rows), recommender.dim), np.float32)
    for start in range(0, len(rows), _EMBED_ROWS):
        part = slice(start, start + _EMBED_ROWS)
        past = sequences.before(histories, rows[part], recommender.config.length)
        times = sequences.times_before(histories, rows[part], recommender.config.length)
        found[part] = _unit(recommender.embed(past, times))
    return found


def knowledge_base(
    recommender: SequentialRecommender,
    histories: Histories,
    split: Split,
    settings: RetrievalSettings = _DEFAULT,
) -> KnowledgeBase:
    """Embeds the training prefixes of the split with `recommender`: every one, or each user's
    latest. Users are in their order, or shuffled where search will be approximate."""
    rows = split.train
    if settings.last_prefixes:
        rows = rows[rows[:, 1] >= split.train_end[rows[:, 0]] - settings.last_prefixes]
    if _bin_width(len(rows), settings):
        place = np.random.default_rng(0).permutation(len(histories))
        rows = rows[np.argsort(place[rows[:, 0]], kind="stable")]
    return KnowledgeBase(
        prefix_embeddings(recommender, histories, rows),
        np.asarray(rows[:, 0], np.int32),
        targets(histories, rows),
        row_times(histories, rows),
    )


def row_times(histories: Histories, rows: np.ndarray) -> np.ndarray:
    """When each row's target was taken: float64[n]."""
    return histories.timestamps[histories.offsets[rows[:, 0]] + rows[:, 1]]


def search(
    base: KnowledgeBase,
    embeddings: np.ndarray,
    users: np.ndarray,
    *,
    k: int,
    before: np.ndarray | None = None,
    settings: RetrievalSettings = _DEFAULT,
    query_chunk: int = 1024,
    base_chunk: int = 8192,
    mesh: jax.sharding.Mesh | None = None,
) -> Neighbors:
    """Exact k nearest distinct users by cosine: the first k of the nearest entries whose user, and
    with `settings.distinct_items` whose next item, no nearer one of them has. Of equal cosines the
    earlier.

    One pass over the base finds the nearest entries of each query. Queries with fewer than k
    distinct users among them are searched again for more entries.

    A base of more entries than `settings.approximate_above`, and of 65,536 or more, is searched in
    bins first, which finds most of these users (`expected_recall`); the bins are the same on every
    mesh. Queries with fewer than k are searched again, exactly.

    Args:
      base: as from `knowledge_base` with the same settings.
      embeddings: float32[n, D] of unit length.
      users: int32[n], never among their own neighbors.
      before: float64[n] or None; only entries with times < before qualify.
      query_chunk, base_chunk: the largest array is float32[query_chunk, base_chunk].
      mesh: the base is split over the mesh's batch axes; every device searches its own part.
    """
    width = _bin_width(len(base.users), settings)
    entries, base_chunk, clock = _placed(base, base_chunk, max(width, _BLOCK), mesh)
    limits = np.full(len(users), _NEVER, np.int32)
    if before is not None:
        limits = np.searchsorted(clock, before, side="left").astype(np.int32)
    query_chunk = min(query_chunk, max(len(users), 1))
    found = _nobody(len(users), k)
    first = max(_FEWEST, sequences.power_of_two(2 * k)), width
    progress = Progress("similar users", len(users), unit="queries")
    for start in range(0, len(users), query_chunk):
        at = np.arange(start, min(start + query_chunk, len(users)))
        count, (candidates, width) = len(at), first
        while len(at):
            find = _search_function(k, candidates, settings.distinct_items, base_chunk, width, mesh)
            *columns, enough = find(
                entries,
                _pad(embeddings[at], query_chunk, 0),
                _pad(np.asarray(users[at], np.int32), query_chunk, -1),
                _pad(limits[at], query_chunk, 0),
            )
            for whole, part in zip(
                (found.similarity, found.users, found.items), columns, strict=True
            ):
                whole[at] = np.asarray(part)[: len(at)]
            again = at[~np.asarray(enough)[: len(at)]]
            candidates, width = (candidates, 0) if width else (candidates * _MORE, 0)
            if 2 * len(again) > count and not first[1]:
                first = candidates, width
            at = again
        progress.update(count)
    return found


def expected_recall(entries: int, k: int, settings: RetrievalSettings) -> float:
    """Share of the k nearest users that `search` finds on average in a base of so many entries; 1
    where it is exact. With `distinct_items` users of other items stand before the k-th, and a
    little more is missed."""
    width = _bin_width(entries, settings)
    hidden = 1 - (1 - 1 / -(-entries // width)) ** np.arange(k) if width else np.zeros(k)
    return float(1 - hidden.mean())


def _bin_width(entries: int, settings: RetrievalSettings) -> int:
    """Entries of a bin, a power of two; 0 for an exact search. Depends on nothing but the base, so
    that a neighbor is found on every mesh or on none."""
    if not 0 < settings.approximate_above < entries:
        return 0
    width = 1 << max(entries // _BINS, 1).bit_length() - 1
    return min(width, _BIN[1]) if width >= _BIN[0] else 0


def _placed(
    base: KnowledgeBase, base_chunk: int, block: int, mesh: jax.sharding.Mesh | None
) -> tuple[_Entries, int, np.ndarray]:
    """The base on devices, filled up to chunks; their size, a multiple of `block`; and the moments
    that times are ranks of."""
    shards = 1 if mesh is None else num_batch_shards(mesh)
    base_chunk = min(base_chunk, max(-(-len(base.users) // shards), 1))
    base_chunk = -(-base_chunk // block) * block
    clock = np.unique(base.times)
    entries = {
        "embeddings": base.embeddings,
        "users": base.users,
        "items": base.items,
        # times as ranks: seconds since 1970 do not fit float32
        "times": np.searchsorted(clock, base.times).astype(np.int32),
    }
    size = -(-len(base.users) // (shards * base_chunk)) * shards * base_chunk
    fill = {"embeddings": 0, "users": -1, "items": -1, "times": _NEVER}
    entries = {name: _pad(array, size, fill[name]) for name, array in entries.items()}
    placed = arrays.put(entries, None if mesh is None else batch_sharding(mesh))
    return placed, base_chunk, clock


def _nobody(queries: int, k: int) -> Neighbors:
    return Neighbors(
        np.full((queries, k), -1, np.int32),
        np.full((queries, k), -1, np.int32),
        np.full((queries, k), -np.inf, np.float32),
    )


def neighbors(
    recommender: SequentialRecommender,
    histories: Histories,
    split: Split,
    rows: np.ndarray,
    *,
    k: int,
    fold_models: Sequence[SequentialRecommender] = (),
    folds: np.ndarray | None = None,
    settings: RetrievalSettings = _DEFAULT,
    mesh: jax.sharding.Mesh | None = None,
) -> Neighbors:
    """Similar users' next items for rows of a split.

    rows int32[n, 2]: training, validation and test rows in any mixture. Without `fold_models` every
    query and the base are embedded with `recommender` (*paper*). With them (*ours*), a row that is
    a training target of user u is searched with `fold_models[folds[u]]` (folds int32[U]), trained
    without u, and the base embedded by that same model; validation and test rows still use
    `recommender`. Under a
    global-time split an entry qualifies only if its next item was taken before the row's own
    target; with `settings.last_prefixes` early training rows then find few, because what is kept of
    other users came later.
    """
    rows = np.asarray(rows, np.int32)
    group = np.full(len(rows), -1)
    if fold_models:
        assert folds is not None, "models of folds need the fold of every user"
        training = rows[:, 1] < split.train_end[rows[:, 0]]
        group[training] = folds[rows[training, 0]]
    found = _nobody(len(rows), k)
    for which in np.unique(group):
        embedder = recommender if which < 0 else fold_models[which]
        at = np.flatnonzero(group == which)
        base = knowledge_base(embedder, histories, split, settings)
        if (share := expected_recall(len(base.users), k, settings)) < 1:
            logging.info(
                "similar users: approximate search of %d prefixes; expect %.4f of the %d nearest",
                len(base.users), share, k,
            )  # fmt: skip
        part = search(
            base,
            prefix_embeddings(embedder, histories, rows[at]),
            rows[at, 0],
            k=k,
            before=row_times(histories, rows[at]) if split.kind == "global_time" else None,
            settings=settings,
            mesh=mesh,
        )
        found.items[at], found.users[at] = part.items, part.users
        found.similarity[at] = part.similarity
    return found


def assign_folds(num_users: int, folds: int, seed: int) -> np.ndarray:
    """Random folds of equal size: int32[U]."""
    return np.random.default_rng(seed).permutation(np.arange(num_users, dtype=np.int32) % folds)


def hit_rate(items: np.ndarray, wanted: np.ndarray) -> float:
    """Share of queries whose own next item is among their neighbors' next items.

    items int32[n, k] as in Neighbors; wanted int32[n]. Compare it between training and validation
    rows: if the training rate is higher, a model trained on these neighbors expects too much of
    them.
    """
    return float(np.mean((items == np.asarray(wanted)[:, None]).any(1))) if len(items) else 0.0


def hit_rates(
    found: Neighbors, histories: Histories, split: Split, rows: np.ndarray
) -> dict[str, float]:
    """`hit_rate` of training, validation and test rows apart; parts without rows are absent."""
    wanted = targets(histories, rows)
    return {name: hit_rate(found.items[at], wanted[at]) for name, at in _parts(split, rows).items()}


def short(found: Neighbors, split: Split, rows: np.ndarray) -> dict[str, int]:
    """How many training, validation and test rows have fewer than k neighbors; parts without any
    are absent."""
    counts = {
        name: int(np.sum(found.items[at, -1] < 0)) for name, at in _parts(split, rows).items()
    }
    return {name: count for name, count in counts.items() if count}


def _parts(split: Split, rows: np.ndarray) -> dict[str, np.ndarray]:
    """Which rows are of each part, bool[n]; parts without rows are absent."""
    keys = rows[:, 0].astype(np.int64) << 32 | rows[:, 1]
    found = {}
    for name in ("train", "validation", "test"):
        part = getattr(split, name)
        at = np.isin(keys, part[:, 0].astype(np.int64) << 32 | part[:, 1])
        if at.any():
            found[name] = at
    return found


@functools.cache
def _search_function(
    k: int,
    candidates: int,
    distinct_items: bool,
    base_chunk: int,
    width: int,
    mesh: jax.sharding.Mesh | None,
) -> Callable[
    [_Entries, np.ndarray, np.ndarray, np.ndarray],
    tuple[jax.Array, jax.Array, jax.Array, jax.Array],
]:
    """Compiled (entries, queries, users, limits) -> similarity, users, items, each [Q, k], and
    whether this many candidates were enough, bool[Q]. width: of the bins, 0 for none."""
    axes = LOGICAL_AXES["batch"]
    nearest_of: Callable[..., _Pair] = _nearest
    if width:
        candidates *= _OF_BINS
        nearest_of = functools.partial(_nearest_of_bins, width=width)

    def local(
        entries: _Entries, queries: jax.Array, users: jax.Array, limits: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        similarity, at = nearest_of(entries, queries, users, limits, candidates, base_chunk)
        nearest = similarity, entries["users"][at], entries["items"][at]
        if mesh is not None:
            similarity, *others = (jax.lax.all_gather(x, axes, axis=1, tiled=True) for x in nearest)
            similarity, at = jax.lax.top_k(similarity, min(candidates, similarity.shape[1]))
            owners, items = (jnp.take_along_axis(x, at, 1) for x in others)
            nearest = similarity, owners, items
        found = _distinct(nearest, k, distinct_items)
        enough = found[1][:, -1] >= 0
        if not width:  # where not even the candidates are all allowed, there are no more
            enough |= nearest[0][:, -1] == -jnp.inf
        return *found, enough

    if mesh is None:
        return jax.jit(local)
    none = PartitionSpec()
    # check_vma: the gathered result is the same everywhere, which the checker cannot prove
    return jax.jit(
        jax.shard_map(
            local,
            mesh=mesh,
            in_specs=(PartitionSpec(axes), none, none, none),
            out_specs=none,
            check_vma=False,
        )
    )


def _nearest(
    entries: _Entries,
    queries: jax.Array,
    users: jax.Array,
    limits: jax.Array,
    count: int,
    base_chunk: int,
) -> tuple[jax.Array, jax.Array]:
    """The nearest allowed entries of each query, chunk by chunk: similarity float32[Q, count],
    -inf where there is none, and where they stand int32[Q, count]."""
    chunks, starts = _chunks(entries, base_chunk)

    def body(best: tuple, part: tuple[_Entries, jax.Array]) -> tuple[tuple, None]:
        chunk, start = part
        found, at = _top(_allowed(chunk, queries, users, limits), count)
        found, at = (
            jnp.concatenate(pair, 1) for pair in zip(best, (found, at + start), strict=True)
        )
        found, column = jax.lax.top_k(found, count)
        return (found, jnp.take_along_axis(at, column, 1)), None

    shape = len(queries), count
    start = jnp.full(shape, -jnp.inf), jnp.zeros(shape, jnp.int32)
    return jax.lax.scan(body, start, (chunks, starts))[0]


def _nearest_of_bins(
    entries: _Entries,
    queries: jax.Array,
    users: jax.Array,
    limits: jax.Array,
    count: int,
    base_chunk: int,
    width: int,
) -> tuple[jax.Array, jax.Array]:
    """As `_nearest`, among the nearest allowed entries of each `width` neighboring ones; [Q, bins]
    where there are fewer bins than `count`."""

    def body(_: None, part: tuple[_Entries, jax.Array]) -> tuple[None, _Pair]:
        chunk, start = part
        bins = _allowed(chunk, queries, users, limits).reshape(len(queries), -1, width)
        best = bins.max(2)
        # the first that equals the largest: on a CPU argmax takes several times as long
        inside = jnp.where(bins == best[:, :, None], jnp.arange(width), width - 1).min(2)
        return None, (best, start + jnp.arange(bins.shape[1]) * width + inside)

    _, found = jax.lax.scan(body, None, _chunks(entries, base_chunk))
    best, at = (jnp.swapaxes(x, 0, 1).reshape(len(queries), -1) for x in found)
    best, column = jax.lax.top_k(best, min(count, best.shape[1]))
    return best, jnp.take_along_axis(at, column, 1)


def _chunks(entries: _Entries, base_chunk: int) -> tuple[_Entries, jax.Array]:
    """What is searched, [chunks, base_chunk, ...], and where each chunk starts."""
    chunks = {
        name: entries[name].reshape(-1, base_chunk, *entries[name].shape[1:])
        for name in ("embeddings", "users", "times")
    }
    return chunks, jnp.arange(len(chunks["users"]), dtype=jnp.int32) * base_chunk


def _allowed(chunk: _Entries, queries: jax.Array, users: jax.Array, limits: jax.Array) -> jax.Array:
    """Cosines float32[Q, base_chunk]; -inf of a query's own user and of what is not before it."""
    similarity = jnp.einsum(
        "qd,nd->qn", queries, chunk["embeddings"], precision=jax.lax.Precision.HIGHEST
    )
    allowed = (chunk["times"] < limits[:, None]) & (chunk["users"] != users[:, None])
    return jnp.where(allowed, similarity, -jnp.inf)


def _top(x: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """`jax.lax.top_k` of float32[Q, N] with N a multiple of _BLOCK, of at most `count`.

    The `count` largest stand in the `count` blocks with the largest maxima: sorting these takes
    less than sorting all. Equal values keep their order, as the blocks do.
    """
    rows, width = x.shape
    if width <= 2 * count * _BLOCK:
        return jax.lax.top_k(x, min(count, width))
    blocks = x.reshape(rows, -1, _BLOCK)
    chosen = jnp.sort(jax.lax.top_k(blocks.max(2), count)[1], axis=1)
    inside = jnp.take_along_axis(blocks, chosen[:, :, None], 1).reshape(rows, -1)
    found, at = jax.lax.top_k(inside, count)
    return found, jnp.take_along_axis(chosen, at // _BLOCK, 1) * _BLOCK + at % _BLOCK


def _distinct(nearest: _Found, k: int, distinct_items: bool) -> _Found:
    """Of candidates in order, the first k whose user, and maybe item, is new: [Q, k] each; -1 and
    -inf where there are fewer."""
    similarity, users, items = nearest

    def pick(left: jax.Array, _: None) -> tuple[jax.Array, _Found]:
        at = jnp.argmax(left, 1)[:, None]
        best, owner, item = (jnp.take_along_axis(x, at, 1) for x in (left, users, items))
        used = users == owner
        if distinct_items:
            used |= items == item
        found = best > -jnp.inf
        picked = best, jnp.where(found, owner, -1), jnp.where(found, item, -1)
        return jnp.where(used, -jnp.inf, left), jax.tree.map(lambda x: x[:, 0], picked)

    _, found = jax.lax.scan(pick, similarity, None, length=k)
    similarity, users, items = (jnp.swapaxes(x, 0, 1) for x in found)
    return similarity, users, items


@jax.jit
def _unit(x: jax.Array) -> jax.Array:
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def _pad(array: np.ndarray, size: int, value: int) -> np.ndarray:
    array = np.asarray(array)
    widths = [(0, size - len(array))] + [(0, 0)] * (array.ndim - 1)
    return np.pad(array, widths, constant_values=value)
