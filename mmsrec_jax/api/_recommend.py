"""Ranked items for a history that someone typed, by a finished run."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mmsrec_jax.data import build
from mmsrec_jax.data.records import Catalog, Dataset
from mmsrec_jax.methods import recorded
from mmsrec_jax.methods.recommending import open_scorer
from mmsrec_jax.methods.scorer import RunScorer, checked_times, item_indices
from mmsrec_jax.runtime import workdir as workdir_lib
from mmsrec_jax.runtime.buckets.given import local_run
from mmsrec_jax.runtime.errors import UserError
from mmsrec_jax.runtime.settings import check_number
from mmsrec_jax.sequential import registry
from mmsrec_jax.sequential.recommender import SequentialRecommender


class Recommendation(NamedTuple):
    """An item by its raw id. Scores of one call compare with each other, not with other calls'."""

    item_id: str
    score: float
    title: str


def recommend(
    workdir: str | Path,
    history: Sequence[str],
    candidates: Sequence[str] | None = None,
    top: int = 10,
    *,
    times: Sequence[float] | None = None,
) -> list[Recommendation]:
    """The items that a finished run ranks first after a history, best first.

    Without candidates the whole catalog is ranked, without the items of the history: by the run's
    MLLM where items are cached (`config.forms`), else by its sequential recommender. With
    candidates the MLLM ranks them by logit(yes) - logit(no). The weights of the last run
    that was asked stay in memory.

    Args:
      workdir: folder of a finished run.
      history: raw item ids, oldest first.
      candidates: raw item ids, each once.
      top: how many at most.
      times: seconds since 1970, one for each item of the history; only for models that read the
        clock (hm4sr).

    Raises:
      UserError: an id that the run does not know, an empty history, or a run that is not finished.

    >>> best = mmsrec_jax.recommend("runs/shop", ["i0007", "i0023"], top=3)
    >>> len(best), best[0].score >= best[1].score >= best[2].score
    (3, True)
    >>> for item_id, score, title in best:
    ...     assert item_id not in ("i0007", "i0023")
    >>> mmsrec_jax.recommend("runs/shop", ["i0007", "mug"])
    Traceback (most recent call last):
        ...
    mmsrec_jax.runtime.errors.UserError: history: the run knows no item 'mug'; ids are those ...
    """
    workdir = local_run(workdir)
    if isinstance(history, str) or isinstance(candidates, str):
        raise UserError("history and candidates are lists of item ids, not one text")
    if not workdir.is_dir():
        raise UserError(f"{workdir}: no such workdir; name the folder of a finished run")
    check_number("top", top, low=1)
    if candidates is not None:
        return _among(workdir, history, candidates, times)[:top]
    fingerprint = workdir_lib.fingerprint(workdir, "evaluation")
    if recorded.forms(workdir)[:1] == ("cached",):
        scorer = _scorer(workdir.resolve(), fingerprint)
        catalog = scorer.catalog
        past = item_indices(catalog, history, "history")
        typed = scorer.typed(past, times, clock_is_read=scorer.reads_neighbors)
        scores = scorer.catalog_margins(typed, scorer.neighbors(typed))
    else:
        run = _open(workdir.resolve(), fingerprint)
        catalog = run.dataset.catalog
        past = item_indices(catalog, history, "history")
        scores = _scores(run, past, times)
    ranked = np.argsort(-scores, kind="stable")
    chosen = ranked[~np.isin(ranked, past)][:top]
    return [_recommendation(catalog, int(item), scores[item]) for item in chosen]


def _among(
    workdir: Path,
    history: Sequence[str],
    candidates: Sequence[str],
    times: Sequence[float] | None,
) -> list[Recommendation]:
    """All candidates, best first."""
    if not recorded.forms(workdir):
        raise UserError(
            f"{workdir}: this run has a sequential recommender alone, and no model that looks at "
            "candidates; leave candidates out"
        )
    if len(set(candidates)) < len(candidates):
        raise UserError("candidates: an item is named twice; name each once")
    scorer = _scorer(workdir.resolve(), workdir_lib.fingerprint(workdir, "evaluation"))
    scores, catalog = scorer.scores(history, candidates, times=times), scorer.catalog
    items = item_indices(catalog, candidates, "candidates")
    order = np.argsort(-scores, kind="stable")
    return [_recommendation(catalog, int(items[place]), scores[place]) for place in order]


class _Run(NamedTuple):
    dataset: Dataset
    recommender: SequentialRecommender


@functools.lru_cache(maxsize=1)
def _open(workdir: Path, fingerprint: str) -> _Run:
    """What is in memory of a run; `fingerprint` tells that it ran again."""
    del fingerprint
    name = next(n for n in workdir_lib.inputs(workdir, "evaluation") if n in registry.MODELS)
    recommender = SequentialRecommender.load(workdir / name / "model")
    return _Run(build.open_run(workdir), recommender)


@functools.lru_cache(maxsize=1)
def _scorer(workdir: Path, fingerprint: str) -> RunScorer:
    """As `_open`, of the run's MLLM."""
    del fingerprint
    return open_scorer(workdir)


def _scores(run: _Run, past: np.ndarray, times: Sequence[float] | None) -> np.ndarray:
    """float32[items]."""
    recommender, clock = run.recommender, None
    if recommender.uses_times and run.dataset.histories.clock:
        if times is None:
            raise UserError(
                f"{recommender.name} reads the clock: give times, seconds since 1970, one for each "
                "item of the history"
            )
        clock = checked_times(times, len(past))[None]
    return np.asarray(recommender.scores(past[None], clock))[0]


def _recommendation(catalog: Catalog, item: int, score: float) -> Recommendation:
    return Recommendation(str(catalog.ids[item]), float(score), catalog[item].title)
