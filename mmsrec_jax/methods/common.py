"""What every method begins and ends with: data, one recommendation head, the table of ranks."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from mmsrec_jax import sharding, startup
from mmsrec_jax.data import build, splits
from mmsrec_jax.data.toyshop_truth import attainable_scores, oracle_scores
from mmsrec_jax.errors import UserError
from mmsrec_jax.evaluation import baselines, metrics, protocols, ranking, report
from mmsrec_jax.evaluation.metrics import Ranks
from mmsrec_jax.evaluation.results import Results
from mmsrec_jax.models.heads import features, kinds
from mmsrec_jax.models.heads.head import Head
from mmsrec_jax.training import heads
from mmsrec_jax.workdir import Stage, run_stages


def check(config: ConfigDict) -> None:
    """Stops early when the data or the head that the config names are not there."""
    build.check(config.data)
    kinds.find(config.head)
    features.check(_feature_paths(config))
    heads.item_loss(config[config.head])


class Experiment:
    """One experiment: its config, its folder, and what stages read of each other's outputs."""

    def __init__(self, config: ConfigDict, workdir: Path, mesh: jax.sharding.Mesh):
        self.config, self.workdir, self.mesh = config, workdir, mesh

    @classmethod
    def run(cls, config: ConfigDict, workdir: Path, only: Sequence[str] | None = None) -> None:
        """Runs the stages of `config` in `workdir`, or those named in `only`."""
        mesh = sharding.make_mesh(**config.mesh)
        startup.report_devices(mesh)
        workdir.mkdir(parents=True, exist_ok=True)
        startup.keep_compiled_programs(workdir / "compiled")
        run_stages(workdir, cls(config, workdir, mesh).stages(), only)

    def stages(self) -> list[Stage]:
        """Every stage with the config and the earlier stages that it depends on."""
        raise NotImplementedError

    def data_stage(self) -> Stage:
        c = self.config.data
        return Stage("data", self.data, {"data": c.to_dict(), "files": build.source_files(c)})

    def head_stage(self) -> Stage:
        """Trains the head `config.head`; the stage has its name."""
        return Stage(self.config.head, self.train_head, self.head_settings(), ["data"])

    def head_settings(self) -> dict:
        """What a trained head depends on, for the record of a stage."""
        settings = {self.config.head: self.config[self.config.head].to_dict()}
        if paths := _feature_paths(self.config):
            settings["feature_files"] = {
                name: [Path(path).stat().st_size, Path(path).stat().st_mtime_ns]
                for name, path in paths.items()
            }
        return settings

    # --- what stages read -------------------------------------------------------------------------

    @functools.cached_property
    def dataset(self):
        """Catalogue, histories and split."""
        return build.open_built(self.config.data, self.workdir / "data")

    def head_options(self) -> dict:
        """Arguments of `training.heads` that do not change from fold to fold."""
        catalogue, histories, split = self.dataset
        return {
            "kind": self.config.head,
            "config": self.config[self.config.head],
            "histories": histories,
            "split": split,
            "num_items": len(catalogue),
            "features": features.read(_feature_paths(self.config), len(catalogue)),
            "mesh": self.mesh,
        }

    def head(self) -> Head:
        return Head.load(self.workdir / self.config.head / "head", self.mesh)

    def test_rows(self) -> np.ndarray:
        """int32[n, 2]: the test targets that are evaluated."""
        _, _, split = self.dataset
        if not len(split.test):
            raise UserError(
                "the split has no test targets; lower config.data.user_core or change it"
            )
        return splits.subset(split.test, self.config.evaluation.users, self.config.evaluation.seed)

    # --- stages -----------------------------------------------------------------------------------

    def data(self, directory: Path) -> None:
        """Reads or generates, filters, splits, stores."""
        build.build(self.config.data, directory)

    def train_head(self, directory: Path) -> None:
        """The sequence model."""
        heads.train(**self.head_options(), directory=directory)


class Scoreboard:
    """Ranks of every system under every protocol in `directory`, and the table made of them.

    What lies there already, of the same candidates, is not ranked again.
    """

    def __init__(self, experiment: Experiment, directory: Path):
        self._experiment, self._directory, self._found = experiment, directory, []
        catalogue, self._histories, split = experiment.dataset
        self._rows, c = experiment.test_rows(), experiment.config.evaluation
        metrics.check_cutoffs(c.k, min(len(catalogue), 1 + c.negatives))
        self.frozen = protocols.sampled(
            self._histories, self._rows, n=c.negatives, seed=c.seed, num_items=len(catalogue)
        )
        self.frozen.write(directory / "candidates.parquet")
        self._digests = {
            self.frozen.name: self.frozen.digest,
            protocols.FULL: protocols.full_digest(self._rows),
        }
        self._results = Results(
            directory,
            data=build.fingerprint(experiment.workdir / "data"),
            split=split.kind,
            seed=experiment.config.seed,
            config=experiment.config.to_dict(),
        )

    def systems(self) -> list[ranking.System]:
        """The floors and the head: what ranks the whole catalogue."""
        catalogue, histories, split = self._experiment.dataset
        return [
            baselines.Random(len(catalogue), self._experiment.config.evaluation.seed),
            baselines.Popularity(histories, split, len(catalogue)),
            baselines.Cooccurrence(histories, split, len(catalogue)),
            self._experiment.head(),
        ]

    def add(self, system: str, protocol: str, rank: Callable[[], Ranks]) -> None:
        """One row of the table; `rank` is called when the ranks are not there yet."""
        ranks = self._results.add(system, protocol, self._digests[protocol], rank)
        self._found.append((system, protocol, self._experiment.config.seed, ranks))

    def add_sampled(self, system: ranking.System) -> None:
        """Ranks among the frozen candidates."""
        self.add(
            system.name,
            self.frozen.name,
            lambda: ranking.sampled(system, self._histories, self.frozen),
        )

    def add_full(self, system: ranking.System) -> None:
        """Ranks in the whole catalogue."""
        self.add(
            system.name,
            protocols.FULL,
            lambda: ranking.full(
                system, self._histories, self._rows, top=max(self._experiment.config.evaluation.k)
            ),
        )

    def add_truth(self) -> None:
        """What a toyshop allows to know, under both protocols; nothing for real data."""
        world = build.open_world(self._experiment.workdir / "data")
        if world is None:
            return
        for name, scores_of in (("attainable", attainable_scores), ("oracle", oracle_scores)):
            scores = scores_of(world, self._histories, self._rows)
            listed = np.take_along_axis(scores, self.frozen.items, axis=1)
            self.add(
                name,
                self.frozen.name,
                functools.partial(ranking.from_scores, name, listed, self.frozen),
            )
            self.add(
                name,
                protocols.FULL,
                functools.partial(
                    ranking.full_from_scores,
                    name,
                    scores,
                    self._histories,
                    self._rows,
                    top=max(self._experiment.config.evaluation.k),
                ),
            )

    def finish(self) -> None:
        """Writes table.json beside the ranks and in the run's folder, and logs it."""
        table = report.rows_from_ranks(self._found, self._experiment.config.evaluation.k)
        report.write_table(self._directory / "table.json", table)
        report.write_table(self._experiment.workdir / "table.json", table)
        for line in report.screen_table(table).splitlines():
            logging.info("%s", line)


def _feature_paths(config: ConfigDict) -> dict[str, str]:
    names = kinds.find(config.head).module.FEATURES
    return {name: config[config.head].features[name] for name in names}
