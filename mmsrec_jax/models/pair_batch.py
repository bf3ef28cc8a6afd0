"""Users and items of one update in the cached form, every item a candidate of every user.

Importable without jax, as `models.batch` is.
"""

import dataclasses
from typing import Annotated

from mmsrec_jax.models.batch import Array, Batch


@dataclasses.dataclass(frozen=True, eq=False)
class PairBatch:
    """B users and M items.

    Attributes:
      users: a prompt a row, text only; its positions end where those of items begin.
      items: what is said of an item a row, but for the tail.
      tails: where the tail of an item begins.
      targets: which of the M items the user chose.
      competes: the items that a user's target is compared with, the target among them.
      log_frequency: logarithm of the probability that an item is in such a batch.
    """

    users: Batch
    items: Batch
    tails: Annotated[Array, "int32[M]"]
    targets: Annotated[Array, "int32[B]"]
    competes: Annotated[Array, "bool[B, M]"]
    log_frequency: Annotated[Array, "float32[M]"]
