"""What was left out or cut while examples were made, in the log."""

from collections import Counter

import jax
from absl import logging

from mmsrec_jax.runtime import processes, sharding


def log_counts(name: str, counts: Counter, mesh: jax.sharding.Mesh) -> None:
    """One line for each thing that was counted while examples were made, by all processes.

    Of processes that made the same part of the batches (`sharding.process_batch_shard`) one counts.
    """
    part, _ = sharding.process_batch_shard(mesh)
    counts = sum(map(Counter, dict(processes.gather([part, counts])).values()), Counter())
    for what, count in sorted(counts.items()):
        logging.info("%s: %s %s", name, f"{count:,}", what.replace("_", " "))
