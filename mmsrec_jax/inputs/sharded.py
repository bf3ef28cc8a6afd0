"""Batches put together from shards, so that no row depends on how many processes make them."""

from collections.abc import Callable, Iterator
from typing import Any

import grain

from mmsrec_jax.models.batch import Batch, concatenate
from mmsrec_jax.runtime import processes
from mmsrec_jax.runtime.errors import UserError

Make = Callable[[int, int], grain.IterDataset]


class Sharded:
    """The batches of several data sets side by side; each process makes some of them.

    Args:
      make: `(shard, shards) -> data set`, of which every batch has its share of the rows.
      shards: how many; 0 is one a process. More processes than shards cannot take part, so a run
        that may go on with more of them starts with more shards.
      share: `(index, count)`: which of how many equal parts of the shards this process makes, as
        from `sharding.process_batch_shard`.

    Raises:
      UserError: shards that the processes cannot share, here or in a stored position.
    """

    def __init__(self, make: Make, shards: int, share: tuple[int, int]):
        self._make, self._share = make, share
        self._shards = shards or share[1]
        self._mine(self._shards)

    def __iter__(self) -> "_Iterator":
        return _Iterator(self)

    def _mine(self, shards: int) -> range:
        index, count = self._share
        if shards % count:
            raise UserError(
                f"batches are packed in {shards} shards, which {count} processes cannot share: "
                f"start with config.input_shards a multiple of {count}, or with other processes"
            )
        each = shards // count
        return range(index * each, (index + 1) * each)

    def _open(self, shards: int) -> dict[int, grain.DatasetIterator]:
        return {shard: iter(self._make(shard, shards)) for shard in self._mine(shards)}


class _Iterator(Iterator[Batch]):
    """Its position, a list of that of every shard, is the same in all processes and fits any
    number of them that can share the shards."""

    def __init__(self, dataset: Sharded):
        self._dataset = dataset
        self._shards = dataset._shards
        self._iterators = dataset._open(self._shards)

    def __next__(self) -> Batch:
        parts = [next(iterator) for iterator in self._iterators.values()]
        if len(parts) == 1:
            return parts[0]
        return concatenate(parts)

    def get_state(self) -> list[Any]:
        """All processes have to ask at the same step."""
        mine = {str(shard): it.get_state() for shard, it in self._iterators.items()}
        found = {shard: state for part in processes.gather(mine) for shard, state in part.items()}
        return [found[str(shard)] for shard in range(self._shards)]

    def set_state(self, states: list[Any]) -> None:
        if len(states) != self._shards:
            self.close()
            self._shards = len(states)
            self._iterators = self._dataset._open(self._shards)
        for shard, iterator in self._iterators.items():
            iterator.set_state(states[shard])

    def close(self) -> None:
        for iterator in self._iterators.values():
            iterator.close()
