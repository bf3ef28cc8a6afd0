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
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
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
_Found = tuple[jax.Array, jax.Array, jax.Array]  # similarity, users and items, each [Q, columns]
_NEVER = np.iinfo(np.int32).max
_BLOCK = 16  # entries of which the largest is looked at first
_FEWEST = 32  # candidates of a query
_MORE = 4  # times as many, for queries whose candidates did not suffice
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
    seed: int = seed_setting("Of the assignment of users to folds.")


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
    """One entry per training prefix, ordered by user.

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
    recommender: SequentialRecommender, histories: Histories, split: Split
) -> KnowledgeBase:
    """Embeds every training prefix of the split with `recommender`."""
    return KnowledgeBase(
        prefix_embeddings(recommender, histories, split.train),
        np.asarray(split.train[:, 0], np.int32),
        targets(histories, split.train),
        row_times(histories, split.train),
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
    distinct_items: bool = False,
    query_chunk: int = 1024,
    base_chunk: int = 8192,
    mesh: jax.sharding.Mesh | None = None,
) -> Neighbors:
    """Exact k nearest distinct users by cosine: the first k of the nearest entries whose user, and
    with `distinct_items` whose next item, no nearer one of them has. Of equal cosines the earlier.

    One pass over the base finds the nearest entries of each query. Queries with fewer than k
    distinct users among them are searched again for more entries.

    Args:
      base: as from `knowledge_base`.
      embeddings: float32[n, D] of unit length.
      users: int32[n], never among their own neighbors.
      before: float64[n] or None; only entries with times < before qualify.
      query_chunk, base_chunk: the largest array is float32[query_chunk, base_chunk].
      mesh: the base is split over the mesh's batch axes; every device searches its own part.
    """
    entries, base_chunk, clock = _placed(base, base_chunk, mesh)
    limits = np.full(len(users), _NEVER, np.int32)
    if before is not None:
        limits = np.searchsorted(clock, before, side="left").astype(np.int32)
    query_chunk = min(query_chunk, max(len(users), 1))
    found = _nobody(len(users), k)
    first = max(_FEWEST, sequences.power_of_two(2 * k))
    progress = Progress("similar users", len(users), unit="queries")
    for start in range(0, len(users), query_chunk):
        at = np.arange(start, min(start + query_chunk, len(users)))
        count, candidates = len(at), first
        while len(at):
            find = _search_function(k, candidates, distinct_items, base_chunk, mesh)
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
            candidates *= _MORE
            if 2 * len(again) > len(at):
                first = candidates
            at = again
        progress.update(count)
    return found


def _placed(
    base: KnowledgeBase, base_chunk: int, mesh: jax.sharding.Mesh | None
) -> tuple[_Entries, int, np.ndarray]:
    """The base on devices, filled up to chunks, their size, and the moments that times are ranks
    of."""
    shards = 1 if mesh is None else num_batch_shards(mesh)
    base_chunk = min(base_chunk, max(-(-len(base.users) // shards), 1))
    base_chunk = -(-base_chunk // _BLOCK) * _BLOCK
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
    distinct_items: bool = False,
    mesh: jax.sharding.Mesh | None = None,
) -> Neighbors:
    """Similar users' next items for rows of a split.

    rows int32[n, 2]: training, validation and test rows in any mixture. Without `fold_models` every
    query and the base are embedded with `recommender` (*paper*). With them (*ours*), a row that is
    a training target of user u is searched with `fold_models[folds[u]]` (folds int32[U]), trained
    without u, and the base embedded by that same model; validation and test rows still use
    `recommender`. Under a
    global-time split an entry qualifies only if its next item was taken before the row's own
    target.
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
        part = search(
            knowledge_base(embedder, histories, split),
            prefix_embeddings(embedder, histories, rows[at]),
            rows[at, 0],
            k=k,
            before=row_times(histories, rows[at]) if split.kind == "global_time" else None,
            distinct_items=distinct_items,
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
    keys = rows[:, 0].astype(np.int64) << 32 | rows[:, 1]
    rates = {}
    for name in ("train", "validation", "test"):
        part = getattr(split, name)
        at = np.isin(keys, part[:, 0].astype(np.int64) << 32 | part[:, 1])
        if at.any():
            rates[name] = hit_rate(found.items[at], wanted[at])
    return rates


@functools.cache
def _search_function(
    k: int, candidates: int, distinct_items: bool, base_chunk: int, mesh: jax.sharding.Mesh | None
) -> Callable[
    [_Entries, np.ndarray, np.ndarray, np.ndarray],
    tuple[jax.Array, jax.Array, jax.Array, jax.Array],
]:
    """Compiled (entries, queries, users, limits) -> similarity, users, items, each [Q, k], and
    whether this many candidates were enough, bool[Q]."""
    axes = LOGICAL_AXES["batch"]

    def local(
        entries: _Entries, queries: jax.Array, users: jax.Array, limits: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        similarity, at = _nearest(entries, queries, users, limits, candidates, base_chunk)
        nearest = similarity, entries["users"][at], entries["items"][at]
        if mesh is not None:
            similarity, *others = (jax.lax.all_gather(x, axes, axis=1, tiled=True) for x in nearest)
            similarity, at = jax.lax.top_k(similarity, candidates)
            owners, items = (jnp.take_along_axis(x, at, 1) for x in others)
            nearest = similarity, owners, items
        found = _distinct(nearest, k, distinct_items)
        # Where not even the candidates are all allowed, there are no more.
        enough = (found[1][:, -1] >= 0) | (nearest[0][:, -1] == -jnp.inf)
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
    chunks = {
        name: entries[name].reshape(-1, base_chunk, *entries[name].shape[1:])
        for name in ("embeddings", "users", "times")
    }

    def body(best: tuple, part: tuple[_Entries, jax.Array]) -> tuple[tuple, None]:
        chunk, start = part
        similarity = jnp.einsum(
            "qd,nd->qn", queries, chunk["embeddings"], precision=jax.lax.Precision.HIGHEST
        )
        allowed = (chunk["times"] < limits[:, None]) & (chunk["users"] != users[:, None])
        found, at = _top(jnp.where(allowed, similarity, -jnp.inf), count)
        found, at = (
            jnp.concatenate(pair, 1) for pair in zip(best, (found, at + start), strict=True)
        )
        found, column = jax.lax.top_k(found, count)
        return (found, jnp.take_along_axis(at, column, 1)), None

    shape = len(queries), count
    start = jnp.full(shape, -jnp.inf), jnp.zeros(shape, jnp.int32)
    starts = jnp.arange(len(chunks["users"]), dtype=jnp.int32) * base_chunk
    return jax.lax.scan(body, start, (chunks, starts))[0]


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
