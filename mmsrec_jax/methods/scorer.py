"""Candidates for a history that someone typed, scored by the MLLM of a finished run."""

import abc
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np

from mmsrec_jax.data.ids import did_you_mean
from mmsrec_jax.data.records import Catalog, Histories, Item
from mmsrec_jax.data.sequences import power_of_two
from mmsrec_jax.data.user_attributes import UserAttributes
from mmsrec_jax.inference import texts
from mmsrec_jax.inference.cached_catalog import CachedCatalog
from mmsrec_jax.inference.scoring import candidate_scores
from mmsrec_jax.inputs.recommend import PromptContext
from mmsrec_jax.methods import recorded
from mmsrec_jax.methods.cached_items import CachedItems
from mmsrec_jax.methods.mllm import MLLMExperiment
from mmsrec_jax.methods.mmsrarec import MMSRARec, joined_keywords
from mmsrec_jax.methods.settings import Settings
from mmsrec_jax.models.mllm import MLLM
from mmsrec_jax.prompts import parse_summary
from mmsrec_jax.retrieval import similar
from mmsrec_jax.retrieval.similar import KnowledgeBase, Neighbors
from mmsrec_jax.runtime import arrays, sharding
from mmsrec_jax.runtime.errors import UserError, first_line
from mmsrec_jax.sequential.recommender import SequentialRecommender


class RunScorer(abc.ABC):
    """The MLLM of a finished run; weights stay in memory. What a method knows for a prompt, a
    subclass says.

    Attributes:
      takes_new_items: whether `add` can.
      config: as far as the run's steps recorded it and scoring reads it.
      form: of stage 3, the one that scores: "joint" or "cached".
      catalog, histories: of the run. Ids are those of the raw files.

    Raises:
      UserError: the run has not finished or did not train `form`, or an input of what trained its
        MLLM ran again since.
    """

    takes_new_items = False

    def __init__(
        self, folder: str | Path, mesh: jax.sharding.Mesh | None = None, form: str | None = None
    ):
        """folder: the run's workdir; mesh: None is all devices; form: None is the run's first."""
        folder = Path(folder)
        config = recorded.settings(folder, form)
        self._mesh = sharding.make_mesh() if mesh is None else mesh
        self.config, self.form = config, config.forms[0]
        self._step = recorded.steps_of_forms(folder)[self.form]
        self._cached: CachedCatalog | None = None
        self.catalog: Catalog
        self.histories: Histories
        self._experiment = self._open(config, folder)
        self.catalog, self.histories, self._split = self._experiment.dataset
        self._user_index = {user: u for u, user in enumerate(self.histories.users.tolist())}

    @abc.abstractmethod
    def _open(self, config: Settings, folder: Path) -> MLLMExperiment:
        """The experiment of the run, whose steps have finished."""

    @abc.abstractmethod
    def _context(
        self, typed: Histories, neighbors: Neighbors | None, now: float | None, rows: np.ndarray
    ) -> PromptContext:
        """What prompts of rows int32[n, 2], all of one user and position, know; `now` as of
        `margins`."""

    @abc.abstractmethod
    def _cached_items(self) -> CachedItems:
        """The form that ranks the whole catalog."""

    @abc.abstractmethod
    def neighbors(self, typed: Histories, before: float | None = None) -> Neighbors | None:
        """The users most similar to this history and what they took next, one row; None for a run
        without retrieval. Who took it is not similar to themselves."""

    @abc.abstractmethod
    def add(self, items: Sequence[Item]) -> None:
        """Puts new items behind the catalog (UserError where that is not possible)."""

    @abc.abstractmethod
    def keywords(self, item: int) -> list[str]:
        """Those that prompts show of an item; none where they show its text."""

    @property
    def reads_neighbors(self) -> bool:
        """Whether prompts show what similar users took."""
        return False

    def scores(
        self,
        history: Sequence[str],
        candidates: Sequence[str],
        *,
        times: Sequence[float] | None = None,
        ratings: Sequence[float] | None = None,
        now: float | None = None,
        user: str | None = None,
        before: float | None = None,
    ) -> np.ndarray:
        """logit(yes) - logit(no) of each candidate: float32[candidates].

        When the run used retrieval, users similar to this history are looked up as for a test
        target. For the history of a test user, with `user` given, `now` the time of the target and
        under a global-time split `before` too, the scores are those of step `evaluation`.

        Args:
          history: raw item ids, oldest first, at least one.
          candidates: raw item ids. Lists longer than those of `evaluation` are scored in parts.
          times: seconds since 1970 of the history's items; only a sequential recommender that
            reads the clock needs them, and prompts that tell pauses.
          ratings: of the history's items, for prompts that tell them.
          now: when this is asked, seconds since 1970; None: right after the last item.
          user: raw id of the user whose history it is, who is then not similar to themselves; None
            for a history of nobody in the data.
          before: seconds since 1970; what users took from then on is not known. None: all is.

        Raises:
          UserError: an id that the run does not know, an empty history or list, or times that are
            missing or not as many as items.
        """
        past = item_indices(self.catalog, history, "history")
        wanted = item_indices(self.catalog, candidates, "candidates")
        if user is not None and user not in self._user_index:
            raise UserError(f"user {user!r} is not in the data of this run; leave user out")
        typed = self.typed(
            past,
            times,
            "" if user is None else user,
            ratings=None if ratings is None else np.asarray(ratings, np.float32),
            clock_is_read=self.reads_neighbors,
        )
        return self.margins(typed, wanted, self.neighbors(typed, before), now)

    def typed(
        self,
        past: np.ndarray,
        times: Sequence[float] | None,
        user: str = "",
        *,
        ratings: np.ndarray | None = None,
        clock_is_read: bool = True,
        about: Mapping[str, str] | None = None,
    ) -> Histories:
        """A history of items int32[n], oldest first, of a user of the run or of nobody in it ("").

        ratings: float32[n], where they are known. clock_is_read: the sequential recommender will
        read it. about: what nobody in the run states of themselves; of a user of the run it is
        known.

        Raises:
          UserError: times that the recommender needs are missing, or not as many as items; the run
            does not read what `about` tells.
        """
        return Histories(
            users=np.array([user]),
            offsets=np.array([0, len(past)]),
            items=past,
            timestamps=self._clock(times, len(past), clock_is_read),
            ratings=ratings,
            clock=self.histories.clock and times is not None,
            stated=self._stated(user, about or {}),
        )

    def _stated(self, user: str, about: Mapping[str, str]) -> UserAttributes | None:
        """What prompts shall know of one user, see `typed`."""
        del user
        if about:
            raise UserError(
                "about: the run reads nothing that users state (config.data.user_fields of "
                "mllm_srec); leave it out"
            )
        return None

    def margins(
        self,
        typed: Histories,
        wanted: np.ndarray,
        neighbors: Neighbors | None,
        now: float | None = None,
    ) -> np.ndarray:
        """`scores` of items int32[n] after a history and with what similar users took next.

        now: when this is asked, seconds since 1970; None: right after the last item.
        """
        if self.form == "cached":
            return self.catalog_margins(typed, neighbors, now)[wanted]
        run, c = self._experiment, self.config.evaluation
        width = c.list_width
        count = -(-len(wanted) // width)
        lists = np.full((count, width), -1, np.int32)
        lists.ravel()[: len(wanted)] = wanted
        rows = np.tile(np.array([[0, len(typed.items)]], np.int32), (count, 1))
        context = self._context(typed, neighbors, now, rows)
        found = candidate_scores(
            self._model,
            run.candidate_source(context, rows, lists),
            name="candidates",
            num_candidates=width,
            batch_size=self._batch_size(count, c.batch_size),
            patches=run.image_room(c.patches),
            workers=0,
            yes_no_ids=run.prompt_config.chat.yes_no_ids,
            mesh=self._mesh,
        )
        return found.ravel()[: len(wanted)]

    def catalog_margins(
        self, typed: Histories, neighbors: Neighbors | None, now: float | None = None
    ) -> np.ndarray:
        """`margins` of every item, float32[items]; only of a run that ranks by cached items, which
        are encoded once."""
        rows = np.array([[0, len(typed.items)]], np.int32)
        cached = self._cached_items()
        prompts = cached.made(self._context(typed, neighbors, now, rows), rows)
        if self._cached is None:
            self._cached = cached.catalog(self.config.method, self._model, prompts)
        elif self._cached.num_items < len(self.catalog):
            self._cached = self._cached.extended(prompts)
        return arrays.fetch(self._cached.for_prompts(prompts).row_scores(np.array([0])))[0]

    def trained_part(self, typed: Histories) -> Histories:
        """A history without items that were added, which the sequential recommender does not know.

        Raises:
          UserError: nothing is left of it.
        """
        kept = typed.items < self.num_trained
        if not kept.any():
            raise UserError(
                "history: all its items are new, and a new item has no similar users; name at "
                "least one item that the run was trained with"
            )
        return typed.select(kept)

    @property
    def num_trained(self) -> int:
        """Items of the run, which stand before those that were added."""
        return len(self._experiment.dataset.catalog)

    @property
    def needs_times(self) -> bool:
        """Whether the sequential recommender reads the clock of the data."""
        return self.recommender.uses_times and self.histories.clock

    @functools.cached_property
    def recommender(self) -> SequentialRecommender:
        """The run's sequential recommender."""
        return self._experiment.recommender()

    @functools.cached_property
    def _model(self) -> MLLM:
        return self._experiment.base.trained(self.config.method, self._step)

    def _batch_size(self, count: int, most: int) -> int:
        """Rows at once for `count` of them: few shapes, which the mesh divides."""
        shards = sharding.num_batch_shards(self._mesh)
        return min(shards * power_of_two(-(-count // shards)), max(most, shards))

    def _clock(self, times: Sequence[float] | None, count: int, is_read: bool) -> np.ndarray:
        """float64[count]: `times`, or positions where nobody reads them."""
        if times is not None:
            return checked_times(times, count)
        if is_read and self.needs_times:
            raise UserError(
                f"{self.recommender.name} reads the clock: give times, seconds since 1970, one "
                "for each item of the history"
            )
        return np.arange(count, dtype=np.float64)


class Scorer(RunScorer):
    """The MLLM of a finished run of MMSRARec; the knowledge base stays in memory too."""

    takes_new_items = True

    def _open(self, config: Settings, folder: Path) -> MLLMExperiment:
        self._run = MMSRARec(config, folder, self._mesh)
        self._keywords = self._run.keywords() if config.use.summaries else None
        return self._run

    @property
    def reads_neighbors(self) -> bool:
        return self.config.use.retrieval

    def _context(
        self, typed: Histories, neighbors: Neighbors | None, now: float | None, rows: np.ndarray
    ) -> PromptContext:
        shown = None if neighbors is None else np.repeat(neighbors.items, len(rows), axis=0)
        asked = None if now is None else np.full(len(rows), now)
        return PromptContext(self.catalog, typed, self._keywords, shown, now=asked)

    def _cached_items(self) -> CachedItems:
        return self._run.cached_items()

    def neighbors(self, typed: Histories, before: float | None = None) -> Neighbors | None:
        """The users most similar to this history and what they took next, one row; None for a run
        without retrieval. Who took it is not similar to themselves."""
        if not self.reads_neighbors:
            return None
        known = self.trained_part(typed)
        rows = np.array([[0, len(known.items)]])
        return similar.search(
            self._knowledge_base,
            similar.prefix_embeddings(self.recommender, known, rows),
            np.array([self._user_index.get(str(typed.users[0]), -1)]),
            k=self._run.config.prompts.similar,
            before=None if before is None else np.array([before]),
            settings=self._run.config.retrieval,
            mesh=self._mesh,
        )

    def add(self, items: Sequence[Item]) -> None:
        """Puts new items behind the catalog, with keywords that the run's summarizer writes now.

        Raises:
          UserError: an id that is in the catalog, or twice among the new ones.
        """
        seen = set(self.catalog.index)
        for item in items:
            if item.id in seen:
                raise UserError(f"item {item.id!r} is in the catalog; a new item needs a new id")
            seen.add(item.id)
        if self._keywords is not None:
            self._keywords = [*self._keywords, *self._write_keywords(items)]
        self.catalog = self.catalog.extended(items)

    def keywords(self, item: int) -> list[str]:
        """Those of an item; none in a run without summaries."""
        written = "" if self._keywords is None else self._keywords[item]
        return [word for word in written.split(", ") if word]

    @functools.cached_property
    def _knowledge_base(self) -> KnowledgeBase:
        return similar.knowledge_base(
            self.recommender, self.histories, self._split, self._run.config.retrieval
        )

    @functools.cached_property
    def _summarizer(self) -> MLLM:
        return self._run.summary_model()

    def _write_keywords(self, items: Sequence[Item]) -> list[str]:
        """Of each new item, comma-separated."""
        run, found = self._run, [""] * len(items)
        size = self._batch_size(len(items), self.config.summaries.batch_size)
        for batch in texts.generate(
            self._summarizer,
            run.tokenizer,
            run.summary_source(Catalog.from_items(items)),
            range(len(items)),
            decoding=run.summary_decoding(size),
            mesh=self._mesh,
        ):
            for row, text in batch:
                words = parse_summary(text)
                found[row] = joined_keywords(words.image, words.text, run.keyword_counts)
        return found


def checked_times(times: Sequence[float], count: int) -> np.ndarray:
    """float64[count]. Raises UserError unless there are as many, finite and ascending."""
    if len(times) != count:
        raise UserError(f"times: {len(times)} for {count} items of the history; give as many")
    try:
        found = np.asarray(times, np.float64)
    except (TypeError, ValueError) as error:
        raise UserError(f"times: {first_line(error)}; give seconds since 1970") from error
    if not np.isfinite(found).all() or (np.diff(found) < 0).any():
        raise UserError("times: give finite numbers, oldest first, as those of the history")
    return found


def item_indices(catalog: Catalog, ids: Sequence[str], what: str) -> np.ndarray:
    """int32[n]: where raw item ids stand in the catalog of a run; what: for errors.

    Raises:
      UserError: an id that the run does not know, or no id.
    """
    if not len(ids):
        raise UserError(f"{what} is empty; give one item id or more")
    unknown = [id for id in ids if id not in catalog.index]
    if unknown:
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        remedy = did_you_mean(unknown[0], catalog.ids) or (
            f"ids are those of the raw files, such as {str(catalog.ids[0])!r}, as far as the run's "
            "filters keep them"
        )
        raise UserError(f"{what}: the run knows no item {unknown[0]!r}{more}; {remedy}")
    return np.array([catalog.index[id] for id in ids], np.int32)
