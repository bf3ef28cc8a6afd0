"""Examples against ones laid out by hand, token by token."""

import numpy as np

from mmsrec_jax.inputs.example import Suffix, with_suffixes
from mmsrec_jax.prompts import Piece

YES, NO = 90, 91


def piece(*tokens, image=False):
    """An image, if any, is the first token and reaches two positions further than one of text."""
    n = len(tokens)
    positions = np.tile(np.arange(n, dtype=np.int32), (3, 1))
    if image:
        positions[:, 1:] += 2
    return Piece(np.array(tokens, np.int32), positions, n + 2 * image, ({},) if image else ())


def made(suffixes, labels):
    return with_suffixes(
        piece(1, 2, 3), suffixes, labels, yes_no_ids=(YES, NO), positive_weight=5.0, index=7
    )


def test_a_suffix_may_carry_target_tokens_before_its_label():
    chain = Suffix(piece(20, 21, image=True), np.array([30, 31], np.int32), weight=0.25)
    example = made([piece(10, 11), None, chain], [1, 0, 0])
    assert example.tokens.tolist() == [1, 2, 3, 10, 11, YES, 20, 21, 30, 31, NO]
    assert example.suffix_ids.tolist() == [0, 0, 0, 1, 1, 1, 3, 3, 3, 3, 3]
    time = [0, 1, 2, 3, 4, 5, 3, 6, 7, 8, 9]
    assert example.positions.tolist() == [time] * 3
    assert example.loss_weights.tolist() == [0, 0, 0, 0, 0, 5, 0, 0, 0.25, 0.25, 1]
    # the label follows the last target token, or the piece where there is none
    assert example.answer_positions.tolist() == [4, -1, 9]
    assert example.tokens[example.answer_positions[[0, 2]] + 1].tolist() == [YES, NO]
    assert example.labels.tolist() == [1, 0, 0] and example.index == 7
    assert example.num_targets == 4 and len(example.images) == 1
    dtypes = {name: getattr(example, name).dtype.name for name in ("tokens", "positions")}
    assert dtypes == {"tokens": "int32", "positions": "int32"}


def test_without_targets_a_suffix_is_its_piece():
    none = np.zeros(0, np.int32)
    bare, carrying = piece(10, 11), Suffix(piece(10, 11), none, weight=3.0)
    assert len(carrying) == len(bare)
    a, b = made([bare], [1]), made([carrying], [1])
    for name in ("tokens", "loss_weights", "suffix_ids", "positions", "answer_positions", "labels"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
