"""A source of examples that are nothing but sizes, and which draws a batch holds."""

import numpy as np

from mmsrec_jax.inputs.example import Example

WIDTH = 1  # values of a patch


class Sized:
    """Row r's example has `tokens[r]` tokens, `patches[r]` patches and `answers[r]` labels; its
    first two tokens are 1 + row and 1 + draw, all others 0."""

    patch_width = WIDTH

    def __init__(self, tokens, patches, answers):
        self.tokens, self.patches, self.answers = tokens, patches, answers

    def __len__(self):
        return len(self.tokens)

    def example(self, row, draw):
        n, m = int(self.tokens[row]), int(self.patches[row])
        tokens = np.zeros(n, np.int32)
        tokens[:2] = 1 + row, 1 + draw
        image = {
            "patches": np.ones((m, WIDTH), np.uint8),
            "hw": np.zeros((m, 2), np.int32),
            "window_ids": np.ones(m, np.int32),
        }
        return Example(
            tokens=tokens,
            loss_weights=(np.arange(n) == n - 1).astype(np.float32),
            suffix_ids=np.zeros(n, np.int32),
            positions=np.zeros((3, n), np.int32),
            images=(image,) if m else (),
            answer_positions=np.arange(int(self.answers[row]), dtype=np.int32),
            labels=np.zeros(int(self.answers[row]), np.int32),
            index=row,
        )


def as_films(count, seed=0):
    """Examples about as large as those of SFT on films with posters: 70% are lists of a target and
    seven others, of which seldom three share a row of 4,096 tokens."""
    rng = np.random.default_rng(seed)
    kind = rng.choice(3, count, p=(0.7, 0.1, 0.2))
    plots = np.clip(rng.normal(165, 60, (count, 8)), 40, 256)
    texts = 280 + np.where(rng.random((count, 8)) < 0.78, plots, 8).sum(axis=1)
    tokens = np.choose(kind, (texts + 8 * 72, texts + 8 * 9, rng.integers(90, 260, count)))
    return Sized(tokens.astype(int), 8 * 176 * (kind == 0), 8 * (kind == 0))


def small(count, seed=0, too_large=0):
    """Examples for rows of 64 tokens, 12 patches and 5 labels, each of which bounds some rows; the
    first `too_large` of them have more tokens."""
    rng = np.random.default_rng(seed)
    tokens, patches, labels = (
        rng.integers(low, high, count) for low, high in ((2, 50), (0, 9), (0, 5))
    )
    tokens[:too_large] = 70
    return Sized(tokens, patches, labels)


SMALL = dict(length=64, patches=12, answers=5, targets=9)


def held(batch):
    """(row, draw) of every example, for each row of the batch, in order."""
    found = []
    for tokens, segments in zip(batch.tokens, batch.segment_ids, strict=True):
        starts = np.flatnonzero(np.diff(segments, prepend=0))
        starts = starts[segments[starts] > 0]
        found.append([(int(tokens[at]) - 1, int(tokens[at + 1]) - 1) for at in starts])
    return found
