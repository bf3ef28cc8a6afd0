"""A step's model out of a run's folder: which files hold its base and what was trained of it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mmsrec_jax.data import build
from mmsrec_jax.hf import exporting
from mmsrec_jax.hf.exporting import Adapters, Parameters
from mmsrec_jax.hf.mapping import ParamSpec, is_text_only
from mmsrec_jax.hf.processor import read_json
from mmsrec_jax.methods import model_card
from mmsrec_jax.methods.base_model import (
    MODEL,
    SECTIONS,
    SFT,
    WARMUP,
    base_path,
    check_unchanged,
    trained_by,
)
from mmsrec_jax.methods.model_card import Card
from mmsrec_jax.models import trainable as trainables
from mmsrec_jax.runtime import workdir as workdir_lib
from mmsrec_jax.runtime.buckets.objects import is_url
from mmsrec_jax.runtime.errors import UserError
from mmsrec_jax.sequential import exporting as sequential_exporting
from mmsrec_jax.sequential import standalone
from mmsrec_jax.sequential.recommender import SequentialRecommender
from mmsrec_jax.sequential.registry import MODELS
from mmsrec_jax.training.weights import Stored

READ_FIRST = ("config.json", "adapter_config.json", standalone.ABOUT)
"""Files of which whoever loads a model reads one before all others."""

_TOP_K = 100


def export(
    workdir: Path,
    out: Path,
    *,
    step: str | None = None,
    adapter_only: bool = False,
    merge: bool = False,
    dtype: str | None = None,
    max_shard_bytes: int | None = None,
    top_k: int | None = None,
    license: str = "",
    base_model: str = "",
) -> str:
    """Writes the model that `step` of the run in `workdir` left to the new folder `out`; returns
    the name of the step.

    `step` None is sft, or cached in a run that trains that form alone.

    A step that trained every weight gives a whole model. One that trained adapters, the connector
    or both gives a whole model too, with the adapters merged into it, or the adapters (and the
    connector) alone in peft's format. `dtype` None is the one that the run computed in, for
    adapters float32.

    A sequential recommender becomes a program that gives the best `top_k` items, 100 if that is
    None (`sequential.exporting`). `license` is named in the folder's model card, README.md, and so
    is `base_model`, the name of the base model on the Hugging Face Hub, where peft then finds it.

    Raises:
      UserError: the step has not finished, `out` is not empty, `base_model` is no such name, or
        flags do not fit the step.
    """
    if step is None:
        cached_alone = (workdir / "cached").is_dir() and not (workdir / "sft").is_dir()
        step = "cached" if cached_alone else "sft"
    if step in MODELS:
        if adapter_only or merge or dtype or max_shard_bytes or base_model:
            raise UserError(
                f"step {step} of {workdir} is a sequential recommender: leave --merge, "
                "--adapter_only, --dtype, --max_shard_gib and --base_model out"
            )
        _export_sequential(workdir, out, step, _TOP_K if top_k is None else top_k, license)
        return step
    if top_k is not None:
        raise UserError(f"step {step} of {workdir} is an MLLM: leave --top_k out")
    if base_model and not model_card.is_hub_name(base_model):
        raise UserError(
            f"--base_model={base_model}: write a name on the Hub, as in Qwen/Qwen2.5-VL-3B-Instruct"
        )
    config = workdir_lib.finished(workdir, step, same=(MODEL, WARMUP))
    if step == SFT and not config.get("use", {}).get("sft", True):
        raise UserError(
            f"step sft of {workdir} trained nothing (config.use.sft=False): the run ranks by its "
            "base model; export that with --step=warmup if the run warmed it up"
        )
    base = base_path(workdir, config["model"]["path"])
    if not base.is_dir():
        raise UserError(
            f"{base}: the base model of {workdir} is not there; go to the folder where the run "
            "was started, or put the model back"
        )
    check_unchanged(config, step, base)
    max_pixels = config["model"]["max_pixels"]
    trained = _Trained(workdir, step, config)
    _check_flags(trained, merge, adapter_only)
    card = _card(workdir, step, config, base, base_model, adapter_only, license)
    if adapter_only:
        given = config["model"]["path"]
        name = given if is_url(given) else str(base.resolve()) if given else None
        adapters, connector = _adapters_alone(workdir, trained)
        exporting.write_adapters(
            out,
            adapters,
            base,
            connector=connector,
            dtype=dtype or "float32",
            base_name=base_model or name,
            max_pixels=max_pixels,
            card=card,
        )
    else:
        exporting.write_model(
            out,
            trained.on(_base_parameters(workdir, base, step, config)),
            base,
            dtype=dtype or config["model"]["dtype"],
            max_pixels=max_pixels,
            max_shard_bytes=max_shard_bytes or exporting.MAX_SHARD_BYTES,
            card=card,
        )
    return step


def _export_sequential(workdir: Path, out: Path, step: str, top_k: int, license: str) -> None:
    workdir_lib.finished(workdir, step, same=("data",))
    recommender = SequentialRecommender.load(workdir / step / "model")
    times = ", times=[[1700000000, 1700086400]]" if recommender.uses_times else ""
    loading = (
        "# pip install jax numpy flatbuffers\n"
        "from recommend import Recommender\n\n"
        f'Recommender(".").top([["ITEM_ID", "ITEM_ID"]]{times})\n'
    )
    card = Card(step, "jax", "", "", license, _data(workdir), loading)
    catalog = build.open_run(workdir).catalog
    sequential_exporting.write(
        out,
        recommender,
        catalog.ids.tolist(),
        top_k=top_k,
        card=card.text(model_card.table_of(workdir)),
    )


def _data(workdir: Path) -> str:
    """Name of the run's data set: that of its folder, or of what is no atomic files."""
    if not (workdir / "data").is_dir():
        return "unknown"
    settings = build.settings_of_run(workdir)
    return Path(settings.root).resolve().name if settings.source == "atomic" else settings.source


def _card(
    workdir: Path,
    step: str,
    config: Mapping[str, Any],
    base: Path,
    hub_base: str,
    adapter_only: bool,
    license: str,
) -> str:
    text_only = is_text_only(base)
    auto = "AutoModelForCausalLM" if text_only else "AutoModelForImageTextToText"
    if adapter_only:
        loading = (
            f"from transformers import {auto}\nfrom peft import PeftModel\n\n"
            f'base = {auto}.from_pretrained("{hub_base or "BASE_MODEL"}")\n'
            'model = PeftModel.from_pretrained(base, "DIR")\n'
        )
    else:
        loading = (
            f'from transformers import {auto}\n\nmodel = {auto}.from_pretrained("DIR")\n\n'
            'import mmsrec_jax\n\nmodel = mmsrec_jax.load("DIR")\n'
        )
    stated = str(read_json(base / "config.json").get("_name_or_path") or config["model"]["path"])
    if not hub_base and model_card.is_hub_name(stated) and not Path(stated).exists():
        hub_base = stated
    card = Card(
        step,
        "peft" if adapter_only else "transformers",
        hub_base or Path(stated).name,
        hub_base,
        license,
        _data(workdir),
        loading,
        "text-generation" if text_only else "image-text-to-text",
    )
    return card.text(model_card.table_of(workdir))


class _Trained:
    """What a step trained, read from its folder.

    Attributes:
      where: which step of which run, for errors.
      parts: of what it trained, see `trainable.parts`.
      adapters: None if it trained none.
    """

    def __init__(self, workdir: Path, step: str, config: Mapping[str, Any]):
        self.where = f"step {step} of {workdir}"
        self.step, section = step, config[SECTIONS[step]]
        self.parts = trainables.parts(section.get("trainable", "lora"))  # GRPO has no such field
        self._stored = Stored(trained_by(workdir, step))
        self.adapters = _adapters(self._stored, section) if "lora" in self.parts else None
        self._paths = {path for path in self._stored if ".lora_" not in path}

    def on(self, base: Parameters | None) -> Parameters:
        """`base` with what the step trained in place of its own, adapters merged; base: None where
        it was random."""

        def read(leaf: ParamSpec, layer: int | None) -> np.ndarray:
            if base is None or leaf.path in self._paths:
                return self._stored.read(leaf.path, layer)
            return base(leaf, layer)

        return read if self.adapters is None else exporting.merged(read, self.adapters)

    def connector(self) -> dict[str, np.ndarray]:
        """The parameters of the connector by path, if the step trained them."""
        return {path: self._stored.read(path) for path in self._paths}


def _check_flags(trained: _Trained, merge: bool, adapter_only: bool) -> None:
    if trained.parts == ("full",):
        if merge or adapter_only:
            raise UserError(
                f"{trained.where} trained every weight: there are no adapters; leave --merge and "
                "--adapter_only out"
            )
        return
    if trained.adapters is None:
        if not merge or adapter_only:
            raise UserError(
                f"{trained.where} trained the connector and no adapters, for which peft has no "
                "format: say --merge for a whole model"
            )
    elif merge == adapter_only:
        raise UserError(
            f"{trained.where} trained adapters: say --merge for a whole model or --adapter_only "
            "for adapters in peft's format"
        )


def _adapters(trained: Stored, config: Mapping[str, Any]) -> Adapters:
    linears = [path.removesuffix(".lora_a") for path in trained if path.endswith(".lora_a")]
    factors = {
        path: (trained.read(path + ".lora_a"), trained.read(path + ".lora_b")) for path in linears
    }
    return Adapters(factors, config["lora_alpha"])


def _warmup(workdir: Path, step: str) -> _Trained | None:
    """What the warm-up trained of the base model of `step`; None where it had none."""
    if WARMUP not in workdir_lib.inputs(workdir, step):
        return None
    return _Trained(workdir, WARMUP, workdir_lib.finished(workdir, WARMUP))


def _base_parameters(
    workdir: Path, base: Path, step: str, config: Mapping[str, Any]
) -> Parameters | None:
    """Those that `step` began with; None: random ones."""
    given = exporting.of_directory(base) if config["model"]["path"] else None
    warmup = _warmup(workdir, step)
    return given if warmup is None else warmup.on(given)


def _adapters_alone(workdir: Path, trained: _Trained) -> tuple[Adapters, Mapping[str, np.ndarray]]:
    """What `trained` says of the adapters and of the connector beside them, if that is another than
    that of the model which peft will load.

    Raises:
      UserError: the warm-up of a pretrained model changed more than the connector.
    """
    assert trained.adapters is not None, "see _check_flags"
    connector = trained.connector()
    warmup = _warmup(workdir, trained.step)
    if warmup is None or MODEL in workdir_lib.inputs(workdir, trained.step):
        return trained.adapters, connector
    if warmup.parts != ("connector",):
        raise UserError(
            f"{trained.where} trained adapters for the model that step warmup left, not for the "
            "pretrained one: say --merge for a whole model"
        )
    return trained.adapters, {**warmup.connector(), **connector}
