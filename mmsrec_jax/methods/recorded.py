"""The settings of a finished run, as far as its steps recorded them and scoring reads them."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmsrec_jax.data.build import DataSettings
from mmsrec_jax.evaluation.settings import EvaluationSettings
from mmsrec_jax.hf.loading import ModelSettings
from mmsrec_jax.inference.settings import SummariesSettings
from mmsrec_jax.inputs.chains import ChainSettings
from mmsrec_jax.inputs.tastes import PreferenceSettings
from mmsrec_jax.methods import mllm_srec, mmsrarec
from mmsrec_jax.methods.base_model import check_unchanged
from mmsrec_jax.methods.settings import Settings, UseSettings
from mmsrec_jax.methods.user_texts import FIELDS, PREFERENCES, PROFILES, USERS, WRITER
from mmsrec_jax.prompts.settings import PromptSettings
from mmsrec_jax.retrieval.similar import RetrievalSettings
from mmsrec_jax.rl.settings import GRPOSettings
from mmsrec_jax.runtime import workdir
from mmsrec_jax.runtime.buckets.given import local
from mmsrec_jax.runtime.errors import UserError
from mmsrec_jax.runtime.settings import S, from_record
from mmsrec_jax.training.pairs import CachedSettings
from mmsrec_jax.training.sft import SFTSettings, WarmupSettings, WriterSettings

_READ_BY_STAGE_3 = (
    "data", "model", "warmup", "summaries", "retrieval", "item_texts", "preferences", "profiles",
)  # fmt: skip


def forms(folder: Path) -> tuple[str, ...]:
    """The forms of stage 3 that a finished run trained, the one that recommends first; none of a
    run without an MLLM. Raises UserError when the run has not finished."""
    record = workdir.finished(folder, "evaluation")
    inputs = workdir.inputs(folder, "evaluation")
    if not any(step in inputs for step in steps_of_forms(folder).values()):
        return ()
    if "forms" not in record:
        raise _other_version(UserError("config.forms is missing"))
    return tuple(record["forms"])


def method(folder: Path) -> str:
    """The method of a finished run as its table names it; "" of runs that say none: MMSRARec, or a
    sequential recommender alone."""
    return workdir.finished(folder, "evaluation").get("method", "")


def steps_of_forms(folder: Path) -> Mapping[str, str]:
    """The step that trains each form of stage 3 in a finished run."""
    of_srec = method(folder) == mllm_srec.NAME
    return mllm_srec.STEP_OF_FORM if of_srec else mmsrarec.STEP_OF_FORM


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
    step = steps_of_forms(folder)[form]
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
        check_unchanged(tuned, step, local(found.model.path))
    if form == "joint":
        found = dataclasses.replace(found, sft=_read(SFTSettings, tuned, "sft"))
    else:
        found = dataclasses.replace(found, cached=_read(CachedSettings, tuned, "cached"))
    if "warmup" in workdir.inputs(folder, step):
        record = workdir.finished(folder, "warmup")
        found = dataclasses.replace(found, warmup=_read(WarmupSettings, record, "warmup"))
    workdir.finished(folder, evaluated["sequential_model"])
    if method(folder) == mllm_srec.NAME:
        return _with_texts(found, folder, tuned, evaluated)
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


def _with_texts(
    found: Settings, folder: Path, tuned: Mapping[str, Any], evaluated: Mapping[str, Any]
) -> Settings:
    """Beside it what MLLM-SRec reads to write texts about users."""
    if "chain" not in tuned or "scoring" not in evaluated:
        raise _other_version(UserError("config.chain is missing"))
    found = dataclasses.replace(
        found,
        method=mllm_srec.NAME,
        preferences=_read(PreferenceSettings, tuned, "preferences"),
        chain=ChainSettings(scoring=evaluated["scoring"], label_weight=tuned["chain"]["weight"]),
    )
    if found.use.profile and USERS in workdir.inputs(folder, PROFILES):
        workdir.finished(folder, PROFILES, same=[USERS])
        fields = tuple(workdir.finished(folder, USERS)[FIELDS])
        data = dataclasses.replace(found.data, user_fields=fields)
        found = dataclasses.replace(found, data=data)
    if WRITER not in workdir.inputs(folder, PREFERENCES):
        return found
    record = workdir.finished(folder, WRITER)
    return dataclasses.replace(found, writer=_read(WriterSettings, record, WRITER))


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
