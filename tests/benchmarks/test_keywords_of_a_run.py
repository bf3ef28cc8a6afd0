"""Right, wrong, missing and repeated keywords of four items, counted by hand."""

import pytest

from benchmarks.keywords import measure
from mmsrec_jax.runtime.errors import UserError

ATTRIBUTES = [{"color": "red", "use": "garden"}] * 4
ROWS = [
    {"item": 0, "image": ["red"], "text": ["garden"]},
    {"item": 1, "image": ["garden"], "text": ["red"]},
    {"item": 2, "image": ["blue"], "text": ["garden"]},
    {"item": 3, "image": ["red", "red"], "text": []},
]


def test_words_by_hand():
    assert measure(ROWS, ATTRIBUTES) == {
        "items": 4, "exact": 0.5, "wrong_an_item": 0.25, "missing_an_item": 0.5,
        "repeated_an_item": 0.25,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("rows", "attributes", "message"),
    [(ROWS[:3], ATTRIBUTES, "3 of 4 items"), (ROWS, [*ATTRIBUTES[:3], {}], "1 of 4 items have no")],
)
def test_what_cannot_be_measured(rows, attributes, message):
    with pytest.raises(UserError, match=message):
        measure(rows, attributes)
