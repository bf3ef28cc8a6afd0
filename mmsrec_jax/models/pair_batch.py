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
      words: what follows a user's prompt when the next item's keywords are asked for: the question
        and the answer.
      word_weights: weight of each of these tokens as a target; 0 for the question and padding.
      history_weights: weight of the prompts' tokens as targets: 1 for the items of a history but
        its first, which are next items of what stands before them.
      history_ends: the last token of each item of a history but the last.
      history_nexts: which of the M items is the next of that history; -1 = none of them.
    """

    users: Batch
    items: Batch
    tails: Annotated[Array, "int32[M]"]
    targets: Annotated[Array, "int32[B]"]
    competes: Annotated[Array, "bool[B, M]"]
    log_frequency: Annotated[Array, "float32[M]"]
    words: Annotated[Array, "int32[B, T]"]
    word_weights: Annotated[Array, "float32[B, T]"]
    history_weights: Annotated[Array, "float32[B, L]"]
    history_ends: Annotated[Array, "int32[B, K]"]
    history_nexts: Annotated[Array, "int32[B, K]"]
