import numpy as np
import pytest

from mmsrec_jax.data.ids import did_you_mean, nearest

KNOWN = np.array([f"i{n:04}" for n in range(40)] + ["B00X4WHP5E", "B00X4WHP5F", "lamp-oak", "x"])


@pytest.mark.parametrize(
    ("id", "first"),
    [
        ("i0007", "i0007"),
        ("i007", "i0007"),  # a missing letter
        ("i00007", "i0007"),  # one too many
        ("j0039", "i0039"),  # a wrong one
        ("I0021", "i0021"),
        ("lamp-oka", "lamp-oak"),  # swapped
        ("lmp-oak", "lamp-oak"),
        ("B00X4WHP5", "B00X4WHP5E"),
        ("B00X4WPH5F", "B00X4WHP5F"),
    ],
)
def test_one_slip_is_seen_through(id, first):
    assert first in nearest(id, KNOWN)
    assert repr(first) in did_you_mean(id, KNOWN)


@pytest.mark.parametrize("id", ["chair", "", "y", "i9", "a-much-longer-id-than-any", "7000i"])
def test_what_resembles_nothing_gets_no_guess(id):
    assert nearest(id, KNOWN) == [] and did_you_mean(id, KNOWN) == ""
    assert nearest("i0001", KNOWN[:0]) == []
