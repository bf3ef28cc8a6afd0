"""The safetensors files of a Hugging Face directory: which tensors there are, and rows of them."""

import dataclasses
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from mmsrec_jax.hf import mapping
from mmsrec_jax.hf.processor import read_json
from mmsrec_jax.runtime import reading
from mmsrec_jax.runtime.errors import UserError, first_line

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
FLOATING = {
    "F32": np.dtype(np.float32),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F16": np.dtype(np.float16),
    "F64": np.dtype(np.float64),
}


@dataclasses.dataclass(frozen=True)
class Stored:
    """A tensor in a file. name, dtype: as the file says them; offset: its first byte."""

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: str
    offset: int

    def __str__(self) -> str:
        return f"{self.file}: {self.name}"


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
        promised = _weight_map(index) if index.exists() else {}
        self._stored: dict[str, Stored] = {}
        for file in sorted(set(promised.values())) or [SINGLE]:
            path = directory / file
            if not os.path.lexists(path):
                raise UserError(f"{path}: no such file; only safetensors checkpoints are read")
            for stored in _stored(path):
                ours = mapping.canonical(stored.name)
                if ours in self._stored:
                    raise UserError(f"{path}: {stored.name} is in the checkpoint twice")
                self._stored[ours] = stored
        for name, file in promised.items():
            if mapping.canonical(name) not in self._stored:
                raise UserError(f"{directory / file}: {name} is missing, though {INDEX} lists it")
        self.directory = directory

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __getitem__(self, name: str) -> Stored:
        """The tensor of canonical `name`, which is there."""
        return self._stored[name]

    def check(self, name: str, shape: tuple[int, ...]) -> None:
        """Raises UserError unless the tensor is there, of exactly `shape` and a floating type."""
        if name not in self:
            raise UserError(
                f"{self.directory}: tensor {name} {list(shape)} is missing; fetch the weights again"
            )
        stored = self._stored[name]
        if stored.shape != shape:
            raise UserError(
                f"{stored} has shape {list(stored.shape)}, config.json asks for {list(shape)}"
            )
        if stored.dtype not in FLOATING:
            raise UserError(
                f"{stored} is stored as {stored.dtype}; quantized checkpoints are not "
                "read, fetch the model in bfloat16, float16 or float32"
            )

    def read(
        self,
        name: str,
        shape: tuple[int, ...],
        rows: slice = slice(None),
        *,
        memory: np.ndarray | None = None,
    ) -> np.ndarray:
        """Rows (of axis 0) of the tensor, which passes `check`. Other rows are not read.

        Threads may read at the same time.

        memory: bytes that may hold what is read, until the next call that is given them.
        """
        self.check(name, shape)
        stored = self._stored[name]
        dtype, width = FLOATING[stored.dtype], math.prod(shape[1:])
        start, stop, _ = rows.indices(shape[0]) if shape else (0, 1, 1)
        size = (stop - start) * width * dtype.itemsize
        if memory is None or len(memory) < size:
            memory = np.empty(size, np.uint8)
        memory = memory[:size]
        # Not mapped: pages of a mapped file count as this process's memory.
        with stored.file.open("rb", buffering=0) as file:
            file.seek(stored.offset + start * width * dtype.itemsize)
            done = 0
            while done < size and (count := file.readinto(memory[done:].data)):
                done += count
        if done < size:
            raise UserError(f"{stored}: the file became shorter while it was read")
        values = memory.view(dtype)
        return values.reshape(stop - start, *shape[1:]) if shape else values.reshape(())


def _weight_map(index: Path) -> dict[str, str]:
    """Tensor -> file beside the index."""
    found = read_json(index).get("weight_map", {})
    if not isinstance(found, dict):
        raise UserError(f"{index}: weight_map is {reading.shown(found)}; an object is expected")
    for name, file in found.items():
        if not isinstance(file, str) or not file or Path(file).name != file:
            raise UserError(
                f"{index}: {reading.shown(name)} lies in {reading.shown(file)}; the name of a file "
                "beside the index is expected"
            )
    return found


def _stored(path: Path) -> Iterator[Stored]:
    """All tensors of a file. Raises UserError when it is damaged."""
    reading.check_regular(path, within=reading.home(path.parent))
    try:
        with safe_open(path, framework="numpy"):
            pass  # checks that the header is sound and the file as long as it says
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size), object_pairs_hook=reading.without_twins)
    except (SafetensorError, ValueError, OSError, RecursionError) as error:
        raise UserError(
            f"{path}: damaged or cut short, fetch it again ({first_line(error)})"
        ) from None
    for name, entry in header.items():
        if name != "__metadata__":
            offset = 8 + size + entry["data_offsets"][0]
            yield Stored(path, name, tuple(entry["shape"]), entry["dtype"], offset)
