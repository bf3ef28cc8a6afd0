"""What someone who misspelt an id may have meant."""

import numpy as np

from mmsrec_jax.data.records import LONGEST_ID

_FARTHEST = 2  # letters


def did_you_mean(id: str, known: np.ndarray, *, most: int = 3) -> str:
    """ "did you mean 'a', 'b'?" of the nearest ids in `known` str[n], else an empty text."""
    near = nearest(id, known, most=most)
    return f"did you mean {', '.join(map(repr, near))}?" if near else ""


def nearest(id: str, known: np.ndarray, *, most: int = 3) -> list[str]:
    """At most so many ids of `known` str[n] that differ from `id` in one place of at most two
    letters (a wrong, missing, extra or swapped one), the least different first.

    Capitals do not count. Less than half of a short id may differ.
    """
    if not (isinstance(id, str) and len(known) and len(id) <= LONGEST_ID):  # callers may be wrong
        return []
    id = id.lower()
    lowered = np.char.lower(known)
    width = max(lowered.dtype.itemsize // 4, len(id))
    letters = lowered.astype(f"U{width}").view(np.uint32).reshape(len(known), width)
    lengths = np.char.str_len(lowered)
    wanted = np.array([id], f"U{width}").view(np.uint32)
    at_start = _agree(letters == wanted, np.minimum(lengths, len(id)))
    # Aligned by their last letters.
    back = np.arange(width)
    from_end = np.take_along_axis(letters, np.maximum(lengths[:, None] - 1 - back, 0), axis=1)
    wanted_from_end = wanted[np.maximum(len(id) - 1 - back, 0)]
    at_end = _agree(from_end == wanted_from_end, np.minimum(lengths, len(id)))
    shared = np.minimum(at_start + at_end, np.minimum(lengths, len(id)))
    distance = np.maximum(lengths, len(id)) - shared
    order = np.argsort(distance, kind="stable")[:most]
    farthest = min(_FARTHEST, (len(id) - 1) // 2)
    return [str(known[i]) for i in order if distance[i] <= farthest]


def _agree(equal: np.ndarray, most: np.ndarray) -> np.ndarray:
    """int[n]: how many letters in a row are equal from the first on, at most `most` int[n]."""
    return np.minimum(np.logical_and.accumulate(equal, axis=1).sum(axis=1), most)
