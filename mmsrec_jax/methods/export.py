"""A step's model out of a run's folder: which files hold its base and what was trained of it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import logging

from mmsrec_jax.hf import exporting
from mmsrec_jax.hf.exporting import Adapters
from mmsrec_jax.methods.base_model import MODEL, SECTIONS, WARMUP, base_path, trained_by
from mmsrec_jax.runtime import workdir as workdir_lib
from mmsrec_jax.runtime.errors import UserError
from mmsrec_jax.training.weights import Stored


def export(
    workdir: Path,
    out: Path,
    *,
    step: str = "sft",
    adapter_only: bool = False,
    merge: bool = False,
    dtype: str | None = None,
    max_shard_bytes: int = exporting.MAX_SHARD_BYTES,
) -> None:
    """Writes the model that `step` of the run in `workdir` left to the new folder `out`.

    A step that trained every weight gives a whole model. One that trained adapters gives the base
    model with the adapters merged into it, or the adapters alone in peft's format. `dtype` None is
    the one that the run computed in, for adapters float32.

    Raises:
      UserError: the step has not finished, `out` is not empty, or flags do not fit the step.
    """
    config = workdir_lib.finished(workdir, step, same=(MODEL, WARMUP))
    base = base_path(workdir, config["model"]["path"])
    if not base.is_dir():
        raise UserError(
            f"{base}: the base model of {workdir} is not there; go to the folder where the run "
            "was started, or put the model back"
        )
    max_pixels = config["model"]["max_pixels"]
    trained = Stored(trained_by(workdir, step))
    adapters = _adapters(trained, config[SECTIONS[step]])
    if adapters is None and (merge or adapter_only):
        raise UserError(
            f"step {step} of {workdir} trained every weight: there are no adapters; leave "
            "--merge and --adapter_only out"
        )
    if adapters is not None and merge == adapter_only:
        raise UserError(
            f"step {step} of {workdir} trained adapters: say --merge for a whole model or "
            "--adapter_only for adapters in peft's format"
        )
    if adapter_only and adapters is not None:
        name = str(base.resolve()) if config["model"]["path"] else None
        exporting.write_adapters(
            out, adapters, base, dtype=dtype or "float32", base_name=name, max_pixels=max_pixels
        )
    else:
        parameters = _parameters(trained)
        if adapters is not None:
            parameters = exporting.merged(_base_parameters(workdir, base, config), adapters)
        exporting.write_model(
            out,
            parameters,
            base,
            dtype=dtype or config["model"]["dtype"],
            max_pixels=max_pixels,
            max_shard_bytes=max_shard_bytes,
        )
    logging.info("export: %s of %s is in %s", step, workdir, out)


def _adapters(trained: Stored, config: Mapping[str, Any]) -> Adapters | None:
    """The adapters among what a step trained, None if it trained the weights themselves."""
    linears = [path.removesuffix(".lora_a") for path in trained if path.endswith(".lora_a")]
    if not linears:
        return None
    factors = {
        path: (trained.read(path + ".lora_a"), trained.read(path + ".lora_b")) for path in linears
    }
    return Adapters(factors, config["lora_alpha"])


def _base_parameters(workdir: Path, base: Path, config: Mapping[str, Any]) -> exporting.Parameters:
    if not config["model"]["path"]:
        return _parameters(Stored(trained_by(workdir, WARMUP)))
    return exporting.of_directory(base)


def _parameters(stored: Stored) -> exporting.Parameters:
    return lambda leaf, layer: stored.read(leaf.path, layer)
