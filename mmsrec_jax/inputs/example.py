"""One training or scoring example in tokens, before it is part of a batch."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmsrec_jax.prompts import Piece


@dataclasses.dataclass(frozen=True, eq=False)
class Example:
    """A sequence, or a shared prefix with suffixes laid out one after the other.

    Attributes:
      tokens: int32[n], image slots expanded.
      loss_weights: float32[n], weight of each token as a target.
      suffix_ids: int32[n], 0 prefix, 1.. suffixes.
      positions: int32[3, n], M-RoPE; every suffix goes on from the prefix's end.
      images: `ImageProcessor.patchify` dicts in slot order.
      answer_positions: int32[c], where the next token is the yes/no label; -1 = no such suffix.
      labels: int32[c], 1 for yes.
      index: the row or item it was made of; -1 = filler that makes up a full batch.
      counts: what was left out or cut in making it.
    """

    tokens: np.ndarray
    loss_weights: np.ndarray
    suffix_ids: np.ndarray
    positions: np.ndarray
    images: tuple[Mapping[str, Any], ...] = ()
    answer_positions: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int32))
    labels: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int32))
    index: int = -1
    counts: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def num_patches(self) -> int:
        return sum(len(image["patches"]) for image in self.images)

    @property
    def num_targets(self) -> int:
        return int(np.count_nonzero(self.loss_weights))


def sequence(
    prompt: Piece, answer: np.ndarray, *, index: int = -1, counts: Mapping[str, int] | None = None
) -> Example:
    """A prompt and its answer int32[m] (may be empty), every answer token with weight 1."""
    n, m = len(prompt), len(answer)
    after = np.broadcast_to(prompt.next_position + np.arange(m, dtype=np.int32), (3, m))
    return Example(
        tokens=np.concatenate([prompt.tokens, answer]).astype(np.int32),
        loss_weights=np.concatenate([np.zeros(n, np.float32), np.ones(m, np.float32)]),
        suffix_ids=np.zeros(n + m, np.int32),
        positions=np.concatenate([prompt.positions, after], axis=1),
        images=prompt.images,
        index=index,
        counts=counts or {},
    )


def side_by_side(
    prefix: Piece,
    texts: Sequence[np.ndarray],
    *,
    index: int = -1,
    counts: Mapping[str, int] | None = None,
) -> Example:
    """A prefix and texts, each int32[m], as suffixes 1, 2, ...; every token of a text has weight 1.

    An empty text is a suffix without tokens.
    """
    sizes = [len(text) for text in texts]
    own = sum(sizes)
    after = np.concatenate([np.zeros(0, int), *map(np.arange, sizes)]) + prefix.next_position
    return Example(
        tokens=np.concatenate([prefix.tokens, *texts]).astype(np.int32),
        loss_weights=np.repeat(np.array([0, 1], np.float32), [len(prefix), own]),
        suffix_ids=np.repeat(np.arange(1 + len(texts), dtype=np.int32), [len(prefix), *sizes]),
        positions=np.concatenate(
            [prefix.positions, np.broadcast_to(after.astype(np.int32), (3, own))], axis=1
        ),
        images=prefix.images,
        index=index,
        counts=counts or {},
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Suffix:
    """A candidate's suffix that also carries text to learn, between the piece and the label.

    Attributes:
      piece: what the user says of the candidate.
      targets: int32[m], what the model writes before its label, such as a chain of thought.
      weight: of each of these tokens in the loss.
    """

    piece: Piece
    targets: np.ndarray
    weight: float

    def __len__(self) -> int:
        return len(self.piece) + len(self.targets)


def with_suffixes(
    prefix: Piece,
    suffixes: Sequence[Piece | Suffix | None],
    labels: Sequence[int],
    *,
    yes_no_ids: tuple[int, int],
    positive_weight: float,
    index: int = -1,
    counts: Mapping[str, int] | None = None,
) -> Example:
    """A prefix and one suffix per candidate, each followed by its yes/no label.

    suffixes: None where there is no such candidate; labels: 1 or 0 each; yes_no_ids: ids of
    (yes, no). A yes weighs `positive_weight`, a no weighs 1.
    """
    yes, no = yes_no_ids
    tokens, positions, ids = [prefix.tokens], [prefix.positions], [np.zeros(len(prefix), np.int32)]
    weights = [np.zeros(len(prefix), np.float32)]
    images = list(prefix.images)
    answers = np.full(len(suffixes), -1, np.int32)
    offset = len(prefix)
    for c, (suffix, label) in enumerate(zip(suffixes, labels, strict=True)):
        if suffix is None:
            continue
        if isinstance(suffix, Piece):
            suffix = Suffix(suffix, np.zeros(0, np.int32), 0.0)
        piece, written = suffix.piece, np.append(suffix.targets, yes if label else no)
        tokens += [piece.tokens, written.astype(np.int32)]
        after = piece.next_position + np.arange(len(written), dtype=np.int32)
        after = np.broadcast_to(after, (3, len(written)))
        positions.append(np.concatenate([piece.positions, after], 1) + prefix.next_position)
        n = len(suffix)
        ids.append(np.full(n + 1, c + 1, np.int32))
        weight = np.zeros(n + 1, np.float32)
        weight[len(piece) : n] = suffix.weight
        weight[n] = positive_weight if label else 1.0
        weights.append(weight)
        images += piece.images
        answers[c] = offset + n - 1
        offset += n + 1
    return Example(
        tokens=np.concatenate(tokens),
        loss_weights=np.concatenate(weights),
        suffix_ids=np.concatenate(ids),
        positions=np.concatenate(positions, axis=1),
        images=tuple(images),
        answer_positions=answers,
        labels=np.array(labels, np.int32),
        index=index,
        counts=counts or {},
    )


def filler() -> Example:
    """Nothing: an empty row that makes the last batch of an evaluation full."""
    empty = np.zeros(0, np.int32)
    return Example(empty, np.zeros(0, np.float32), empty, np.zeros((3, 0), np.int32))
