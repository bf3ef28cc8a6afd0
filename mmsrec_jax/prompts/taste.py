"""What prompts say of a user's taste (MLLM-SRec): items with ratings and gaps, texts, sections."""

from collections.abc import Sequence

from mmsrec_jax.data.windows import gap_days, gap_words
from mmsrec_jax.prompts.sections import Section, first
from mmsrec_jax.prompts.taste_templates import TasteTemplates
from mmsrec_jax.prompts.templates import Templates


def marked(templates: TasteTemplates, words: str, liked: bool | None) -> str:
    """An item with what the user thought of it; None: nobody knows."""
    if liked is None:
        return words
    return words + (templates.liked if liked else templates.disliked)


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


def profile(templates: Templates, *, likes: Sequence[str], dislikes: Sequence[str]) -> str:
    """A text about a whole history."""
    return _parts(templates, (templates.taste.usually, likes), (templates.taste.never, dislikes))


def history(templates: TasteTemplates, entries: Sequence[str]) -> Section:
    """The user's last items with ratings and gaps, oldest first. The oldest go first, after texts
    about them."""
    return _items("history", templates, templates.history, entries)


def window(templates: TasteTemplates, entries: Sequence[str]) -> Section:
    """The items of a window."""
    return _items("window", templates, templates.window, entries)


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


def counts(templates: TasteTemplates, found: Sequence[tuple[str, int]]) -> Section:
    """Words with how often they were found, the most frequent first; the rarest go first."""
    entries = [templates.count.format(word=word, count=number) for word, number in found]
    separator = "," if templates.text.startswith(" ") else ", "
    return Section(
        "counts", templates.counts, templates.text, separator, tuple(entries), priority=1
    )


def _items(name: str, templates: TasteTemplates, template: str, entries: Sequence[str]) -> Section:
    return Section(
        name, template, templates.entry, templates.separator, tuple(entries),
        drop=first, keep=1, priority=1,
    )  # fmt: skip


def _parts(templates: Templates, *parts: tuple[str, Sequence[str]]) -> str:
    joined = (
        template.format(words=templates.keyword_separator.join(words))
        for template, words in parts
        if words
    )
    return "".join(joined).strip()
