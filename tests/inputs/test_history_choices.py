"""What the history of a prompt tells of choices, up to the request."""

import dataclasses

import numpy as np
from toy_examples import CATALOG, HISTORIES, KEYWORDS

from mmsrec_jax.inputs.recommend import PromptContext, UserPrompts
from mmsrec_jax.prompts import TERSE


def test_a_history_tells_ratings_and_pauses_up_to_the_request_and_nothing_of_the_target(
    prompt_config,
):
    """Also how long ago the last choice was, by the time of the target or of the request."""
    day, user = 86_400.0, 3
    length = len(HISTORIES.of(user))
    rng = np.random.default_rng(0)
    gaps = rng.choice([60.0, 2 * day, 10 * day], len(HISTORIES.items))
    ratings = rng.integers(1, 6, len(HISTORIES.items)).astype(np.float32)
    told = dataclasses.replace(HISTORIES, timestamps=np.cumsum(gaps), ratings=ratings)
    shown = dataclasses.replace(prompt_config, templates=TERSE, ratings=True, pauses=True)
    first, position = told.offsets[user], length - 2
    words = {60.0: "", 2 * day: " days", 10 * day: " weeks"}

    def entries(now=None, at=position):
        known = PromptContext(CATALOG, told, KEYWORDS, now=now)
        rows = np.array([[user, at]])
        prompts = UserPrompts(known, shown, rows, length=1000, history=3, similar=3)
        return prompts, prompts.sections(0)[0].entries

    prompts, found = entries()
    expected = [
        f"{prompts.renderer.words(told.items[row])} {ratings[row]:g}{words[gaps[row + 1]]}"
        for row in range(first + position - 3, first + position)
    ]
    assert list(found) == expected
    bare = expected[-1].removesuffix(words[gaps[first + position]])
    now = told.timestamps[[first + position - 1]]
    assert entries(now + 40 * day)[1][-1] == f"{bare} months"
    assert entries(now)[1][-1] == bare
    assert entries(at=length)[1][-1].split()[-1] == f"{ratings[first + length - 1]:g}"
