"""The comparison of finished runs as data."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmsrec_jax.evaluation import metrics
from mmsrec_jax.evaluation.comparison import bootstrap, compare
from mmsrec_jax.runtime.buckets.given import local_run
from mmsrec_jax.runtime.config_utils import choose_name
from mmsrec_jax.runtime.errors import UserError
from mmsrec_jax.runtime.settings import MAX_SEED, check_number


def evaluate(
    workdirs: Sequence[str | Path],
    *,
    baseline: str = compare.BASELINE,
    k: int | Sequence[int] = metrics.CUTOFFS,
    ties: str = metrics.PESSIMISTIC,
    resamples: int = bootstrap.RESAMPLES,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Every system of finished runs, user by user: one dict for each number, which pandas reads.

    A dict says what the number is (`protocol`, `slice`, `users`, `system`, `metric` as "hr@10"),
    the number (`value`, the mean over users and seeds; `seeds`, and `sd` between them) and how sure
    the `difference` to `baseline` is (`low`, `high`: 95% paired bootstrap over users). None where
    there is nothing. Runs of one config with several seeds are one system.

    Args:
      workdirs: folders of finished runs of the same data, split and candidates.
      baseline: the system that differences are taken to.
      k: cut-offs of the metrics.
      ties: "pessimistic" counts equal scores against a system, "expected" takes their mean.
      resamples, seed: of the bootstrap.

    Raises:
      UserError: a run that is not finished or cannot be compared with the first, an unknown
        baseline, a cut-off beyond what competes, or a number out of its range.

    >>> table = mmsrec_jax.evaluate(["runs/shop"], baseline="popularity", k=5)
    >>> whole = [row for row in table if row["slice"] == "all" and row["protocol"] == "full"]
    >>> sorted({row["system"] for row in whole})
    ['cooccurrence', 'popularity', 'random', 'sasrec']
    >>> best = max((row for row in whole if row["metric"] == "hr@5"), key=lambda row: row["value"])
    >>> 0 <= best["value"] <= 1
    True
    """
    if isinstance(workdirs, str | Path):
        raise UserError("workdirs is one path; give a list of them")
    cutoffs = [k] if isinstance(k, int) else list(k)
    for cutoff in cutoffs:
        check_number("k", cutoff, low=1, high=1_000_000)
    check_number("resamples", resamples, low=1, high=100_000)
    check_number("seed", seed, low=0, high=MAX_SEED)
    rows, _ = compare.table(
        [local_run(workdir) for workdir in workdirs],
        baseline=baseline,
        cutoffs=cutoffs,
        ties=choose_name(ties, (metrics.PESSIMISTIC, metrics.EXPECTED), what="ties"),
        resamples=resamples,
        seed=seed,
    )
    return [dataclasses.asdict(row) for row in rows]
