"""Texts about the users of a run: what they prefer in each window, and profiles (MLLM-SRec).

They are written for all users at once, window by window: first the first window of every chain of
windows (`data.windows`), then the second, ... Published predecessors write user by user. A stored
text names the hash of its inputs, so that a new interaction costs one window at most.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from jax.sharding import Mesh

from mmsrec_jax.data import build, user_attributes
from mmsrec_jax.data.records import Histories
from mmsrec_jax.data.user_attributes import UserAttributes
from mmsrec_jax.inference.text_store import SharedStores, TextStore, digest_of
from mmsrec_jax.inference.texts import Decoding, write_texts
from mmsrec_jax.inputs.item_renderer import ItemRenderer
from mmsrec_jax.inputs.taste_texts import ComputedTexts, TasteTexts
from mmsrec_jax.inputs.tastes import Tastes
from mmsrec_jax.methods.mllm import MLLMExperiment
from mmsrec_jax.models.mllm import MLLM
from mmsrec_jax.runtime.settings import as_dict
from mmsrec_jax.runtime.workdir import Step

KEY = ("user", "window")
USERS, WRITER, PREFERENCES, PROFILES = "users", "writer", "preferences", "profiles"  # steps
FIELDS = "user_fields"  # in the record of step `users`


@dataclasses.dataclass(frozen=True, eq=False)
class Asked:
    """Histories that someone asks about when a run has finished.

    Attributes:
      histories: of the users.
      stores: where texts about them are kept.
      make_model: gives the model that writes about windows and histories.
      batch_size: texts written at a time.
    """

    histories: Histories
    stores: SharedStores
    make_model: Callable[[], MLLM]
    batch_size: int


class UserTexts:
    """The steps that write texts about users, and what they wrote.

    Args:
      words: gives the comma-separated words of every item.
      targets: gives int32[n, 2] (user, position), all that prompts will be written for.
      asked: other histories than those of the run.

    Attributes:
      folder: of the folders that hold the texts.
    """

    def __init__(
        self,
        run: MLLMExperiment,
        words: Callable[[], Sequence[str]],
        targets: Callable[[], np.ndarray],
        asked: Asked | None = None,
    ):
        self._run, self._words, self._targets, self.asked = run, words, targets, asked
        self.folder = run.workdir if asked is None else asked.stores.folder

    @property
    def histories(self) -> Histories:
        """Those that the texts are about."""
        return self._run.dataset.histories if self.asked is None else self.asked.histories

    @functools.cached_property
    def attributes(self) -> UserAttributes | None:
        """What their users state, as far as profiles read it."""
        if self.asked is not None:
            return self.asked.histories.stated
        if not self.reads_attributes:
            return None
        return user_attributes.read(self._run.workdir / USERS, self.histories.users)

    @property
    def reads_attributes(self) -> bool:
        """Whether profiles read what users state of themselves."""
        c = self._run.config
        return bool(c.data.user_fields) and c.use.profile

    def users_steps(self) -> list[Step]:
        """Reads what users state, where profiles shall know it. Nothing but profiles, and what
        reads these, depends on it."""
        data = self._run.config.data
        if not self.reads_attributes:
            return []
        settings = {FIELDS: list(data.user_fields), "files": build.user_files(data)}
        return [Step(USERS, self.read_users, settings, ["data"], alone=True)]

    def read_users(self, directory: Path) -> None:
        """`users.parquet`: what each user states."""
        users = self._run.dataset.histories.users
        attributes, notes = build.read_users(self._run.config.data, users)
        user_attributes.write(directory, users, attributes)
        for name, count in attributes.coverage.items():
            share = count / len(users)
            logging.info("users: %s stated by %s (%s)", name, f"{count:,}", f"{share:.1%}")
        for what, count in notes.items():
            logging.info("users: note: %s %s", f"{count:,}", what)

    def steps(self, inputs: Sequence[str]) -> list[Step]:
        """inputs: steps that made the base model and the items' words."""
        run, c = self._run, self._run.config
        rows = {"rows": c.sft.rows, "seed": c.sft.seed}
        settings = run.prompt_record() | {
            "preferences": as_dict(c.preferences),
            "clock": c.use.clock,
            "windows": c.use.windows,
        }
        steps, read = [], list(inputs)
        attributes = [USERS] if self.reads_attributes else []
        if self.is_taught:
            taught = {**settings, WRITER: as_dict(c.writer)}
            steps.append(Step(WRITER, self.train_writer, taught, [*inputs, *attributes]))
            read.append(WRITER)
        steps.append(Step(PREFERENCES, self.write_preferences, {**settings, **rows}, read))
        if c.use.profile:
            read = [*read, *attributes, PREFERENCES]
            steps.append(Step(PROFILES, self.write_profiles, {**settings, **rows}, read))
        return steps

    @property
    def is_taught(self) -> bool:
        """Whether a step teaches the model to write."""
        return self._run.config.writer.teaches(is_pretrained=self._run.base.is_pretrained)

    @functools.cached_property
    def tastes(self) -> Tastes:
        """Ratings, gaps and windows of the run's users."""
        run, c = self._run, self._run.config
        renderer = ItemRenderer(run.dataset.catalog, run.prompt_config, self._words())
        return Tastes(
            self.histories, renderer, c.preferences, clock=c.use.clock, dynamic=c.use.windows
        )

    @functools.cached_property
    def profiled(self) -> Tastes:
        """The same with what users state: what profiles are written from."""
        return self.tastes.with_stated(self.attributes)

    def train_writer(self, directory: Path) -> None:
        """Teaches the base model to write, by texts that counting gives."""
        run, c, tastes = self._run, self._run.config, self.profiled
        ends = run.dataset.split.train_end
        users = np.flatnonzero(ends >= tastes.windows.step)
        rows = [(u, k) for u in users for k in range(tastes.windows.count(int(ends[u])))]
        source = ComputedTexts(
            tastes,
            np.array(rows, np.int32).reshape(-1, 2),
            length=c.preferences.prompt_length,
            answer=c.preferences.max_new_tokens,
            profiles=c.writer.profiles if c.use.profile else 0.0,
            seed=c.writer.seed,
        )
        run.fine_tune(WRITER, source, directory)

    def write_preferences(self, directory: Path) -> None:
        """`preferences.jsonl`: a text of every window that a target is told of."""
        written, count = self.write_about_windows(directory)
        logging.info("preferences: %d of %d texts written", written, count)

    def write_about_windows(self, directory: Path) -> tuple[int, int]:
        """Writes those that are not there yet; how many these were, of how many."""
        windows = self.tastes.windows
        rows = windows.needed(np.concatenate([self._targets(), self._profile_ends()]))
        store = self._store(directory)
        return write_windows(store, self.tastes, rows, **self._writing()), len(rows)

    def write_profiles(self, directory: Path) -> None:
        """`profiles.jsonl`: a text of every whole history that a target is told of; those that
        are there are not written again."""
        ends, texts = self._profile_ends(), self.preferences
        source = TasteTexts(
            self.profiled,
            np.stack([ends[:, 0], self.tastes.windows.count(ends[:, 1]) - 1], axis=1),
            lambda user, window: texts[user, window],
            profiles=True,
            length=self._run.config.preferences.prompt_length,
        )
        store = self._store(directory)
        _write(store, self.profiled, source, **self._writing(), name=PROFILES)

    @functools.cached_property
    def preferences(self) -> dict[tuple[int, int], str]:
        """(user, window) -> the text that step `preferences` wrote."""
        return self._read(self._store(self.folder / PREFERENCES))

    @functools.cached_property
    def profiles(self) -> dict[tuple[int, int], str]:
        """(user, window) -> the profile that step `profiles` wrote at the end of the window."""
        return self._read(self._store(self.folder / PROFILES))

    def _profile_ends(self) -> np.ndarray:
        """int32[m, 2] (user, position): where the histories end of which there are profiles."""
        if not self._run.config.use.profile:
            return np.zeros((0, 2), np.int32)
        return self.tastes.windows.profile_ends(self._targets())

    def _writing(self) -> dict[str, Any]:
        """Arguments of `write_windows`."""
        run, c, asked = self._run, self._run.config.preferences, self.asked
        decoding = Decoding(
            batch_size=c.batch_size if asked is None else asked.batch_size,
            patches=0,
            max_new_tokens=c.max_new_tokens,
            gather_weights=c.gather_weights,
        )
        return {
            "make_model": functools.cache(self.load) if asked is None else asked.make_model,
            "tokenizer": run.tokenizer,
            "decoding": decoding,
            "mesh": run.mesh,
        }

    def load(self) -> MLLM:
        """The model that writes."""
        base = self._run.base
        return base.trained(PREFERENCES, WRITER) if self.is_taught else base.load(PREFERENCES)

    def _store(self, directory: Path) -> TextStore:
        return self.open(directory / f"{directory.name}.jsonl", KEY)

    def open(self, path: Path, key: tuple[str, ...]) -> TextStore:
        """The texts in a file, about the users that these are about."""
        return TextStore(path, key) if self.asked is None else self.asked.stores.open(path, key)

    def _read(self, store: TextStore) -> dict[tuple[int, int], str]:
        index = {user: u for u, user in enumerate(self.histories.users.tolist())}
        clean = self._run.prompt_config.chat.clean
        return {
            (index[row["user"]], row["window"]): clean(row["written"])
            for row in store
            if row["user"] in index
        }


def write_windows(
    store: TextStore,
    tastes: Tastes,
    rows: np.ndarray,
    *,
    make_model: Callable[[], MLLM],
    tokenizer: Any,
    decoding: Decoding,
    mesh: Mesh,
) -> int:
    """Writes the texts of windows int32[n, 2] (user, window) that `store` lacks or has of other
    inputs, of all users at once and round by round; see `Windows`. Returns how many were written.

    rows: with every window that comes before one of them in its chain (`Windows.needed`).
    """
    users, clean = tastes.histories.users, tastes.renderer.prompt_config.chat.clean
    count = 0
    for at in range(tastes.windows.chain):
        source = TasteTexts(
            tastes,
            rows[tastes.windows.round(rows[:, 1]) == at],
            lambda user, window: clean(store[str(users[user]), window]["written"]),
            profiles=False,
            length=tastes.settings.prompt_length,
        )
        count += _write(
            store, tastes, source, make_model=make_model, tokenizer=tokenizer, decoding=decoding,
            mesh=mesh, name=f"{PREFERENCES}, window {at + 1} of {tastes.windows.chain} of a chain",
        )  # fmt: skip
    return count


def _write(
    store: TextStore,
    tastes: Tastes,
    source: TasteTexts,
    *,
    make_model: Callable[[], MLLM],
    name: str,
    **options: Any,
) -> int:
    """`write_texts` of the rows of `source`, in `store` by user and window."""
    users = tastes.histories.users
    keys = [(str(users[user]), int(window)) for user, window in source.rows]
    return write_texts(
        store, source, keys, make_model,
        name=name, digest=lambda row: digest_of(source.text(row)), **options,
    )  # fmt: skip
