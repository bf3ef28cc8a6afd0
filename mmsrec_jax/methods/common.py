"""What every method begins and ends with: data, one sequential recommender, the table of ranks."""

import functools
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from mmsrec_jax.data import build, item_features, splits
from mmsrec_jax.data.toyshop_truth import bayes_optimal_scores, oracle_scores
from mmsrec_jax.evaluation import baselines, metrics, protocols, ranking, report
from mmsrec_jax.evaluation.metrics import Ranks
from mmsrec_jax.evaluation.results import Results
from mmsrec_jax.hf import loading, tokenizer
from mmsrec_jax.hf.mapping import config_from_hf, processor_of
from mmsrec_jax.hf.processor import read_json
from mmsrec_jax.inference.embed import embed_items
from mmsrec_jax.inputs.item_prompts import ContentSource
from mmsrec_jax.inputs.item_renderer import PromptConfig
from mmsrec_jax.models.mllm import MLLM
from mmsrec_jax.prompts import TEMPLATES, Chat
from mmsrec_jax.runtime import interruption, processes, sharding, startup
from mmsrec_jax.runtime.config_utils import choose_name
from mmsrec_jax.runtime.errors import UserError
from mmsrec_jax.runtime.workdir import Step, run_steps, share
from mmsrec_jax.sequential import registry, train
from mmsrec_jax.sequential.base import CATEGORIES
from mmsrec_jax.sequential.recommender import SequentialRecommender
from mmsrec_jax.training import metering
from mmsrec_jax.training.state import param_dtype


def check(config: ConfigDict) -> None:
    """Stops early when the data, the model or the model that the config names are not there."""
    build.check(config.data)
    path, remedy = config.model.path, config.model.path_help
    if path and not Path(path).is_dir():
        raise UserError(f"config.model.path={path}: no such folder. {remedy}".strip())
    if config.prompts.templates not in TEMPLATES:
        raise UserError(
            f"config.prompts.templates={config.prompts.templates!r} is none of "
            f"{', '.join(TEMPLATES)}"
        )
    registry.find(config.sequential_model)
    item_features.check(_feature_paths(config), can_make=bool(path))
    train.item_loss(config[config.sequential_model])
    metering.steps_to_trace(config.profile)


class Experiment:
    """One experiment: its config, its folder, and what steps read of each other's outputs."""

    def __init__(self, config: ConfigDict, workdir: Path, mesh: jax.sharding.Mesh):
        self.config, self.workdir, self.mesh = config, workdir, mesh
        self.profile = metering.steps_to_trace(config.profile)

    @classmethod
    def run(cls, config: ConfigDict, workdir: Path, only: Sequence[str] | None = None) -> None:
        """Runs the steps of `config` in `workdir`, or those named in `only`."""
        mesh = sharding.make_mesh(**config.mesh)
        startup.report_devices(mesh)
        share(workdir)
        startup.keep_compiled_programs(workdir / "compiled")
        run_steps(workdir, cls(config, workdir, mesh).steps(), only)

    def steps(self) -> list[Step]:
        """Every step with the config and the earlier steps that it depends on."""
        raise NotImplementedError

    def data_step(self) -> Step:
        c = self.config.data
        settings = {"data": c.to_dict(), "files": build.source_files(c)}
        return Step("data", self.data, settings, alone=True)

    def sequential_steps(self) -> list[Step]:
        """Trains the model `config.sequential_model`, in the step of its name; before it a step
        that makes the item features which it reads and which are not given."""
        steps = []
        if self._features_to_make:
            settings = {
                "features": self.config.features.to_dict(),
                "contents": self._features_to_make,
                "model": self.config.model.to_dict(),
                "prompts": self.config.prompts.to_dict(),
            }
            steps.append(Step("features", self.make_features, settings, ["data"]))
        inputs = ["data", *(step.name for step in steps)]
        return [
            *steps,
            Step(
                self.config.sequential_model,
                self.train_sequential,
                self.sequential_settings(),
                inputs,
            ),
        ]

    def sequential_settings(self) -> dict:
        """What a trained model depends on, for the record of a step."""
        settings = {
            self.config.sequential_model: self.config[self.config.sequential_model].to_dict()
        }
        given = {name: Path(path) for name, path in _feature_paths(self.config).items() if path}
        if given:
            settings["feature_files"] = {
                name: [path.stat().st_size, path.stat().st_mtime_ns] for name, path in given.items()
            }
        return settings

    # --- what steps read -------------------------------------------------------------------------

    @functools.cached_property
    def dataset(self):
        """Catalog, histories and split."""
        return build.open_built(self.config.data, self.workdir / "data")

    def sequential_options(self) -> dict:
        """Arguments of `sequential.train` that do not change from fold to fold."""
        catalog, histories, split = self.dataset
        return {
            "kind": self.config.sequential_model,
            "config": self.config[self.config.sequential_model],
            "histories": histories,
            "split": split,
            "num_items": len(catalog),
            "features": self.item_features(),
            "mesh": self.mesh,
            "profile": self.profile,
        }

    def item_features(self) -> dict[str, np.ndarray]:
        """float32[items, width] by name: what the model reads, standardized, and categories."""
        catalog, _, _ = self.dataset
        kind, section = (
            registry.find(self.config.sequential_model),
            self.config[self.config.sequential_model],
        )
        paths = {
            name: path or str(self._made_features(name))
            for name, path in _feature_paths(self.config).items()
        }
        found = {}
        for name, rows in item_features.read(paths, len(catalog)).items():
            if lacking := int((~rows.any(1)).sum()):
                logging.warning(
                    "%s: %d of %d items have no %s features; theirs stay zero",
                    kind.name, lacking, len(rows), name,
                )  # fmt: skip
            found[name] = item_features.standardized(rows)
        if CATEGORIES in kind.module.FEATURES:
            labels = item_features.categories(catalog, section.category_separator)
            if labels.size:
                found[CATEGORIES] = labels
            else:
                logging.info(
                    "%s: no item has a category (config.data.category_field); training goes on "
                    "without the category loss",
                    kind.name,
                )
        return found

    @property
    def _features_to_make(self) -> list[str]:
        return [name for name, path in _feature_paths(self.config).items() if not path]

    def _made_features(self, name: str) -> Path:
        return self.workdir / "features" / f"{name}.npy"

    @property
    def model_path(self) -> Path:
        return Path(self.config.model.path) if self.config.model.path else self.workdir / "model"

    @functools.cached_property
    def tokenizer(self):
        return tokenizer.load(self.model_path)

    @functools.cached_property
    def prompt_config(self) -> PromptConfig:
        """How this run puts items to the model."""
        c = self.config.prompts
        processor = processor_of(self.model_path)
        ids = config_from_hf(read_json(self.model_path / "config.json"), processor)
        # Marks around an image cost two tokens a candidate; a model from scratch learns without.
        marks = self.config.model.path != ""
        if self.config.model.max_pixels:
            processor = processor.limited(self.config.model.max_pixels)
        return PromptConfig(
            chat=Chat(
                self.tokenizer,
                image_token_id=ids.image_token_id,
                vision_start_token_id=ids.vision_start_token_id if marks else None,
                vision_end_token_id=ids.vision_end_token_id if marks else None,
                processor=processor,
            ),
            templates=TEMPLATES[c.templates],
            processor=processor if self.config.use.images else None,
            fields=tuple(c.fields),
            list_fields=tuple(c.list_fields),
            text_tokens=c.text_tokens,
            candidate_keywords=c.candidate_keywords,
        )

    def pretrained(self, name: str, trainable: str = "lora") -> MLLM:
        """The model in `config.model.path`, reported under `name`, to be trained so."""
        c = self.config.model
        model = loading.load(
            self.model_path,
            c.dtype,
            self.mesh,
            param_dtype=param_dtype(trainable, c.dtype),
            remat=c.remat,
        )
        startup.report_model(name, model)
        return model

    def recommender(self) -> SequentialRecommender:
        return SequentialRecommender.load(
            self.workdir / self.config.sequential_model / "model", self.mesh
        )

    def test_rows(self) -> np.ndarray:
        """int32[n, 2]: the test targets that are evaluated."""
        _, _, split = self.dataset
        if not len(split.test):
            raise UserError(
                "the split has no test targets; lower config.data.user_core or change it"
            )
        return splits.subset(split.test, self.config.evaluation.users, self.config.evaluation.seed)

    # --- steps -----------------------------------------------------------------------------------

    def data(self, directory: Path) -> None:
        """Reads or generates, filters, splits, stores."""
        build.build(self.config.data, directory)

    def make_features(self, directory: Path) -> None:
        """Pooled hidden states of every item, `text.npy`, `image.npy`, `item.npy`: those that the
        model reads and that are not given. A killed step goes on with the next file."""
        c = self.config.features
        catalog, _, _ = self.dataset
        missing = processes.from_main(
            lambda: [n for n in self._features_to_make if not self._made_features(n).exists()]
        )
        if not missing:
            return
        model = self.pretrained("features")
        for name in missing:
            source = ContentSource(
                catalog, self.prompt_config, length=self._prompt_length(name), content=name
            )
            counts = Counter()
            rows = embed_items(
                model,
                source,
                name=name,
                batch_size=c.batch_size,
                patches=c.patches if source.renderer.patch_width else 0,
                workers=c.workers,
                mesh=self.mesh,
                counts=counts,
            )
            if processes.is_main():
                item_features.write(self._made_features(name), rows)
            log_counts(f"features {name}", counts, self.mesh)

    def _prompt_length(self, content: str) -> int:
        """Of the longest prompt of text alone, which knows its room; else as the config says."""
        length, chat = self.config.features.length, self.prompt_config.chat
        if content != "text":
            return length
        return min(length, len(chat.ids(chat.recommender)) + self.prompt_config.text_tokens)

    def train_sequential(self, directory: Path) -> None:
        """The sequence model."""
        _, histories, _ = self.dataset
        if registry.find(self.config.sequential_model).module.USES_TIMES and not histories.clock:
            logging.warning(
                "%s reads the clock, but this data has none: positions stand for times",
                self.config.sequential_model,
            )
        train.train(**self.sequential_options(), directory=directory)


class Leaderboard:
    """Ranks of every system under every protocol in `directory`, and the table made of them.

    What lies there already, of the same candidates, is not ranked again.
    """

    def __init__(self, experiment: Experiment, directory: Path):
        self._experiment, self._directory, self._found = experiment, directory, []
        catalog, self._histories, split = experiment.dataset
        self._rows, c = experiment.test_rows(), experiment.config.evaluation
        metrics.check_cutoffs(c.k, min(len(catalog), 1 + c.negatives))
        self.frozen = protocols.sampled(
            self._histories, self._rows, n=c.negatives, seed=c.seed, num_items=len(catalog)
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
        """The baselines and the model: what ranks the whole catalog."""
        catalog, histories, split = self._experiment.dataset
        return [
            baselines.Random(len(catalog), self._experiment.config.evaluation.seed),
            baselines.Popularity(histories, split, len(catalog)),
            baselines.Cooccurrence(histories, split, len(catalog)),
            self._experiment.recommender(),
        ]

    def add(self, system: str, protocol: str, rank: Callable[[], Ranks]) -> None:
        """One row of the table; `rank` is called when the ranks are not there yet."""
        interruption.stop_if_requested()
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
        """Ranks in the whole catalog."""
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
        for name, scores_of in (("bayes_optimal", bayes_optimal_scores), ("oracle", oracle_scores)):
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


def log_counts(name: str, counts: Counter, mesh: jax.sharding.Mesh) -> None:
    """One line for each thing that was counted while examples were made, by all processes.

    Of processes that made the same part of the batches (`sharding.process_batch_shard`) one counts.
    """
    part, _ = sharding.process_batch_shard(mesh)
    counts = sum(map(Counter, dict(processes.gather([part, counts])).values()), Counter())
    for what, count in sorted(counts.items()):
        logging.info("%s: %s %s", name, f"{count:,}", what.replace("_", " "))


def _feature_paths(config: ConfigDict) -> dict[str, str]:
    """Files of the item features that the model reads; "" where none is given."""
    readable, section = (
        registry.contents(registry.find(config.sequential_model)),
        config[config.sequential_model],
    )
    if not readable:
        return {}
    field = f"config.{config.sequential_model}.contents"
    for name in section.contents:
        choose_name(name, readable, what=field)
    if not section.contents or len(set(section.contents)) < len(section.contents):
        raise UserError(f"{field}={section.contents}: name one or more, each once")
    if "image" in section.contents and not config.use.images and not section.features.image:
        raise UserError(f"{field} names 'image', but config.use.images is False; leave one out")
    return {name: section.features[name] for name in section.contents}
