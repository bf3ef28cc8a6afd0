"""Users of a toyshop whose texts of windows are written in ours and in the published way."""

from typing import Any

import numpy as np

from mmsrec_jax.data import toyshop
from mmsrec_jax.data.records import Catalog
from mmsrec_jax.data.toyshop import ToyshopSettings
from mmsrec_jax.inputs.item_renderer import ItemRenderer, PromptConfig
from mmsrec_jax.inputs.taste_texts import TasteTexts, Written
from mmsrec_jax.inputs.tastes import PreferenceSettings, Tastes
from mmsrec_jax.prompts import TEMPLATES, Chat, corpus

_TEMPLATES = TEMPLATES["full"]
_ROOM = 32  # of which the length of prompts is a multiple
_LONGEST = 512


class Shop:
    """Users with windows of 4 items every 2, chains of 3 windows.

    Attributes:
      described: the words of every item.
    """

    def __init__(self, users: int):
        self._items, self._histories, _ = toyshop.generate(
            ToyshopSettings(num_users=users, num_items=300)
        )
        self.described = [", ".join(item.attributes.values()) for item in self._items]

    def corpus(self) -> list[str]:
        """What prompts are made of, to train a tokenizer on."""
        return [*corpus(_TEMPLATES), *self.described]

    def tastes(self, chat: Chat, new_tokens: int, *, beside: int = 0) -> Tastes:
        """Of all users, with room for the longest prompt.

        beside: tokens that a prompt may take more than those with the texts that counting gives.
        """
        tastes = self._tastes(chat, new_tokens, _LONGEST)
        every = prompts(tastes, rows_of(tastes, len(tastes.histories)), tastes.preference)
        longest = max(len(every.example(row, 0)) for row in range(len(every)))
        return self._tastes(chat, new_tokens, -(-(longest + beside) // _ROOM) * _ROOM)

    def _tastes(self, chat: Chat, new_tokens: int, length: int) -> Tastes:
        config = PromptConfig(chat, _TEMPLATES, list_fields=("title",))
        renderer = ItemRenderer(Catalog.from_items(self._items), config, self.described)
        settings = PreferenceSettings(
            window=4, step=2, max_windows=3, prompt_length=length, max_new_tokens=new_tokens
        )
        return Tastes(self._histories, renderer, settings)


def rows_of(tastes: Tastes, users: int) -> np.ndarray:
    """int32[n, 2] (user, window): every window of the first users."""
    lengths = tastes.histories.lengths[:users]
    return np.array(
        [(u, k) for u, n in enumerate(lengths) for k in range(tastes.windows.count(int(n)))],
        np.int32,
    )


def prompts(tastes: Tastes, rows: np.ndarray, written: Written) -> TasteTexts:
    """Of windows int32[n, 2] (user, window); written: gives the text of the window before each."""
    length = tastes.settings.prompt_length
    return TasteTexts(tastes, rows, written, profiles=False, length=length)


def speeds(tastes: Tastes, windows: int, seconds: float) -> dict[str, Any]:
    """Of so many windows in so many seconds. The users of a second are those with as many windows
    as all users have on average: few users may have more or fewer."""
    users = len(tastes.histories)
    rate = windows / seconds
    return {
        "users_per_second": rate * users / len(rows_of(tastes, users)),
        "windows_per_second": rate,
    }
