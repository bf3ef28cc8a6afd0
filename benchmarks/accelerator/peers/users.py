"""Users with a history in words and 1 + 20 candidates, with images or with keywords alone."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from benchmarks.accelerator.peers.pieces import Writer
from mmsrec_jax.hf.processor import ImageProcessor
from mmsrec_jax.prompts.chat import Piece

KINDS = ("images", "keywords")
CANDIDATES = 21


def allowed(tiny: bool) -> float:
    """How far scores logit(yes) - logit(no), of deviation one, may be apart; tiny is float32, else
    bfloat16."""
    return 1e-4 if tiny else 0.3


@dataclasses.dataclass(frozen=True)
class User:
    """prefix: the history; candidates: what follows it for each, up to the label."""

    prefix: Piece
    candidates: Sequence[Piece]


@dataclasses.dataclass(frozen=True)
class Users:
    """A batch of them."""

    users: Sequence[User]
    processor: ImageProcessor

    @property
    def candidates(self) -> list[Piece]:
        """Of all users, one user's after the other's."""
        return [piece for user in self.users for piece in user.candidates]


def users(tiny: bool, kind: str) -> Users:
    """4 users with images of 64 slots, or 16 with keywords: 250 to 300 tokens of history, 30 to 40
    of words a candidate."""
    writer = Writer(tiny, seed=4)
    longest, text = (40, 10) if tiny else (300, 40)
    size = ((56, 56) if tiny else (224, 224)) if kind == "images" else None
    slots = (size[0] * size[1] // 28**2 + 2) if size else 0
    count = 2 if tiny else (4 if size else 16)
    made = []
    for user in range(count):
        prefix = writer.piece(longest - user * longest // 6 // count)
        candidates = [
            writer.piece(slots + text - (c + user) % (text // 4), size) for c in range(CANDIDATES)
        ]
        made.append(User(prefix, candidates))
    return Users(made, writer.processor)


def speeds(work: Users, seconds: float) -> dict[str, Any]:
    return {
        "seconds": seconds,
        "users_per_second": len(work.users) / seconds,
        "candidates_per_second": len(work.candidates) / seconds,
    }
