"""Candidates for a history that someone typed, scored by the MLLM of a finished run of MLLM-SRec.

The history is split into windows as those of the run. Texts about it that the run, or an earlier
question, wrote from the same inputs are read; the others are written first: a new interaction costs
one window at most. They are kept in the folder `asked` of the run, which several programs may use
at the same time: each question waits for its turn there.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from mmsrec_jax.data.records import Histories, Item
from mmsrec_jax.data.user_attributes import UserAttributes
from mmsrec_jax.inference.text_store import Row, SharedStores, TextStore
from mmsrec_jax.inputs.taste_prompts import TasteContext
from mmsrec_jax.methods.cached_items import CachedItems
from mmsrec_jax.methods.mllm import MLLMExperiment
from mmsrec_jax.methods.mllm_srec import MLLMSRec
from mmsrec_jax.methods.scorer import RunScorer
from mmsrec_jax.methods.settings import Settings
from mmsrec_jax.methods.user_texts import KEY, PREFERENCES, PROFILES, Asked, UserTexts
from mmsrec_jax.models.mllm import MLLM
from mmsrec_jax.retrieval.similar import Neighbors
from mmsrec_jax.runtime.errors import UserError

FOLDER = "asked"


@dataclasses.dataclass(frozen=True)
class Told:
    """What prompts are told of a history.

    Attributes:
      preferences: texts of its last windows, oldest first.
      profile: text of the whole history; "" where there is none.
      chain: the first two steps of the chain of thought; "" where there is none.
      stated: what the user states of themselves, as far as the run reads it.
      windows_written: texts of windows that were written for this answer.
    """

    preferences: list[str]
    profile: str
    chain: str
    stated: dict[str, str]
    windows_written: int


class TasteScorer(RunScorer):
    """The MLLM of a finished run of MLLM-SRec, and what writes about users; both stay in memory.

    Attributes:
      told: of the last history that was scored.
    """

    told: Told | None = None

    def _open(self, config: Settings, folder: Path) -> MLLMExperiment:
        self._run = MLLMSRec(config, folder, self._mesh)
        self._stores = SharedStores(folder / FOLDER)
        return self._run

    def _context(
        self, typed: Histories, neighbors: Neighbors | None, now: float | None, rows: np.ndarray
    ) -> TasteContext:
        del neighbors  # its prompts show none
        with self._stores.turn():
            context = self._written_context(typed, rows[:1])
        chains = context.chains
        return dataclasses.replace(
            context,
            chains=None if chains is None else [chains[0]] * len(rows),
            now=None if now is None else np.full(len(rows), now),
        )

    def _written_context(self, typed: Histories, target: np.ndarray) -> TasteContext:
        """What is known of the one row `target`; texts that are not there are written."""
        run, c = self._run, self.config
        texts = self._asked(typed, target)
        folder = texts.folder
        written, _ = texts.write_about_windows(folder / PREFERENCES)
        if c.use.profile:
            texts.write_profiles(folder / PROFILES)
        length = c.evaluation.length if self.form == "joint" else c.cached.prompt_length
        generated = run.generated_chains(
            self.form, target, length=length, texts=texts, make_model=lambda: self._model
        )
        context = run.scoring_context(target, generated, texts)
        stated = {} if typed.stated is None else typed.stated.stated(0)
        self.told = _told(context, written, stated)
        return context

    def _stated(self, user: str, about: Mapping[str, str]) -> UserAttributes | None:
        attributes = self._run.user_texts.attributes
        if attributes is None:
            return super()._stated(user, about)
        if user in self._user_index:
            return attributes.take(np.array([self._user_index[user]]))
        for name, value in about.items():
            if name not in attributes.fields:
                raise UserError(
                    f"about: the run reads no {name!r} of users; it reads "
                    f"{', '.join(attributes.fields)}"
                )
            if not isinstance(value, str):
                raise UserError(f"about: {name} is {value!r}; give text")
        return UserAttributes.of({name: [about.get(name)] for name in attributes.fields})

    def _cached_items(self) -> CachedItems:
        return self._run.chain_items()

    def neighbors(self, typed: Histories, before: float | None = None) -> Neighbors | None:
        return None

    def add(self, items: Sequence[Item]) -> None:
        del items
        raise UserError(
            "a run of mllm_srec recommends the items of its data alone; put new items into the "
            "data and run launch/train.py with this --workdir, or ask a run of mmsrarec"
        )

    def keywords(self, item: int) -> list[str]:
        return [word for word in self._run.item_words[item].split(", ") if word]

    def _asked(self, typed: Histories, target: np.ndarray) -> UserTexts:
        """Texts about the one user of `typed`, with what the run wrote of them."""
        run = self._run
        for name in (PREFERENCES, PROFILES):
            self._take_over(name, str(typed.users[0]))
        asked = Asked(
            typed,
            self._stores,
            lambda: self._writer,
            self._batch_size(1, self.config.preferences.batch_size),
        )
        return UserTexts(run, lambda: run.item_words, lambda: target, asked)

    def _take_over(self, name: str, user: str) -> None:
        """Puts what step `name` wrote of a user to what was written since."""
        store = self._stores.open(self._stores.folder / name / f"{name}.jsonl", KEY)
        missing = [
            ((user, row["window"]), {"written": row["written"]}, row["inputs"])
            for row in self._written.get((name, user), [])
            if (user, row["window"]) not in store
        ]
        if missing:
            store.append(missing)

    @functools.cached_property
    def _written(self) -> dict[tuple[str, str], list[Row]]:
        """(step, user) -> the lines that the run wrote."""
        found: dict[tuple[str, str], list[Row]] = {}
        for name in (PREFERENCES, PROFILES):
            for row in TextStore(self._run.workdir / name / f"{name}.jsonl", KEY):
                found.setdefault((name, row["user"]), []).append(row)
        return found

    @functools.cached_property
    def _writer(self) -> MLLM:
        return self._run.user_texts.load()


def _told(context: TasteContext, written: int, stated: dict[str, str]) -> Told:
    position, windows = len(context.histories.items), context.tastes.windows
    profiled = windows.profiled(position)
    told = [context.preferences[0, window] for window in windows.told(position)]
    profile = ""
    if context.profiles is not None and profiled is not None:
        profile = context.profiles[0, profiled]
    chain = "" if context.chains is None else context.chains[0]
    return Told(told, profile, chain, stated, written)
