"""Hugging Face directories into MLLM, one stacked parameter at a time into its sharding."""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import ml_dtypes  # noqa: F401  (numpy learns bfloat16, which safetensors asks it for)
import numpy as np
import numpy.typing as npt
from flax import nnx
from jax.sharding import Mesh
from safetensors import SafetensorError, safe_open

from mmsrec_jax.hf import mapping
from mmsrec_jax.hf.families.base import located
from mmsrec_jax.hf.processor import read_json
from mmsrec_jax.hf.tiny_init import TinySettings
from mmsrec_jax.models import trainable as trainables
from mmsrec_jax.models.config import REMAT_POLICIES, MLLMConfig
from mmsrec_jax.models.mllm import MLLM
from mmsrec_jax.runtime import sharding
from mmsrec_jax.runtime.errors import UserError
from mmsrec_jax.runtime.settings import Section, group, setting

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
FLOATING = ("F32", "BF16", "F16", "F64")
_STRIP = 16  # columns


@dataclasses.dataclass(frozen=True)
class ModelSettings(Section):
    """The multimodal LLM."""

    path: str = setting("", "Folder of a Hugging Face model. Empty: from scratch, of sizes `tiny`.")
    require_path: bool = setting(
        False, "Whether the experiment makes no sense with a model from scratch."
    )
    dtype: str = setting(
        "bfloat16", "Of the computation; float32 on CPU.", choices=("bfloat16", "float32")
    )
    remat: str = setting(
        "full",
        "What layers compute again in the backward pass: nothing, everything, all but products of "
        "matrices.",
        choices=REMAT_POLICIES,
    )
    max_pixels: int = setting(
        0, "Largest area of an image in pixels. 0 is what the folder says.", low=0
    )
    seed: int = setting(
        0, "Of a model from scratch: its weights, and which images it is fitted to.",
        follows="seed", low=0,
    )  # fmt: skip
    tiny: TinySettings = group(TinySettings)

    def check_path(self) -> None:
        """Stops early, with what to do, when the model is not there.

        Raises:
          UserError: `path` is no folder, or is not set although the experiment needs it.
        """
        folder = (
            "a model's folder in Hugging Face's format (config.json, safetensors, tokenizer), as "
            "`huggingface-cli download Qwen/Qwen2.5-VL-7B-Instruct --local-dir=DIR` makes one"
        )
        if self.path and not Path(self.path).is_dir():
            raise UserError(f"config.model.path={self.path}: no such folder; it should be {folder}")
        if self.require_path and not self.path:
            raise UserError(
                f"config.model.path is not set: give {folder}, with --config.model.path=DIR"
            )


def has_tensors(directory: Path) -> bool:
    """Whether a directory holds weights, or only the shape of a model to be trained."""
    return any((directory / name).exists() for name in (INDEX, SINGLE))


class Tensors:
    """Tensors of a directory by canonical name, read from safetensors when asked for.

    Raises UserError when a file is missing or cut short, when the index promises what its file does
    not hold, or when two tensors have one canonical name.
    """

    def __init__(self, directory: Path):
        index = directory / INDEX
        promised = read_json(index).get("weight_map", {}) if index.exists() else {}
        self._where: dict[str, tuple[Path, str]] = {}
        for file in sorted(set(promised.values())) or [SINGLE]:
            path = directory / file
            if not path.exists():
                raise UserError(f"{path}: no such file; only safetensors checkpoints are read")
            try:
                with safe_open(path, framework="numpy") as handle:
                    held = handle.keys()
            except SafetensorError as error:
                raise UserError(f"{path}: damaged or cut short, fetch it again ({error})") from None
            for name in held:
                ours = mapping.canonical(name)
                if ours in self._where:
                    raise UserError(f"{path}: {name} is in the checkpoint twice")
                self._where[ours] = (path, name)
        for name, file in promised.items():
            if mapping.canonical(name) not in self._where:
                raise UserError(f"{directory / file}: {name} is missing, though {INDEX} lists it")
        self.directory = directory

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def on_disk(self, name: str) -> str:
        """What the files call the tensor."""
        return self._where[name][1]

    def described(self, name: str) -> str:
        path, on_disk = self._where[name]
        return f"{path}: {on_disk}"

    def header(self, name: str) -> tuple[tuple[int, ...], str]:
        """Shape and dtype of a tensor, the dtype in safetensors' words."""
        path, on_disk = self._where[name]
        with safe_open(path, framework="numpy") as handle:
            header = handle.get_slice(on_disk)
            return tuple(header.get_shape()), header.get_dtype()

    def read(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """The tensor, of exactly `shape` and a floating type; else UserError."""
        if name not in self._where:
            raise UserError(
                f"{self.directory}: tensor {name} {list(shape)} is missing; fetch the weights again"
            )
        found, dtype = self.header(name)
        if found != shape:
            raise UserError(
                f"{self.described(name)} has shape {list(found)}, config.json asks for "
                f"{list(shape)}"
            )
        if dtype not in FLOATING:
            raise UserError(
                f"{self.described(name)} is stored as {dtype}; quantized checkpoints are not "
                "read, fetch the model in bfloat16, float16 or float32"
            )
        path, on_disk = self._where[name]
        # Opened for each tensor: a file that stays mapped counts whole as this process's memory.
        with safe_open(path, framework="numpy") as handle:
            return handle.get_tensor(on_disk)


def load(
    path: str | Path,
    dtype: str = "float32",
    mesh: Mesh | None = None,
    *,
    param_dtype: str | None = None,
    trainable: str = "lora",
    remat: str = "none",
) -> MLLM:
    """The model of a Hugging Face directory, computing in `dtype`.

    Parameters are held in `param_dtype`, by default `dtype`, but for those of them that `trainable`
    (one of `models.trainable.KINDS`) trains, which are float32. `remat` is the config's policy.

    Reads config.json, preprocessor_config.json (but of a text-only model) and safetensors (one file
    or shards with an index), in the names transformers 5 writes or those of published checkpoints.
    With a mesh every parameter goes straight into its sharding; the host holds one stacked
    parameter at a time. The directory's image processor stays with the model as `model.processor`,
    None of a text-only model.

    Raises UserError that names the tensor and file for anything missing, extra or of another shape,
    and for model types and settings that are not supported.

    >>> model = mmsrec_jax.load("models/tiny", dtype="bfloat16")
    >>> model.config.text.layers, model.config.text.hidden
    (2, 32)
    """
    directory = Path(path)
    raw = read_json(directory / "config.json")
    processor = mapping.processor_of(directory)
    with located(directory / "config.json"):
        config = mapping.config_from_hf(raw, processor)
    config = dataclasses.replace(config, remat=remat)
    tensors = Tensors(directory)

    def make() -> MLLM:
        held = param_dtype or dtype
        model = MLLM(config, rngs=nnx.Rngs(0), param_dtype=held, dtype=dtype)
        trainables.hold_in_float32(model, trainable)
        return model

    model = nnx.eval_shape(make)
    graphdef, abstract = nnx.split(model)
    targets: dict[tuple, nnx.Variable] = dict(nnx.to_flat_state(abstract))
    placed = dict(nnx.to_flat_state(sharding.shardings(abstract, mesh))) if mesh is not None else {}
    _check_names(tensors, config, targets, raw["model_type"])
    for leaf in mapping.leaves(config):
        key = tuple(leaf.path.split("."))
        variable = targets[key]
        host = _assemble(tensors, leaf, variable.shape, variable.dtype)
        where = placed[key].get_value() if mesh is not None else None
        targets[key] = variable.replace(_place(host, where))
    model = nnx.merge(graphdef, nnx.from_flat_state(targets))
    model.processor = processor
    return model


def _check_names(
    tensors: Tensors, config: MLLMConfig, targets: Mapping[tuple, Any], model_type: str
) -> None:
    """Every tensor has its place, before the first of them is read."""
    wanted = set()
    for leaf in mapping.leaves(config):
        layers = range(targets[tuple(leaf.path.split("."))].shape[0] if leaf.stacked else 1)
        wanted |= {leaf.name.format(layer) for layer in layers}
    extra = {name for name in set(tensors) - wanted if not mapping.ignored(name, config)}
    missing = wanted - set(tensors)
    if extra and missing:
        raise UserError(
            f"{tensors.described(min(extra))} and {len(extra) - 1} more tensors are not of this "
            f"{model_type} model, {len(missing)} of its own are missing ({min(missing)}): "
            "config.json and weights are of different models; fetch both again"
        )
    if extra:
        raise UserError(
            f"{tensors.described(min(extra))} has no place in a {model_type} model of this "
            f"config.json ({len(extra)} such tensors); fetch config.json and weights again"
        )


def _assemble(
    tensors: Tensors, leaf: mapping.ParamSpec, shape: tuple[int, ...], dtype: npt.DTypeLike
) -> np.ndarray:
    host = np.empty(shape, dtype)
    layers = [(leaf.name, host)]
    if leaf.stacked:
        layers = [(leaf.name.format(i), host[i]) for i in range(shape[0])]
    for name, part in layers:
        _copy(part, leaf.read(tensors.read(name, leaf.tensor_shape(part.shape)), part.shape))
    return host


def _copy(target: np.ndarray, source: np.ndarray) -> None:
    """target[...] = source. A transposed source goes in strips as wide as a cache line: numpy would
    fetch a line for every value."""
    if source.flags.c_contiguous:
        target[...] = source
        return
    for start in range(0, source.shape[-1], _STRIP):
        target[..., start : start + _STRIP] = source[..., start : start + _STRIP]


def _place(host: np.ndarray, where: jax.sharding.Sharding | None) -> jax.Array:
    if where is None:
        return jax.device_put(host)
    return jax.make_array_from_callback(host.shape, where, lambda index: host[index])
