"""The settings of a finished run, as far as its steps recorded them and scoring reads them."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmsrec_jax.data.build import DataSettings
from mmsrec_jax.evaluation.settings import EvaluationSettings
from mmsrec_jax.hf.loading import ModelSettings
from mmsrec_jax.inference.settings import SummariesSettings
from mmsrec_jax.methods.base_model import check_unchanged
from mmsrec_jax.methods.mmsrarec import STEP_OF_FORM
from mmsrec_jax.methods.settings import Settings, UseSettings
from mmsrec_jax.prompts.settings import PromptSettings
from mmsrec_jax.retrieval.similar import RetrievalSettings
from mmsrec_jax.rl.settings import GRPOSettings
from mmsrec_jax.runtime import workdir
from mmsrec_jax.runtime.errors import UserError
from mmsrec_jax.runtime.settings import S, from_record
from mmsrec_jax.training.pairs import CachedSettings
from mmsrec_jax.training.sft import SFTSettings, WarmupSettings

_READ_BY_STAGE_3 = ("data", "model", "warmup", "summaries", "retrieval")


def forms(folder: Path) -> tuple[str, ...]:
    """The forms of stage 3 that a finished run trained, the one that recommends first; none of a
    run without an MLLM. Raises UserError when the run has not finished."""
    record = workdir.finished(folder, "evaluation")
    inputs = workdir.inputs(folder, "evaluation")
    if not any(step in inputs for step in STEP_OF_FORM.values()):
        return ()
    if "forms" not in record:
        raise _other_version(UserError("config.forms is missing"))
    return tuple(record["forms"])


def method(folder: Path) -> str:
    """The method of a finished run as its table names it; "" of runs that say none: MMSRARec, or a
    sequential recommender alone."""
    return workdir.finished(folder, "evaluation").get("method", "")


def settings(folder: Path, form: str | None = None) -> Settings:
    """Those of a run that trained an MLLM.

    form: of stage 3, first among `forms` of what is returned; None: the run's first.

    Raises:
      UserError: the run did not train that form; a step has not finished, an input of what trained
        its MLLM ran again since, or a step recorded other fields than this version has.
    """
    evaluated = workdir.finished(folder, "evaluation")
    if "sequential_model" not in evaluated:
        raise _other_version(UserError("config.sequential_model is missing"))
    trained = forms(folder)
    form = form or trained[0]
    if form not in trained:
        raise UserError(f"{folder}: the run trained no form {form!r}, but {', '.join(trained)}")
    step = STEP_OF_FORM[form]
    tuned = workdir.finished(folder, step, same=_READ_BY_STAGE_3)
    found = Settings(
        sequential_model=evaluated["sequential_model"],
        forms=(form, *(other for other in trained if other != form)),
        data=_read(DataSettings, workdir.finished(folder, "data"), "data"),
        model=_read(ModelSettings, tuned, "model"),
        use=_read(UseSettings, tuned, "use"),
        prompts=_read(PromptSettings, tuned, "prompts"),
        evaluation=_read(EvaluationSettings, evaluated, "evaluation"),
    )
    if found.model.path:
        check_unchanged(tuned, step, Path(found.model.path))
    if form == "joint":
        found = dataclasses.replace(found, sft=_read(SFTSettings, tuned, "sft"))
    else:
        found = dataclasses.replace(found, cached=_read(CachedSettings, tuned, "cached"))
    if "warmup" in workdir.inputs(folder, step):
        record = workdir.finished(folder, "warmup")
        found = dataclasses.replace(found, warmup=_read(WarmupSettings, record, "warmup"))
    workdir.finished(folder, evaluated["sequential_model"])
    if found.use.retrieval:
        record = workdir.finished(folder, "retrieval")
        found = dataclasses.replace(found, retrieval=_read(RetrievalSettings, record, "retrieval"))
    if found.use.summaries:
        written = workdir.finished(folder, "summaries")
        tuned = workdir.finished(folder, "summarizer") if found.use.rewards else written
        found = dataclasses.replace(
            found,
            summaries=_read(SummariesSettings, written, "summaries"),
            summarizer=_read(GRPOSettings, tuned, "summarizer"),
        )
    return found


def _read(cls: type[S], record: Mapping[str, Any], section: str) -> S:
    try:
        if section not in record:
            raise UserError(f"config.{section} is missing")
        return from_record(cls, record[section], f"config.{section}")
    except UserError as error:
        raise _other_version(error) from error


def _other_version(error: UserError) -> UserError:
    return UserError(
        f"{error} (in the record of a step: another version wrote it; run launch/train.py with "
        "this --workdir again)"
    )
