"""Hugging Face directories into MLLM, one stacked parameter at a time into its sharding."""

import dataclasses
import math
import mmap
import os
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, Sharding

from mmsrec_jax.hf import mapping
from mmsrec_jax.hf.families.base import located
from mmsrec_jax.hf.processor import read_json
from mmsrec_jax.hf.tensors import Tensors
from mmsrec_jax.hf.tiny_init import TinySettings
from mmsrec_jax.models import trainable as trainables
from mmsrec_jax.models.config import REMAT_POLICIES, MLLMConfig
from mmsrec_jax.models.mllm import MLLM
from mmsrec_jax.runtime import sharding
from mmsrec_jax.runtime.buckets.given import local
from mmsrec_jax.runtime.errors import UserError
from mmsrec_jax.runtime.settings import Section, group, seed_setting, setting

_THREADS = min(16, os.cpu_count() or 1)
_CHUNK = 2**19  # values that a thread reads at a time: as many as its cache holds
_WIDEST = 8  # bytes of a value
_STRIP = 16  # rows


@dataclasses.dataclass(frozen=True)
class ModelSettings(Section):
    """The multimodal LLM."""

    path: str = setting(
        "",
        "Folder of a Hugging Face model, or `gs://BUCKET/FOLDER`. Empty: from scratch, of sizes "
        "`tiny`.",
    )
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
        0,
        "Largest area of an image in pixels. 0 is what the folder says.",
        low=0,
        high=1_000_000_000,
    )
    seed: int = seed_setting(
        "Of a model from scratch: its weights, and which images it is fitted to."
    )
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
        if self.path and not local(self.path).is_dir():
            raise UserError(f"config.model.path={self.path}: no such folder; it should be {folder}")
        if self.require_path and not self.path:
            raise UserError(
                f"config.model.path is not set: give {folder}, with --config.model.path=DIR"
            )


def load(
    path: str | Path,
    dtype: str = "float32",
    mesh: Mesh | None = None,
    *,
    param_dtype: str | None = None,
    trainable: str = "lora",
    remat: str = "none",
) -> MLLM:
    """The model of a Hugging Face directory, here or `gs://BUCKET/FOLDER`, computing in `dtype`.

    Parameters are held in `param_dtype`, by default `dtype`, but for those of them that `trainable`
    (one of `models.trainable.KINDS`) trains, which are float32. `remat` is the config's policy.

    Reads config.json, preprocessor_config.json (but of a text-only model) and safetensors (one file
    or shards with an index), in the names transformers 5 writes or those of published checkpoints.
    With a mesh every parameter goes straight into its sharding; a process holds its shards of two
    stacked parameters at most, one that is read and one that is sent to the devices. The
    directory's image processor stays with the model as `model.processor`, None of a text-only
    model.

    Raises UserError that names the tensor and file for anything missing, extra or of another shape,
    and for model types and settings that are not supported.

    >>> model = mmsrec_jax.load("models/tiny", dtype="bfloat16")
    >>> model.config.text.layers, model.config.text.hidden
    (2, 32)
    """
    directory = local(path)
    raw = read_json(directory / "config.json")
    processor = mapping.processor_of(directory)
    with located(directory / "config.json"):
        config = mapping.config_from_hf(raw, processor)
    config = dataclasses.replace(config, remat=remat)
    tensors = Tensors(directory)
    _check_depth(tensors, config, directory / "config.json")

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
    before: jax.Array | None = None
    with ThreadPoolExecutor(_THREADS) as threads:
        reader = _Reader(tensors, threads)
        for leaf in mapping.leaves(config):
            key = tuple(leaf.path.split("."))
            variable = targets[key]
            where = placed[key].get_value() if mesh is not None else None
            array = reader.parameter(leaf, variable, where)
            targets[key] = variable.replace(array)
            # The host holds what is read and what is still sent to the devices, no more.
            jax.block_until_ready(before)
            before = array
    model = nnx.merge(graphdef, nnx.from_flat_state(targets))
    model.processor = processor
    return model


def _check_depth(tensors: Tensors, config: MLLMConfig, path: Path) -> None:
    """Refuses a config of absurdly many layers before anything is made of their number."""
    depths = {"text": config.text.layers, "vision": config.vision.depth if config.vision else 0}
    count = len(list(tensors))
    for part, layers in depths.items():
        if layers > count:
            raise UserError(
                f"{path}: {layers} {part} layers, but the weights have {count} tensors in all; "
                "fetch config.json and weights again"
            )


def _check_names(
    tensors: Tensors, config: MLLMConfig, targets: Mapping[tuple, Any], model_type: str
) -> None:
    """Every tensor has its place and shape, before the first of them is read."""
    wanted = set()
    for leaf in mapping.leaves(config):
        layers = range(targets[tuple(leaf.path.split("."))].shape[0] if leaf.stacked else 1)
        wanted |= {leaf.name.format(layer) for layer in layers}
    extra = {name for name in set(tensors) - wanted if not mapping.ignored(name, config)}
    missing = wanted - set(tensors)
    if extra and missing:
        raise UserError(
            f"{tensors[min(extra)]} and {len(extra) - 1} more tensors are not of this "
            f"{model_type} model, {len(missing)} of its own are missing ({min(missing)}): "
            "config.json and weights are of different models; fetch both again"
        )
    if extra:
        raise UserError(
            f"{tensors[min(extra)]} has no place in a {model_type} model of this "
            f"config.json ({len(extra)} such tensors); fetch config.json and weights again"
        )
    for leaf in mapping.leaves(config):
        shape = targets[tuple(leaf.path.split("."))].shape
        layers = range(shape[0] if leaf.stacked else 1)
        for layer in layers:
            tensors.check(
                leaf.name.format(layer), leaf.tensor_shape(shape[1:] if leaf.stacked else shape)
            )


class _Reader:
    """Parameters out of tensors, many rows at a time in threads."""

    def __init__(self, tensors: Tensors, threads: ThreadPoolExecutor):
        self._tensors, self._threads = tensors, threads
        self._own = threading.local()  # of each thread: memory that is given back costs page faults

    def parameter(
        self, spec: mapping.ParamSpec, variable: nnx.Variable, where: Sharding | None
    ) -> jax.Array:
        """The parameter, on the first device or sharded; this process reads its own shards."""
        shape, dtype = variable.shape, np.dtype(variable.dtype)
        if where is None:
            return jax.device_put(self._block(spec, shape, dtype, (slice(None),) * len(shape)))
        blocks: dict[str, np.ndarray] = {}

        def block(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None, "every shard has a place"
            key = str(index)  # replicas have equal ones
            if key not in blocks:
                blocks[key] = self._block(spec, shape, dtype, index)
            return blocks[key]

        return jax.make_array_from_callback(shape, where, block)

    def _block(
        self,
        spec: mapping.ParamSpec,
        shape: tuple[int, ...],
        dtype: np.dtype,
        index: tuple[slice, ...],
    ) -> np.ndarray:
        index = tuple(
            slice(*each.indices(size)[:2]) for each, size in zip(index, shape, strict=True)
        )
        host = _empty([each.stop - each.start for each in index], dtype)
        layers = [(spec.name, host)]
        if spec.stacked:
            first, index = index[0], index[1:]
            names = [spec.name.format(i) for i in range(first.start, first.stop)]
            shape, layers = shape[1:], list(zip(names, host, strict=True))
        source, rows, *others = spec.tensor_shape(shape), *spec.tensor_index(shape, index)
        step = max(_STRIP, _CHUNK // max(1, math.prod(source[1:])))

        def copy(name: str, target: np.ndarray, start: int) -> None:
            stop = min(start + step, rows.stop)
            chunk = slice(start, stop)
            values = self._tensors.read(name, source, chunk, memory=self._memory())
            _copy(target[start - rows.start : stop - rows.start], values[:, *others])

        waiting = [
            self._threads.submit(copy, name, spec.write(part), start)
            for name, part in layers
            for start in range(rows.start, rows.stop, step)
        ]
        for each in waiting:
            each.result()
        return host

    def _memory(self) -> np.ndarray:
        if not hasattr(self._own, "memory"):
            self._own.memory = np.empty(_CHUNK * _WIDEST, np.uint8)
        return self._own.memory


def _empty(shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
    """As np.empty, in memory of its own that begins with a page: where devices compute in the
    host's memory, jax takes it as it is. In pages of the usual size: numpy asks for huge ones, and
    a virtual machine needs longer to find them than to read what goes into them."""
    size = math.prod(shape)
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    memory = mmap.mmap(-1, max(1, size * dtype.itemsize), flags)
    return np.frombuffer(memory, dtype, size).reshape(shape)


def _copy(target: np.ndarray, source: np.ndarray) -> None:
    """target[...] = source. A transposed target goes in strips as wide as a cache line: numpy would
    fetch a line for every value."""
    if target.dtype != source.dtype:
        source = source.astype(target.dtype)
    # numpy copies integers without holding the lock of Python, bfloat16 with it.
    bits = np.dtype(f"u{target.dtype.itemsize}")
    target, source = target.view(bits), source.view(bits)
    if target.flags.c_contiguous:
        target[...] = source
        return
    for start in range(0, len(target), _STRIP):
        target[start : start + _STRIP] = source[start : start + _STRIP]
