"""The whole catalog scored for prompts of users, from stored keys and values of items (*ours*)."""

import copy
import functools
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from mmsrec_jax.inference.pair_margins import pair_margins
from mmsrec_jax.inputs.pairs import PairPrompts
from mmsrec_jax.models.batch import Batch
from mmsrec_jax.models.late_interaction import Encoded, Tail, encode
from mmsrec_jax.models.mllm import MLLM
from mmsrec_jax.runtime import sharding
from mmsrec_jax.runtime.arrays import to_devices
from mmsrec_jax.runtime.progress import Progress


class Chunk(NamedTuple):
    """Some items, encoded, and the positions of their tails int32[M]."""

    encoded: Encoded
    tails: jax.Array


class _Programs(NamedTuple):
    encode: Callable[[nnx.State, Batch], Encoded]
    score: Callable[[nnx.State, Encoded, Chunk, np.ndarray], jax.Array]


@functools.lru_cache(maxsize=8)
def programs(
    graphdef: nnx.GraphDef, yes_no_ids: tuple[int, int], closeness: float, mesh: Mesh
) -> _Programs:
    """Compiled once a model and shape: encode, and `pair_margins` float32[B, M]."""

    def encoded(state: nnx.State, batch: Batch) -> Encoded:
        return encode(nnx.merge(graphdef, state), batch)

    def score(state: nnx.State, users: Encoded, chunk: Chunk, tail: np.ndarray) -> jax.Array:
        return pair_margins(
            nnx.merge(graphdef, state),
            users,
            chunk.encoded,
            Tail(jnp.asarray(tail), chunk.tails),
            yes_no_ids=yes_no_ids,
            closeness=closeness,
        )

    return _Programs(jax.jit(encoded), jax.jit(score, out_shardings=sharding.replicated(mesh)))


class CachedCatalog:
    """Every item encoded once; then `pair_margins` of all of them for rows of `prompts`.

    A `ranking.RowSystem`. Keys and values of the items stay on the devices, divided over the shards
    of the batch.

    Args:
      name: of the system, for progress lines.
      prompts: of the rows that are scored.
      score_users, score_items: of a compiled program.

    Attributes:
      counts: what was left out or cut in making the rows of items and of prompts.

    Raises:
      UserError: as of `PairPrompts`.
    """

    def __init__(
        self,
        name: str,
        model: MLLM,
        prompts: PairPrompts,
        *,
        score_users: int,
        score_items: int,
        yes_no_ids: tuple[int, int],
        closeness: float,
        mesh: Mesh,
    ):
        self._name, self._prompts, self._mesh = name, prompts, mesh
        self.counts: Counter[str] = Counter()
        shards = sharding.num_batch_shards(mesh)
        self._users, self._items = (-(-n // shards) * shards for n in (score_users, score_items))
        self._share = sharding.process_batch_shard(mesh)
        graphdef, state = nnx.split(model)
        self._state = jax.device_put(state, sharding.shardings(state, mesh))
        self._programs = programs(graphdef, yes_no_ids, closeness, mesh)
        self._store = self._encoded_items()

    def for_prompts(self, prompts: PairPrompts) -> "CachedCatalog":
        """The same stored items, for other rows."""
        found = copy.copy(self)
        found._prompts = prompts
        return found

    def extended(self, prompts: PairPrompts) -> "CachedCatalog":
        """For `prompts` of a catalog with more items behind those that are stored: chunks that are
        full stay."""
        found = copy.copy(self)
        found._prompts = prompts
        full = self.num_items // self._items
        found._store = self._store[:full] + found._encoded_items(full * self._items)
        return found

    @property
    def name(self) -> str:
        return self._name

    @property
    def num_items(self) -> int:
        return len(self._prompts.renderer)

    def nbytes(self) -> int:
        """Of the stored keys and values, on all devices together."""
        return sum(x.nbytes for chunk in self._store for x in jax.tree.leaves(chunk))

    def row_scores(self, at: np.ndarray) -> jax.Array:
        """float32[n, items] for rows int[n] of the prompts."""
        found = []
        for start in range(0, len(at), self._users):
            some = at[start : start + self._users]
            padded = np.pad(some, (0, self._users - len(some)), constant_values=-1)
            batch = self._prompts.users(self._mine(padded).tolist(), self.counts)
            with jax.set_mesh(self._mesh):
                users = self._programs.encode(self._state, to_devices(batch, self._mesh))
                scores = [
                    self._programs.score(self._state, users, chunk, self._prompts.tail)
                    for chunk in self._store
                ]
            found.append(jnp.concatenate(scores, axis=1)[: len(some), : self.num_items])
        return jnp.concatenate(found)

    def _encoded_items(self, first: int = 0) -> list[Chunk]:
        """Chunks of the items from `first` on."""
        chunks = []
        progress = Progress(f"encode items for {self._name}", self.num_items - first, unit="items")
        for start in range(first, self.num_items, self._items):
            items = np.arange(start, start + self._items)
            items = np.where(items < self.num_items, items, -1)
            batch, tails = self._prompts.items(self._mine(items).tolist(), self.counts)
            with jax.set_mesh(self._mesh):
                encoded = self._programs.encode(self._state, to_devices(batch, self._mesh))
            if not len(self._prompts.tail):  # nothing reads its tokens
                encoded = encoded.without_tokens()
            chunks.append(Chunk(encoded, to_devices(tails, self._mesh)))
            progress.update(int((items >= 0).sum()))
        return chunks

    def _mine(self, rows: np.ndarray) -> np.ndarray:
        index, count = self._share
        each = len(rows) // count
        return rows[index * each : (index + 1) * each]
