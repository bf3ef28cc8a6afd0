"""What users like, by counting words of the items that they rated (*ours*): no model, no teacher.

These texts teach a model to write about windows and whole histories, and are the targets of the
first steps of a chain of thought. They read items, ratings and times of the user up to the end of
the window, and nothing else; those about whole histories read what the user states, too.
"""

import copy
import dataclasses
import re
from collections import Counter
from collections.abc import Iterable

import numpy as np

from mmsrec_jax.data.records import Histories
from mmsrec_jax.data.user_attributes import UserAttributes
from mmsrec_jax.data.windows import Windows
from mmsrec_jax.inputs.item_renderer import ItemRenderer
from mmsrec_jax.prompts import choices, taste
from mmsrec_jax.runtime.errors import UserError
from mmsrec_jax.runtime.settings import Section, setting

LIKED = "liked"
_WORD = re.compile(r"\w+")
_ATTRIBUTE_TOKENS = 16  # of what a user states, each; longer ones lose their tail


@dataclasses.dataclass(frozen=True)
class PreferenceSettings(Section):
    """Windows of a history, what counts as liked, and how texts about users are written."""

    window: int = setting(
        10, "Interactions of a window (paper: a window, of no known size).", low=1, high=10_000
    )
    step: int = setting(
        5, "Interactions between the ends of two windows; at most `window`.", low=1, high=10_000
    )
    max_windows: int = setting(
        4,
        "Windows that a prompt tells of, and after which the texts' chain begins anew.",
        low=1,
        high=1000,
    )
    threshold: float | None = setting(
        4.0, "Lowest rating of what is liked. None: all is.", low=-1_000_000_000, high=1_000_000_000
    )
    positives: str = setting(
        LIKED,
        "Which interactions are positive targets: those that are liked (paper), others being "
        "negatives; or all.",
        choices=(LIKED, "all"),
    )
    words: int = setting(
        5, "Words that a text computed as an example names of each kind.", low=1, high=1000
    )
    prompt_length: int = setting(512, "Tokens of a prompt for such a text.", low=8, high=1_000_000)
    max_new_tokens: int = setting(
        64, "Tokens of a text; longer ones lose their tail.", low=1, high=100_000
    )
    batch_size: int = setting(
        256, "Texts written at a time, over all users.", low=1, high=1_000_000
    )
    gather_weights: bool = setting(
        True,
        "Every device holds the whole decoder while texts are written.",
        recorded=False,
    )

    def check(self, name: str) -> None:
        if self.step > self.window:
            raise UserError(
                f"{name}.step={self.step}: must be at most window={self.window}, or items between "
                "two windows are in none"
            )


class Tastes:
    """Of every user: ratings, gaps, windows, and texts that counting gives.

    Args:
      renderer: of the items, with the words that lists show of them.
      clock: gaps in time are told, where the data has them.
      dynamic: False: one window that holds all of the history so far (ablation).

    Attributes:
      windows: where they are.
      positives: bool[T], interactions whose items are positives when they are targets.
    """

    def __init__(
        self,
        histories: Histories,
        renderer: ItemRenderer,
        settings: PreferenceSettings,
        *,
        clock: bool = True,
        dynamic: bool = True,
    ):
        self.histories, self.renderer, self.settings = histories, renderer, settings
        self.clock = clock and histories.clock
        longest = int(histories.lengths.max(initial=1))
        self.windows = (
            Windows(settings.window, settings.step, settings.max_windows)
            if dynamic
            else Windows(max(longest, settings.step), settings.step, chain=1)
        )
        self._templates = renderer.prompt_config.templates
        self._ratings = histories.ratings
        self._liked: np.ndarray | None = None
        if histories.ratings is not None and settings.threshold is not None:
            self._liked = np.asarray(histories.ratings >= settings.threshold)
        self.positives = np.ones(len(histories.items), bool)
        if self._liked is not None and settings.positives == LIKED:
            self.positives = self._liked

    def with_stated(self, stated: UserAttributes | None) -> "Tastes":
        """The same, and what users state of themselves."""
        found = copy.copy(self)
        found.histories = dataclasses.replace(self.histories, stated=stated)
        return found

    def is_positive(self, user: int, position: int) -> bool:
        return bool(self.positives[self.histories.offsets[user] + position])

    def disliked(self, user: int, end: int) -> np.ndarray:
        """int32[n]: of the user's first `end` items those that are known not to be liked."""
        items = self.histories.of(user)[:end]
        if self._liked is None:
            return items[:0]
        start = self.histories.offsets[user]
        return items[~self._liked[start : start + len(items)]]

    def terms(self, item: int) -> list[str]:
        """Words of an item: its keywords, each one of them; without keywords the words of its
        text."""
        keywords = self.renderer.keywords
        if keywords is not None and keywords[item].strip():
            clean = self.renderer.prompt_config.chat.clean
            return [word for part in keywords[item].split(",") if (word := clean(part))]
        return _WORD.findall(self.renderer.words(item).lower())

    def entries(self, user: int, start: int, end: int) -> list[str]:
        """The user's interactions [start, end) as prompts list them: each with its rating and with
        the pause after it, but for the last one's."""
        found, shown = [], self.renderer.prompt_config
        items, times, ratings = self.histories.of(user), self.histories.times(user), self._ratings
        for at in range(start, end):
            words = self.renderer.words(int(items[at]))
            if shown.ratings and ratings is not None:
                rating = float(ratings[self.histories.offsets[user] + at])
                words = choices.rated(shown.templates, words, rating)
            if shown.pauses and self.clock and at + 1 < end:
                words = choices.followed(shown.templates, words, float(times[at + 1] - times[at]))
            found.append(words)
        return found

    def gap(self, user: int, first: int, second: int) -> float | None:
        """Seconds from one interaction to another; None where no gap is told or one is unknown."""
        times = self.histories.times(user)
        if not self.clock or second >= len(times):
            return None
        return float(times[second] - times[first])

    def stated(self, user: int) -> list[str]:
        """What the user states of themselves, an attribute each, as prompts tell it: each cleaned
        and of bounded length. Nothing where the data was not asked for it."""
        attributes = self.histories.stated
        if attributes is None:
            return []
        chat, template = self.renderer.prompt_config.chat, self._templates.taste.attribute
        found = []
        for name, value in attributes.stated(user).items():
            value, _ = chat.cut(chat.clean(value), _ATTRIBUTE_TOKENS)
            if value:
                text = template.format(name=name.replace("_", " "), value=value)
                found.append(chat.clean(text))
        return found

    def counts(self, user: int, start: int, end: int, *, liked: bool) -> Counter[str]:
        """How many of the user's liked (or disliked) items in [start, end) have each word; the
        words of later items stand first."""
        found: Counter[str] = Counter()
        items, offset = self.histories.of(user), self.histories.offsets[user]
        for at in reversed(range(start, end)):
            if (True if self._liked is None else bool(self._liked[offset + at])) == liked:
                found.update(list(dict.fromkeys(self.terms(int(items[at])))))
        return found

    def preference(self, user: int, index: int) -> str:
        """The text about a window: the most frequent words of what was liked in it, of what was
        not, and which of the former are new or gone against the window before it in the chain."""
        likes, dislikes = self._likes(user, *self.windows.span(index))
        came: list[str] = []
        went: list[str] = []
        if (previous := self.windows.previous(index)) is not None:
            before, _ = self._likes(user, *self.windows.span(previous))
            came, went = _without(likes, before), _without(before, likes)
        return taste.preference(
            self._templates, likes=likes, dislikes=dislikes, came=came, went=went
        )

    def profile(self, user: int, index: int) -> str:
        """The text about the user, and about all of the history up to the end of a window."""
        likes, dislikes = self._likes(user, 0, self.windows.span(index)[1])
        states = self.stated(user)
        return taste.profile(self._templates, states=states, likes=likes, dislikes=dislikes)

    def _likes(self, user: int, start: int, end: int) -> tuple[list[str], list[str]]:
        count = self.settings.words
        liked, disliked = (self.counts(user, start, end, liked=kind) for kind in (True, False))
        likes = [word for word, _ in liked.most_common(count)]
        # What is on as many items that are liked is no reason to dislike one.
        against = Counter({word: n for word, n in disliked.items() if n > liked[word]})
        return likes, _without((word for word, _ in against.most_common(count)), likes)


def _without(words: Iterable[str], others: Iterable[str]) -> list[str]:
    left_out = set(others)
    return [word for word in words if word not in left_out]
