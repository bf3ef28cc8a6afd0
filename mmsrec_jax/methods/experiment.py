"""What every experiment begins and ends with: data, a sequential recommender, the table."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import jax
import numpy as np
from absl import logging

from mmsrec_jax.data import build, splits
from mmsrec_jax.data.records import Dataset
from mmsrec_jax.data.toyshop import World
from mmsrec_jax.evaluation.leaderboard import Leaderboard
from mmsrec_jax.hf import tokenizer
from mmsrec_jax.hf.mapping import config_from_hf, is_text_only, processor_of
from mmsrec_jax.hf.processor import read_json
from mmsrec_jax.inputs.item_renderer import PromptConfig
from mmsrec_jax.methods import checks, features
from mmsrec_jax.methods.base_model import SECTIONS, BaseModel
from mmsrec_jax.methods.settings import Settings, described
from mmsrec_jax.pages import document, run_folder
from mmsrec_jax.pages.run_page import FILE, RunPage
from mmsrec_jax.prompts import TEMPLATES, Chat
from mmsrec_jax.runtime import lock, processes, sharding, startup, trackers
from mmsrec_jax.runtime.buckets.given import local
from mmsrec_jax.runtime.errors import UserError
from mmsrec_jax.runtime.settings import as_dict
from mmsrec_jax.runtime.workdir import Step, check_names, run_steps, share, unfinished
from mmsrec_jax.sequential import registry, train
from mmsrec_jax.sequential.recommender import SequentialRecommender
from mmsrec_jax.training import metering


def check(config: Settings) -> None:
    """Stops early when the data, the model or the item features that the config names are not
    there, or the model cannot see the images that it shall use (UserError)."""
    build.check(config.data)
    if config.data.user_fields and config.method != "mllm_srec":
        raise UserError(
            f"config.data.user_fields={config.data.user_fields}: the profile of method=mllm_srec "
            "alone reads what users state; leave it out, or set config.method=mllm_srec"
        )
    if config.data.user_fields and not config.use.profile:
        raise UserError(
            f"config.data.user_fields={config.data.user_fields}: config.use.profile=False writes "
            "no profile, which alone reads what users state; leave one of them out"
        )
    config.model.check_path()
    config.chain.check_file()
    features.check(config)
    reads_items = config.method != "sequential" or features.to_make(
        config, *config.sequential_models
    )
    pretrained = bool(config.model.path and config.use.images and reads_items)
    if pretrained and is_text_only(local(config.model.path)):
        raise UserError(
            f"config.use.images is True, but the model {config.model.path} is text-only; set "
            "--config.use.images=False"
        )


class Experiment:
    """One experiment: its config, its folder, and what steps read of each other's outputs.

    A method is a subclass: `steps` says what is done in which order, and each step is a method
    that writes to the folder it is called with.
    """

    def __init__(self, config: Settings, workdir: Path, mesh: jax.sharding.Mesh):
        self.config, self.workdir, self.mesh = config, workdir, mesh
        self.profile = metering.steps_to_trace(config.profile)
        self.base = self.make_base_model()

    @classmethod
    def run(
        cls,
        config: Settings,
        workdir: Path,
        only: Sequence[str] | None = None,
        *,
        whole: Path | None = None,
        reuse: Sequence[Path] = (),
    ) -> None:
        """Runs the steps of `config` in `workdir`, or those named in `only`.

        whole: the folder of several runs that `workdir` is in; they share its folder of compiled
        programs. None where the run is the only one. reuse: see `runtime.workdir.run_steps`.

        Raises:
          UserError: anything the user can put right, see `check` and the steps.
        """
        experiment, steps = cls.checked(config, workdir, only, reuse)
        startup.report_devices(experiment.mesh)
        share(workdir)
        startup.keep_compiled_programs((whole or workdir) / "compiled")
        tracked = trackers.tracked(config.tracking, workdir, described(config), whole=whole)
        with lock.only_run(workdir), tracked:
            experiment.run_steps(steps, only, reuse)

    @classmethod
    def checked(
        cls,
        config: Settings,
        workdir: Path,
        only: Sequence[str] | None = None,
        reuse: Sequence[Path] = (),
    ) -> tuple[Self, list[Step]]:
        """The experiment and its steps, once nothing is left that can be refused before they begin.
        Arguments and errors as of `run`."""
        check(config)
        processes.from_main(lambda: trackers.check(config.tracking.sinks))
        mesh = sharding.make_mesh(**as_dict(config.mesh))
        experiment = cls(config, workdir, mesh)
        steps = experiment.steps()
        check_names(steps, only)
        to_run = processes.from_main(lambda: unfinished(workdir, steps, only, reuse))
        checks.check_machine(config, to_run, mesh)
        for step in steps:
            if step.name in SECTIONS:
                experiment.base.check(step.name)
        return experiment, steps

    def run_steps(
        self,
        steps: Sequence[Step],
        only: Sequence[str] | None = None,
        reuse: Sequence[Path] = (),
    ) -> None:
        """Runs `steps`, or those named in `only`, and writes the run's page after each that ran; at
        the end too, if steps were taken from another run since."""
        page = RunPage(self.workdir, lambda: self.dataset, as_dict(Settings()))
        names = [step.name for step in steps]
        config = described(self.config)
        processes.from_main(lambda: run_folder.begin(self.workdir, config, names))

        def after(step: str) -> None:
            document.attempt(page.write)

        run_steps(self.workdir, steps, only, after=after, reuse=reuse)
        if processes.is_main() and run_folder.is_newer(self.workdir, self.workdir / FILE):
            document.attempt(page.write)

    def steps(self) -> list[Step]:
        """Every step with the settings and the earlier steps that it depends on."""
        raise NotImplementedError

    def make_base_model(self) -> BaseModel:
        """The MLLM that steps start from."""
        return BaseModel(self.config, self.workdir, self.mesh)

    # --- steps that experiments share ------------------------------------------------------------

    def data_step(self) -> Step:
        c = self.config.data
        settings = {"data": as_dict(c), "files": build.source_files(c)}
        return Step("data", self.data, settings, alone=True, then=self.check_data)

    def data(self, directory: Path) -> None:
        """Reads or generates, filters, splits, stores."""
        build.build(self.config.data, directory)

    def check_data(self) -> None:
        """Stops when the data that step `data` has prepared cannot do what the config asks
        (UserError)."""
        names = [step.name for step in self.steps()]
        found = build.coverage(self.workdir / "data")
        targets = self.training_targets()
        checks.check_data(self.config, names, self.dataset, coverage=found, targets=targets)
        for name in names:
            if name in SECTIONS:
                self.base.check(name, has_images=bool(found.get("image")))

    def sequential_steps(self) -> list[Step]:
        """Trains the models `config.sequential_models`, in the steps of their names; before them a
        step that makes the item features which they read and which are not given, by the base
        model."""
        c, steps = self.config, []
        if names := features.to_make(c, *c.sequential_models):
            settings = {
                "features": as_dict(c.features),
                "contents": names,
                "prompts": as_dict(c.prompts),
                **self.base.record(),
            }
            steps.append(Step("features", self.make_features, settings, self.features_read()))
        for model in c.sequential_models:
            inputs = ["data", "features"] if features.to_make(c, model) else ["data"]
            train_it = functools.partial(self.train_sequential, model)
            steps.append(Step(model, train_it, self.sequential_record(model), inputs))
        return steps

    def sequential_record(self, model: str) -> dict[str, Any]:
        """What a sequential recommender depends on, for the record of a step."""
        record = {model: as_dict(self.config.sequential(model))}
        if files := features.given(self.config, model):
            record["feature_files"] = files
        return record

    def features_read(self) -> list[str]:
        """Steps that the item features are made of."""
        return ["data", *self.base.steps]

    def candidate_keywords(self) -> Sequence[str] | None:
        """Keywords that candidates show, per item; None where they show none."""
        return None

    def make_features(self, directory: Path) -> None:
        """What the MLLM makes of every item, for the sequential recommenders."""
        catalog = self.dataset.catalog
        features.make(
            self.config,
            directory,
            catalog,
            self.prompt_config,
            self.candidate_keywords(),
            lambda: self.base.load("features"),
            self.mesh,
        )

    def train_sequential(self, model: str, directory: Path) -> None:
        """A sequential recommender."""
        histories = self.dataset.histories
        if registry.find(model).module.USES_TIMES and not histories.clock:
            logging.warning(
                "%s reads the clock, but this data has none: positions stand for times", model
            )
        train.train(**self.sequential_options(model), directory=directory)

    # --- what steps read -------------------------------------------------------------------------

    @functools.cached_property
    def dataset(self) -> Dataset:
        """What step `data` prepared."""
        return build.open_built(self.config.data, self.workdir / "data")

    def training_targets(self) -> np.ndarray:
        """int32[n, 2] (user, position): the training targets that SFT uses."""
        split = self.dataset.split
        return splits.subset(split.train, self.config.sft.rows, self.config.sft.seed)

    def test_targets(self) -> np.ndarray:
        """int32[n, 2] (user, position): the test targets that are evaluated."""
        split = self.dataset.split
        return splits.subset(split.test, self.config.evaluation.users, self.config.evaluation.seed)

    def sequential_options(self, model: str) -> dict[str, Any]:
        """Arguments of `sequential.train` that do not change from fold to fold."""
        catalog, histories, split = self.dataset
        return {
            "settings": self.config.sequential(model),
            "histories": histories,
            "split": split,
            "num_items": len(catalog),
            "features": features.read(self.config, model, self.workdir / "features", catalog),
            "mesh": self.mesh,
            "profile": self.profile,
        }

    def recommender(self, model: str = "") -> SequentialRecommender:
        """A sequential recommender that its step trained, by default the one that retrieves."""
        step = model or self.config.sequential_model
        return SequentialRecommender.load(self.workdir / step / "model", self.mesh)

    @functools.cached_property
    def tokenizer(self) -> Any:
        return tokenizer.load(self.base.path)

    @functools.cached_property
    def prompt_config(self) -> PromptConfig:
        """How this run puts items to the MLLM."""
        c, path = self.config.prompts, self.base.path
        processor = processor_of(path)
        ids = config_from_hf(read_json(path / "config.json"), processor)
        # Marks around an image cost two tokens a candidate; a model from scratch learns without.
        marks = self.base.is_pretrained
        if self.config.model.max_pixels and processor is not None:
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
            fields=c.fields,
            list_fields=c.list_fields,
            text_tokens=c.text_tokens,
            aggregate=c.aggregate,
            candidate_keywords=c.candidate_keywords,
            ratings=c.ratings,
            pauses=c.pauses,
            attribute_separator=c.attribute_separator,
        )

    # --- the end ---------------------------------------------------------------------------------

    def evaluation_step(self, settings: Mapping[str, Any], inputs: Sequence[str]) -> Step:
        """The last step; the workdir shows its table."""
        return Step("evaluation", self.evaluation, settings, inputs, shown=("table.json",))

    def evaluation(self, directory: Path) -> None:
        """Ranks of every system in `directory`, and the table."""
        raise NotImplementedError

    def leaderboard(self, directory: Path) -> Leaderboard:
        """The table of this run's systems, with ranks in `directory`."""
        catalog, histories, split = self.dataset
        c = self.config.evaluation
        return Leaderboard(
            directory,
            catalog=catalog,
            histories=histories,
            split=split,
            targets=self.test_targets(),
            negatives=c.negatives,
            cutoffs=c.k,
            seed=c.seed,
            run_seed=self.config.seed,
            run_settings=described(self.config),
            data=build.fingerprint(self.workdir / "data"),
        )

    def world(self) -> World | None:
        """The generating model of a toyshop, None for real data."""
        return build.open_world(self.workdir / "data")
