"""What prompts say of a user's taste (MLLM-SRec): texts and sections."""

import dataclasses
from collections.abc import Sequence

from mmsrec_jax.data.windows import gap_days, gap_words
from mmsrec_jax.prompts import sections
from mmsrec_jax.prompts.sections import Section, first
from mmsrec_jax.prompts.taste_templates import TasteTemplates
from mmsrec_jax.prompts.templates import Templates


def passed(templates: TasteTemplates, seconds: float) -> str:
    """How much time has passed, in words and in days."""
    return templates.passed.format(gap=gap_words(seconds), days=gap_days(seconds))


def after(templates: TasteTemplates, seconds: float | None, text: str) -> str:
    """`text` after a gap; None: no gap is told."""
    return text if seconds is None else templates.gap.format(gap=passed(templates, seconds)) + text


def preference(
    templates: Templates,
    *,
    likes: Sequence[str],
    dislikes: Sequence[str],
    came: Sequence[str],
    went: Sequence[str],
) -> str:
    """A text about a window: what is liked and what is not, and how that moved. Parts without words
    are left out."""
    taste = templates.taste
    return _parts(
        templates,
        (taste.likes, likes),
        (taste.dislikes, dislikes),
        (taste.came, came),
        (taste.went, went),
    )


def profile(
    templates: Templates, *, states: Sequence[str], likes: Sequence[str], dislikes: Sequence[str]
) -> str:
    """A text about a user and their whole history."""
    taste = templates.taste
    return _parts(
        templates, (taste.states, states), (taste.usually, likes), (taste.never, dislikes)
    )


def window(templates: Templates, entries: Sequence[str]) -> Section:
    """The items of a window, oldest first. The oldest go first, after texts of older windows."""
    of_history = sections.history(templates, entries)
    return dataclasses.replace(
        of_history, name="window", template=templates.taste.window, priority=1
    )


def texts(
    templates: TasteTemplates,
    name: str,
    template: str,
    entries: Sequence[str],
    *,
    priority: int = 0,
) -> Section:
    """Texts about the user, the oldest first; these go first. priority: of the section; lists of
    items have 1."""
    separator = "\n" if "\n{items}" in template else ""
    return Section(
        name, template, templates.text, separator, tuple(entries),
        drop=first, priority=priority,
    )  # fmt: skip


def stated(templates: TasteTemplates, attributes: Sequence[str]) -> Section:
    """What a user states; the last attribute goes first, after texts and counts of the history."""
    separator = "," if templates.text.startswith(" ") else ", "
    return Section(
        "stated", templates.stated, templates.text, separator, tuple(attributes), priority=2
    )


def counts(templates: TasteTemplates, found: Sequence[tuple[str, int]]) -> Section:
    """Words with how often they were found, the most frequent first; the rarest go first."""
    entries = [templates.count.format(word=word, count=number) for word, number in found]
    separator = "," if templates.text.startswith(" ") else ", "
    return Section(
        "counts", templates.counts, templates.text, separator, tuple(entries), priority=1
    )


def _parts(templates: Templates, *parts: tuple[str, Sequence[str]]) -> str:
    joined = (
        template.format(words=templates.keyword_separator.join(words))
        for template, words in parts
        if words
    )
    return "".join(joined).strip()
