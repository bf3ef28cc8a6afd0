"""Ranks of every system under every protocol, and the table made of them."""

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from mmsrec_jax.data.records import Catalog, Histories, Split
from mmsrec_jax.data.toyshop import World
from mmsrec_jax.data.toyshop_groups import learned_leads
from mmsrec_jax.data.toyshop_truth import bayes_optimal_scores, oracle_scores
from mmsrec_jax.evaluation import baselines, id_map, metrics, protocols, ranking, report
from mmsrec_jax.evaluation.metrics import Ranks
from mmsrec_jax.evaluation.protocols import Candidates
from mmsrec_jax.evaluation.results import Results
from mmsrec_jax.runtime import interruption


class Leaderboard:
    """Ranks of systems on the same test targets, in `directory`, in the order they were added.

    Under `full` the whole catalog competes, under `sampled@n` the frozen candidates in
    `candidates-sampled@n.parquet`. What lies in the folder already, of the same candidates, is not
    ranked again.

    Args:
      targets: int32[n, 2] (user, position), the test targets.
      negatives: of a list of frozen candidates; one protocol for each number.
      cutoffs: of the metrics; the longest list of best items is stored.
      seed: of the frozen candidates and of the random system.
      run_seed, run_settings: of the run, see `evaluation.results`.
      data: fingerprint of the data set.
    """

    def __init__(
        self,
        directory: Path,
        *,
        catalog: Catalog,
        histories: Histories,
        split: Split,
        targets: np.ndarray,
        negatives: Sequence[int],
        cutoffs: Sequence[int],
        seed: int,
        run_seed: int,
        run_settings: Mapping[str, Any],
        data: str,
    ):
        metrics.check_cutoffs(cutoffs, min(len(catalog), 1 + min(negatives)))
        self._directory, self._cutoffs = directory, cutoffs
        self._num_items, self._histories, self._split = len(catalog), histories, split
        self._item_ids = catalog.ids
        self.targets, self._seed, self._run_seed = targets, seed, run_seed
        self._found: list[tuple[str, str, int, Ranks]] = []
        self.frozen: tuple[Candidates, ...] = tuple(
            protocols.sampled(histories, targets, n=n, seed=seed, num_items=len(catalog))
            for n in negatives
        )
        self._digests = {protocols.FULL: protocols.full_digest(targets)}
        for frozen in self.frozen:
            frozen.write(protocols.candidates_file(directory, frozen.name))
            self._digests[frozen.name] = frozen.digest
        self._results = Results(
            directory, data=data, split=split.kind, seed=run_seed, config=run_settings
        )

    def baselines(self) -> list[ranking.System]:
        """What needs no training: random, popularity, co-occurrence."""
        return [
            baselines.Random(self._num_items, self._seed),
            baselines.Popularity(self._histories, self._split, self._num_items),
            baselines.Cooccurrence(self._histories, self._split, self._num_items),
        ]

    def add(self, system: ranking.System | ranking.RowSystem) -> None:
        """Ranks under every protocol. A `RowSystem` must be of the board's targets."""
        self.add_in_one_pass(system.name, lambda: system)

    def add_in_one_pass(
        self, name: str, system: Callable[[], ranking.System | ranking.RowSystem]
    ) -> None:
        """`add` of a system that is made when ranks are not there yet."""
        protocol_names = [protocols.FULL, *(frozen.name for frozen in self.frozen)]
        made: dict[str, Ranks] = {}

        def rank(protocol: str) -> Ranks:
            if not made:
                found = ranking.full_and_sampled(
                    system(), self._histories, self.frozen, top=max(self._cutoffs)
                )
                made.update(zip(protocol_names, found, strict=True))
            return made[protocol]

        for protocol in protocol_names:
            self._add(name, protocol, functools.partial(rank, protocol))

    def add_full_ranks(self, name: str, rank: Callable[[], Ranks]) -> None:
        """Ranks in the whole catalog that `rank` finds; called when they are not there yet."""
        self._add(name, protocols.FULL, rank)

    def add_scores(self, name: str, score: Callable[[Candidates], np.ndarray]) -> None:
        """Ranks among frozen candidates from their scores.

        score: what makes float[n, 1 + negatives] of one of `frozen`, aligned with its `items`;
          called when the ranks are not there yet.
        """

        def rank(frozen: Candidates) -> Ranks:
            return ranking.from_scores(name, score(frozen), frozen)

        for frozen in self.frozen:
            self._add(name, frozen.name, functools.partial(rank, frozen))

    def add_truth(self, world: World | None) -> None:
        """What a toyshop allows to know, under every protocol; nothing for real data."""
        if world is None:
            return
        histories, rows = self._histories, self.targets
        leads = learned_leads(world, histories, self._split.train_end)
        learned = bayes_optimal_scores(world, histories, rows, leads=leads)
        self._add_known("bayes_learned_groups", learned)
        self._add_known("bayes_optimal", bayes_optimal_scores(world, histories, rows))
        self._add_known("oracle", oracle_scores(world, histories, rows))

    def _add_known(self, name: str, scores: np.ndarray) -> None:
        """Every protocol from scores of the whole catalog, float[n, items]."""
        self.add_scores(name, lambda frozen: np.take_along_axis(scores, frozen.items, axis=1))
        self._add(
            name,
            protocols.FULL,
            lambda: ranking.full_from_scores(
                name, scores, self._histories, self.targets, top=max(self._cutoffs)
            ),
        )

    def finish(self) -> None:
        """Writes the table to `table.json` beside the ranks, and the raw ids that their numbers
        stand for; logs the table.

        The rows of a protocol stand together, those of the full catalog first.
        """
        id_map.write_items(self._directory, self._item_ids)
        id_map.write_users(self._directory, self._histories.users)
        order = list(self._digests)
        found = sorted(self._found, key=lambda entry: order.index(entry[1]))
        table = report.rows_from_ranks(found, self._cutoffs)
        report.write_table(self._directory / "table.json", table)
        for line in report.screen_table(table).splitlines():
            logging.info("%s", line)

    def _add(self, system: str, protocol: str, rank: Callable[[], Ranks]) -> None:
        interruption.stop_if_requested()
        ranks = self._results.add(system, protocol, self._digests[protocol], rank)
        self._found.append((system, protocol, self._run_seed, ranks))
