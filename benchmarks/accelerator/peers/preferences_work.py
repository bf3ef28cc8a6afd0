"""Prompts about windows of users of a toyshop, whose texts both sides write."""

import dataclasses
import functools
import tempfile
from pathlib import Path

import numpy as np

from benchmarks import windows
from benchmarks.accelerator.peers import weights
from benchmarks.accelerator.peers.pieces import Writer
from mmsrec_jax.hf import tokenizer
from mmsrec_jax.hf.processor import ImageProcessor
from mmsrec_jax.inputs.tastes import Tastes
from mmsrec_jax.prompts import Chat

OURS, THEIRS = "ours, all users at once", "transformers, one user and one window at a time"
KEPT = "preferences_ours"  # what our side leaves for theirs, see `side.keep`
# With so few tokens prompts are about as long as with a published tokenizer. All their ids are
# words of the model, and none stands for an image there.
_VOCABULARY = 600


@dataclasses.dataclass(frozen=True)
class Work:
    """Windows to write of, in prompts whose texts of earlier windows are those that counting gives:
    a near tie in one text changes no other prompt.

    batch_size: of ours; peer_users: whom theirs writes of, the first; new_tokens: of every text,
    none of which ends earlier; suppress: tokens that are never written.
    """

    tastes: Tastes
    batch_size: int
    peer_users: int
    new_tokens: int
    suppress: tuple[int, ...]
    processor: ImageProcessor

    @functools.cached_property
    def rows(self) -> np.ndarray:
        """int32[n, 2] (user, window), of all users."""
        return windows.rows_of(self.tastes, len(self.tastes.histories))

    @functools.cached_property
    def peer_rows(self) -> np.ndarray:
        """The first of `rows`, which theirs writes."""
        return windows.rows_of(self.tastes, self.peer_users)


def work(tiny: bool) -> Work:
    """256 users with 1,080 windows, texts of 24 tokens; tiny: 6 users, 8 tokens."""
    users, batch, peers, new = (6, 8, 2, 8) if tiny else (256, 128, 3, 24)
    shop, writer = windows.Shop(users), Writer(weights.config(tiny), seed=0)
    with tempfile.TemporaryDirectory() as folder:
        chat = Chat(tokenizer.train(shop.corpus(), _VOCABULARY, Path(folder)))
    tastes = shop.tastes(chat, new)
    return Work(tastes, batch, peers, new, writer.image_tokens, writer.processor)
