"""What prompts say of choices: ratings, and pauses by their order of magnitude."""

import pytest

from mmsrec_jax.prompts import FULL, TERSE, choices

HOUR, DAY = 3600.0, 86_400.0


@pytest.mark.parametrize(
    ("seconds", "word"),
    [
        (0, None),
        (-5, None),
        (float("nan"), None),
        (HOUR - 1, None),
        (HOUR, "hours"),
        (DAY - 1, "hours"),
        (DAY, "days"),
        (6.9 * DAY, "days"),
        (7 * DAY, "weeks"),
        (40 * DAY, "months"),
        (400 * DAY, "years"),
        (1e12, "years"),
    ],
)
def test_pauses(seconds, word):
    expected = "oak lamp" if word is None else f"oak lamp {word}"
    assert choices.followed(TERSE, "oak lamp", seconds) == expected
    if word:
        assert choices.followed(FULL, "oak lamp", seconds) == f"oak lamp; {word} later"


@pytest.mark.parametrize(("rating", "said"), [(4.0, "4"), (3.5, "3.5"), (10.0, "10")])
def test_ratings(rating, said):
    assert choices.rated(TERSE, "oak lamp", rating) == f"oak lamp {said}"
    assert choices.rated(FULL, "oak lamp", rating) == f"oak lamp (rated {said})"


def test_an_unknown_rating_is_not_told():
    assert choices.rated(TERSE, "oak lamp", float("nan")) == "oak lamp"
