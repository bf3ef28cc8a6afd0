"""Users with a history in words and 1 + 20 candidates, with images or with keywords alone."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from benchmarks.accelerator.peers import weights
from benchmarks.accelerator.peers.pieces import Writer, with_text
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


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Of the work.

    Attributes:
      users: how many.
      prefix: tokens of the longest history; the shortest has a sixth less.
      words: tokens of text of the longest candidate; the shortest has a quarter less.
      image: height and width of a candidate's image in pixels; None: it has none.
      tail: tokens after all that, the same for all candidates.
    """

    users: int
    prefix: int
    words: int
    image: tuple[int, int] | None = None
    tail: int = 0

    @property
    def slots(self) -> int:
        """Tokens of an image, its marks among them."""
        return self.image[0] * self.image[1] // 28**2 + 2 if self.image else 0


def users(tiny: bool, kind: str) -> Users:
    """4 users with images of 64 slots, or 16 with keywords: 250 to 300 tokens of history, 30 to 40
    of words a candidate."""
    longest, text = (40, 10) if tiny else (300, 40)
    image = ((56, 56) if tiny else (224, 224)) if kind == "images" else None
    count = 2 if tiny else (4 if image else 16)
    return made(Writer(weights.config(tiny), seed=4), Sizes(count, longest, text, image))


def made(writer: Writer, sizes: Sizes) -> Users:
    """Users of these sizes."""
    tail = writer.words(sizes.tail)
    found = []
    for user in range(sizes.users):
        prefix = writer.piece(sizes.prefix - user * sizes.prefix // 6 // sizes.users)
        candidates = [
            with_text(
                writer.piece(
                    sizes.slots + sizes.words - (c + user) % (sizes.words // 4), sizes.image
                ),
                tail,
            )
            for c in range(CANDIDATES)
        ]
        found.append(User(prefix, candidates))
    return Users(found, writer.processor)


def speeds(work: Users, seconds: float) -> dict[str, Any]:
    return {
        "seconds": seconds,
        "users_per_second": len(work.users) / seconds,
        "candidates_per_second": len(work.candidates) / seconds,
    }
