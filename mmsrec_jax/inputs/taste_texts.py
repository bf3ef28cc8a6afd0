"""Prompts for texts about users: one about a window, one about a whole history (MLLM-SRec).

*Paper:* a module aware of time summarizes how interest moves from window to window, and the user
has a profile. *Ours:* the text of a window is written from its items with ratings and gaps and from
the text of the window before it; the profile from the texts of the last windows and from how often
words stand on what was liked in the whole history; before these it is told what the user states of
themselves, where the data was asked for it (`config.data.user_fields`).
"""

from collections import Counter
from collections.abc import Callable

import numpy as np

from mmsrec_jax.inputs import example as examples
from mmsrec_jax.inputs.example import Example
from mmsrec_jax.inputs.tastes import Tastes
from mmsrec_jax.prompts import Piece, Section, tasks, taste
from mmsrec_jax.prompts import sections as prompt_sections
from mmsrec_jax.runtime.errors import UserError

Written = Callable[[int, int], str]  # user, window -> its text

_COUNTED = 12  # words of a history in the prompt for its profile


class TasteTexts:
    """A prompt of each row; `inference.texts` writes what follows it.

    Args:
      rows: int32[n, 2] (user, window).
      written: texts of windows: of the one before each row, or of the last ones up to it.
      profiles: the rows are those of profiles.
      length: of a prompt, in tokens.

    Attributes:
      rows, length, renderer: as `inference.texts` wants them.
    """

    patch_width = 0

    def __init__(
        self, tastes: Tastes, rows: np.ndarray, written: Written, *, profiles: bool, length: int
    ):
        self.renderer, self.rows, self.length = tastes.renderer, np.asarray(rows), length
        self._tastes, self._written, self._profiles = tastes, written, profiles

    def __len__(self) -> int:
        return len(self.rows)

    def example(self, row: int, draw: int) -> Example:
        del draw
        counts: Counter[str] = Counter()
        prompt = self.prompt(row, counts)
        return examples.sequence(prompt, np.zeros(0, np.int32), index=row, counts=counts)

    def prompt(self, row: int, counts: Counter) -> Piece:
        """What is known of the row, and the question.

        Raises:
          UserError: the question alone is longer than a prompt.
        """
        chat = self.renderer.prompt_config.chat
        question = self._question + chat.middle

        def encode(opening: str) -> Piece:
            return chat.encode(chat.head + opening + question)

        prompt = prompt_sections.fit(self.sections(row), encode, self.length, counts)
        if len(prompt) > self.length:
            raise UserError(
                f"config.preferences.prompt_length={self.length}: the question alone has "
                f"{len(prompt)} tokens; raise it"
            )
        return prompt

    def text(self, row: int) -> str:
        """The prompt in words, before anything is left out: all that the row's text depends on."""
        return prompt_sections.render(self.sections(row)) + self._question

    def sections(self, row: int) -> list[Section]:
        """What is known of the row, whole."""
        user, index = (int(value) for value in self.rows[row])
        return self._of_history(user, index) if self._profiles else self._of_window(user, index)

    def computed(self, row: int) -> str:
        """What counting says (`inputs.tastes`)."""
        user, index = (int(value) for value in self.rows[row])
        of = self._tastes.profile if self._profiles else self._tastes.preference
        return of(user, index)

    @property
    def _question(self) -> str:
        taste_templates = self.renderer.prompt_config.templates.taste
        return taste_templates.ask_profile if self._profiles else taste_templates.ask_preference

    def _of_window(self, user: int, index: int) -> list[Section]:
        every, windows = self.renderer.prompt_config.templates, self._tastes.windows
        templates = every.taste
        previous = windows.previous(index)
        before, since = [], []
        if previous is not None:
            before = [self._written(user, previous)]
            ends = (windows.span(one)[1] - 1 for one in (previous, index))
            gap = self._tastes.gap(user, *ends)
            since = [] if gap is None else [taste.passed(templates, gap)]
        return [
            taste.texts(templates, "before", templates.before, before, priority=2),
            taste.texts(templates, "since", templates.since, since, priority=2),
            taste.window(
                self.renderer.prompt_config.templates,
                self._tastes.entries(user, *windows.span(index)),
            ),
        ]

    def _of_history(self, user: int, index: int) -> list[Section]:
        templates, tastes = self.renderer.prompt_config.templates.taste, self._tastes
        end = tastes.windows.span(index)[1]
        told = [self._written(user, window) for window in tastes.windows.told(end)]
        liked = tastes.counts(user, 0, end, liked=True)
        return [
            taste.stated(templates, tastes.stated(user)),
            taste.texts(templates, "preferences", templates.preferences, told),
            taste.counts(templates, liked.most_common(_COUNTED)),
        ]


class ComputedTexts:
    """Training examples: prompts of windows and of profiles, answered by what counting says.

    Texts of earlier windows in the prompts are computed too.

    Args:
      rows: int32[n, 2] (user, window); the last of their items are training interactions.
      length: of a prompt, in tokens; answer: of a text, with the token that ends it.
      profiles: share of examples about profiles.
    """

    patch_width = 0

    def __init__(
        self,
        tastes: Tastes,
        rows: np.ndarray,
        *,
        length: int,
        answer: int,
        profiles: float,
        seed: int,
    ):
        self._of_windows, self._of_histories = (
            TasteTexts(tastes, rows, tastes.preference, profiles=kind, length=length)
            for kind in (False, True)
        )
        self._answer, self._profiles, self._seed = answer, profiles, seed

    def __len__(self) -> int:
        return len(self._of_windows)

    def example(self, row: int, draw: int) -> Example:
        rng = np.random.default_rng((self._seed, draw))
        about_history = rng.random() < self._profiles
        source = self._of_histories if about_history else self._of_windows
        counts: Counter[str] = Counter()
        prompt = source.prompt(row, counts)
        prompt_config = source.renderer.prompt_config
        chat, text = prompt_config.chat, source.computed(row)
        answer = chat.ids(tasks.answer(prompt_config.templates, text) if text else "")
        counts["answers_cut"] += len(answer) >= self._answer
        said = np.append(answer[: self._answer - 1], chat.stop_id).astype(np.int32)
        return examples.sequence(prompt, said, index=row, counts=counts)
