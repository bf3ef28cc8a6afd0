"""Models out to Hugging Face: a directory that transformers loads, or adapters that peft loads.

Everything is written one tensor at a time: host memory holds one layer of a parameter, never the
model.
"""

import contextlib
import dataclasses
import functools
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import ml_dtypes  # noqa: F401  (numpy learns bfloat16)
import numpy as np
from absl import logging
from flax import nnx
from safetensors.numpy import save_file

from mmsrec_jax.hf import mapping
from mmsrec_jax.hf.mapping import ParamSpec
from mmsrec_jax.hf.processor import ImageProcessor, read_json
from mmsrec_jax.hf.tensors import FLOATING, INDEX, SINGLE, Tensors, has_tensors
from mmsrec_jax.models import lora
from mmsrec_jax.models.config import MLLMConfig
from mmsrec_jax.models.mllm import MLLM
from mmsrec_jax.runtime import disk, reading
from mmsrec_jax.runtime.errors import UserError

DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
MAX_SHARD_BYTES = 4 * 2**30
_TOKENIZER_AND_PROCESSOR = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "merges.txt",
    "special_tokens_map.json", "added_tokens.json", "chat_template.json", "chat_template.jinja",
    "preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json",
)  # fmt: skip

# Our parameter of a leaf, for one layer if the leaf is stacked.
Parameters = Callable[[ParamSpec, int | None], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Adapters:
    """LoRA factors of all layers by the path of the Linear they belong to, `text.layers.q`.

    factors: (lora_a [layers, *in_shape, rank], lora_b [layers, rank, *out_shape]).
    """

    factors: Mapping[str, tuple[np.ndarray, np.ndarray]]
    alpha: float

    @property
    def rank(self) -> int:
        return next(iter(self.factors.values()))[0].shape[-1]

    def update(self, path: str, layer: int) -> np.ndarray:
        """What the adapter of one layer adds to its kernel: float32 [*in_shape, *out_shape]."""
        a, b = (np.asarray(factor[layer], np.float32) for factor in self.factors[path])
        return np.float32(self.alpha / self.rank) * np.tensordot(a, b, 1)


def adapters_of(model: MLLM) -> Adapters:
    """The adapters of a model in memory. Raises UserError when it has none."""
    adapted = lora.adapted(model)
    if not adapted:
        raise UserError("the model has no adapters; lora.add(model, ...) puts some in")
    factors = {
        f"text.layers.{target}": (np.asarray(linear.lora_a[...]), np.asarray(linear.lora_b[...]))
        for target, linear in adapted.items()
        if linear.lora_a is not None and linear.lora_b is not None
    }
    linear = next(iter(adapted.values()))
    rank = next(iter(factors.values()))[0].shape[-1]
    return Adapters(factors, linear.lora_scale * rank)


def of_model(model: MLLM) -> Parameters:
    """The parameters of a model in memory, fetched from its devices one layer at a time.

    Raises:
      UserError: the model has adapters.
    """
    if lora.adapted(model):
        raise UserError("the model has adapters, which would be lost; lora.merge(model) first")
    flat = nnx.to_flat_state(nnx.state(model, nnx.Param))
    state = {".".join(map(str, path)): leaf for path, leaf in flat}

    def read(leaf: ParamSpec, layer: int | None) -> np.ndarray:
        value = state[leaf.path][...]
        return np.asarray(value if layer is None else value[layer])

    return read


def of_directory(directory: Path) -> Parameters:
    """The parameters of a Hugging Face directory, read from its files one tensor at a time."""
    tensors, shapes = Tensors(directory), _shapes(_config(directory))

    def read(leaf: ParamSpec, layer: int | None) -> np.ndarray:
        shape = shapes[leaf.path] if layer is None else shapes[leaf.path][1:]
        tensor = tensors.read(leaf.name.format(layer), leaf.tensor_shape(shape))
        return leaf.read(tensor, shape)

    return read


def merged(base: Parameters, adapters: Adapters) -> Parameters:
    """`base` with the adapters folded in: kernel + alpha / rank * a @ b, in float32."""

    def read(leaf: ParamSpec, layer: int | None) -> np.ndarray:
        value, linear = base(leaf, layer), leaf.path.removesuffix(".kernel")
        if layer is None or linear == leaf.path or linear not in adapters.factors:
            return value
        return value.astype(np.float32) + adapters.update(linear, layer)

    return read


def write_model(
    directory: Path,
    parameters: Parameters,
    base: Path,
    *,
    dtype: str,
    max_pixels: int = 0,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    card: str = "",
) -> None:
    """Writes a directory that transformers' `from_pretrained` loads; there at once or not at all.

    Tensors have the names that `base` gives them, and those of `base` that our model leaves out are
    carried over; where `base` holds no weights, names are those of transformers 5.

    Args:
      directory: does not exist yet, or is empty.
      parameters: those of an MLLM of `base`'s config.
      base: Hugging Face directory whose config, tokenizer and processor the model has.
      dtype: one of DTYPES, of every tensor.
      max_pixels: largest area of an image in the processor's files, 0 = as in `base`.
      max_shard_bytes: of a safetensors file, unless one tensor alone is larger.
      card: text of README.md; without any there is no such file.

    Raises:
      UserError: `directory` is not empty, the disk is too small, or a parameter is missing or of
        another shape than `base`'s config asks for.
    """
    size = np.dtype(dtype).itemsize
    shards = _shards(_plan(base, parameters), size, max_shard_bytes)
    with new_folder(directory) as partial:
        total = sum(tensor.count for shard in shards for tensor in shard) * size
        if total > (free := shutil.disk_usage(partial).free):
            raise UserError(
                f"{directory}: the model takes {total / 2**30:.1f} GiB, the disk has "
                f"{free / 2**30:.1f} GiB free; choose another folder"
            )
        weight_map: dict[str, str] = {}
        for number, shard in enumerate(shards, start=1):
            file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            file = file if len(shards) > 1 else SINGLE
            _write_shard(partial / file, shard, dtype)
            weight_map |= {tensor.name: file for tensor in shard}
            logging.info("export: %s, %d of %d", file, number, len(shards))
        if len(shards) > 1:
            index = {"metadata": {"total_size": total}, "weight_map": weight_map}
            _write_json(partial / INDEX, index)
        raw = read_json(base / "config.json")
        _write_json(partial / "config.json", _with_dtype(raw, dtype))
        _copy(base, partial, ("generation_config.json", *_TOKENIZER_AND_PROCESSOR), max_pixels)
        _write_card(partial, card)


def write_adapters(
    directory: Path,
    adapters: Adapters,
    base: Path,
    *,
    connector: Mapping[str, np.ndarray] | None = None,
    dtype: str,
    base_name: str | None,
    max_pixels: int = 0,
    card: str = "",
) -> None:
    """Writes an adapter directory that peft loads on the base model, with `base`'s tokenizer.

    Args:
      directory: does not exist yet, or is empty.
      base: Hugging Face directory of the model that the adapters belong to.
      connector: parameters by path that take the place of the base model's (peft's
        `modules_to_save`), all layers of each.
      dtype: one of DTYPES, of every tensor.
      base_name: where peft's Auto classes find the base model, None = nowhere.
      max_pixels, card: as in `write_model`.

    Raises:
      UserError: `directory` is not empty, or the adapters are not of `base`'s model.
    """
    config = _config(base)
    leaves = {leaf.path.removesuffix(".kernel"): leaf for leaf in mapping.leaves(config)}
    shapes, tensors, targets = _shapes(config), {}, []
    for linear, (a, b) in adapters.factors.items():
        if linear not in leaves or len(a) != shapes[linear + ".kernel"][0]:
            raise UserError(f"{base}: this model has no {linear} of {len(a)} layers to adapt")
        theirs = mapping.module(leaves[linear].name, config).removesuffix(".weight")
        targets.append(theirs.replace(".", r"\.").replace("{}", r"\d+"))
        for layer in range(len(a)):
            name = f"base_model.model.{theirs.format(layer)}"
            down, up = a[layer].reshape(-1, adapters.rank).T, b[layer].reshape(adapters.rank, -1).T
            tensors[f"{name}.lora_A.weight"] = np.ascontiguousarray(down, dtype)
            tensors[f"{name}.lora_B.weight"] = np.ascontiguousarray(up, dtype)
    saved = _whole_modules(config, connector or {})
    tensors |= {f"base_model.model.{name}": x.astype(dtype) for name, x in saved.items()}
    raw = {
        "peft_type": "LORA",
        "base_model_name_or_path": base_name,
        "r": adapters.rank,
        "lora_alpha": adapters.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        # A pattern of whole names: towers have modules of the same last name.
        "target_modules": "|".join(targets),
        "modules_to_save": sorted({name.rsplit(".", 1)[0] for name in saved}) or None,
        "inference_mode": True,
    }
    with new_folder(directory) as partial:
        save_file(tensors, partial / "adapter_model.safetensors", metadata={"format": "pt"})
        _write_json(partial / "adapter_config.json", raw)
        _copy(base, partial, _TOKENIZER_AND_PROCESSOR, max_pixels)
        _write_card(partial, card)


def _whole_modules(
    config: MLLMConfig, parameters: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Parameters by path as tensors by transformers' name."""
    tensors: dict[str, np.ndarray] = {}
    for leaf in mapping.leaves(config):
        if leaf.path in parameters:
            value, name = parameters[leaf.path], mapping.module(leaf.name, config)
            layers = enumerate(value) if leaf.stacked else [(0, value)]
            for layer, part in layers:
                tensors[name.format(layer)] = np.ascontiguousarray(leaf.write(part))
    return tensors


@dataclasses.dataclass(frozen=True)
class _Tensor:
    """One tensor on disk: parts of equal shape, joined on axis 0 and made when they are written."""

    name: str
    shape: tuple[int, ...]
    parts: tuple[Callable[[], np.ndarray], ...]

    @property
    def count(self) -> int:
        return math.prod(self.shape)


def _config(directory: Path) -> MLLMConfig:
    processor = mapping.processor_of(directory)
    return mapping.config_from_hf(read_json(directory / "config.json"), processor)


def _shapes(config: MLLMConfig) -> dict[str, tuple[int, ...]]:
    model = nnx.eval_shape(lambda: MLLM(config, rngs=nnx.Rngs(0)))
    flat = nnx.to_flat_state(nnx.state(model))
    return {".".join(map(str, path)): leaf.shape for path, leaf in flat}


def _plan(base: Path, parameters: Parameters) -> list[_Tensor]:
    """Every tensor of the model; the layers of a parameter follow each other."""
    config = _config(base)
    held = Tensors(base) if has_tensors(base) else None
    by_name: dict[str, list[ParamSpec]] = {}
    for leaf in mapping.leaves(config):
        by_name.setdefault(leaf.name, []).append(leaf)
    shapes, plan, planned = _shapes(config), [], set()
    for name, leaves in by_name.items():
        leaves.sort(key=lambda leaf: leaf.part)
        shape = shapes[leaves[0].path]
        layers: Sequence[int | None] = (None,)
        if leaves[0].stacked:
            shape, layers = shape[1:], range(shape[0])
        for layer in layers:
            ours = name.format(layer)
            parts = tuple(functools.partial(_part, parameters, leaf, layer) for leaf in leaves)
            theirs = mapping.module(ours, config) if held is None else held[ours].name
            plan.append(_Tensor(theirs, leaves[0].tensor_shape(shape), parts))
            planned.add(ours)
    # The copy of a tied head would contradict an embedding that was trained.
    made = planned | ({"lm_head.weight"} if config.text.tied else set())
    return plan if held is None else [*plan, *_carried_over(held, made)]


def _carried_over(held: Tensors, made: set[str]) -> Iterator[_Tensor]:
    """The tensors of the base that the model does not make."""
    left_out = 0
    for name in held:
        if name in made:
            continue
        stored = held[name]
        if stored.dtype in FLOATING:
            part = functools.partial(held.read, name, stored.shape)
            yield _Tensor(stored.name, stored.shape, (part,))
        else:
            left_out += 1
    if left_out:
        logging.warning(
            "export: %d tensors of %s are no weights; left out", left_out, held.directory
        )


def _part(parameters: Parameters, leaf: ParamSpec, layer: int | None) -> np.ndarray:
    return leaf.write(parameters(leaf, layer))


def _shards(tensors: Sequence[_Tensor], size: int, limit: int) -> list[list[_Tensor]]:
    shards: list[list[_Tensor]] = [[]]
    used = 0
    for tensor in tensors:
        if shards[-1] and used + tensor.count * size > limit:
            shards.append([])
            used = 0
        shards[-1].append(tensor)
        used += tensor.count * size
    return shards


def _write_shard(path: Path, tensors: Sequence[_Tensor], dtype: str) -> None:
    """One safetensors file: length of the header, the header, the tensors' bytes."""
    header: dict[str, dict] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in tensors:
        end = offset + tensor.count * np.dtype(dtype).itemsize
        header[tensor.name] = {
            "dtype": DTYPES[dtype],
            "shape": tensor.shape,
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors:
            shape = tensor.shape
            if len(tensor.parts) > 1:
                shape = (shape[0] // len(tensor.parts), *shape[1:])
            for make in tensor.parts:
                part = make()
                if part.shape != shape:
                    raise UserError(
                        f"{tensor.name} would get the shape {list(part.shape)}, config.json asks "
                        f"for {list(shape)}; these are weights of another model"
                    )
                file.write(np.ascontiguousarray(part, dtype).reshape(-1).view(np.uint8).data)


@contextlib.contextmanager
def new_folder(directory: Path) -> Iterator[Path]:
    """A new folder beside `directory` that takes its name when all is written."""
    if os.path.lexists(directory) and not directory.is_dir():
        raise UserError(f"{directory} is a file; name a new folder")
    if directory.exists() and any(directory.iterdir()):
        raise UserError(f"{directory} is there and not empty; name a new folder or delete it")
    with disk.arriving(directory) as partial:
        yield partial


def _with_dtype(raw: dict, dtype: str) -> dict:
    """A config.json, with those of its parts, that says `dtype`."""
    raw = {
        key: _with_dtype(value, dtype) if key.endswith("_config") else value
        for key, value in raw.items()
        if key != "torch_dtype"
    }
    return raw | {"dtype": dtype}


def _write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")


def _write_card(directory: Path, card: str) -> None:
    if card:
        (directory / "README.md").write_text(card, encoding="utf-8")


def _copy(base: Path, directory: Path, files: Sequence[str], max_pixels: int) -> None:
    for name in files:
        if (base / name).exists():
            reading.check_regular(base / name, within=reading.home(base))
            shutil.copyfile(base / name, directory / name)
    if max_pixels and mapping.processor_of(base) is not None:
        path = directory / "preprocessor_config.json"
        least = min(max_pixels, ImageProcessor.from_pretrained(directory).min_pixels)
        # transformers has written the same bounds in both ways
        size = {"shortest_edge": least, "longest_edge": max_pixels}
        bounds = {"size": size, "min_pixels": least, "max_pixels": max_pixels}
        _write_json(path, read_json(path) | bounds)
