"""Reads a GGUF file: its metadata, and its tensors dequantized to float32.

The format is that of ggml (versions 2 and 3, little endian): a header, key-value pairs, one line a
tensor, then the tensors at aligned offsets. Of the quantizations only those that the published
4-bit SmolLM2 has are read: F32, F16, Q4_1 and Q8_0.
"""

import math
import mmap
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

_SCALARS = dict(enumerate("BbHhIif?", 0)) | {10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_BLOCK = 32  # values of a quantized block


class GGUFError(Exception):
    """The file is no GGUF file, is cut short, or has a type that is not read."""


def _float(dtype: str) -> Callable[[np.ndarray], np.ndarray]:
    return lambda raw: raw.view(dtype).astype(np.float32)


def _q4_1(raw: np.ndarray) -> np.ndarray:
    """20 bytes a block: scale and minimum as float16, then the low and the high halves of 16 bytes
    as values 0 to 15 and 16 to 31 of the block."""
    blocks = raw.reshape(-1, 20)
    scale, minimum = (blocks[:, i : i + 2].view("<f2").astype(np.float32) for i in (0, 2))
    packed = blocks[:, 4:]
    levels = np.concatenate([packed & 15, packed >> 4], axis=1).astype(np.float32)
    return levels * scale + minimum


def _q8_0(raw: np.ndarray) -> np.ndarray:
    """34 bytes a block: scale as float16, then 32 signed bytes."""
    blocks = raw.reshape(-1, 34)
    return blocks[:, 2:].view(np.int8).astype(np.float32) * blocks[:, :2].view("<f2").astype("f4")


# ggml's number of a type -> bytes and values of a block, and how they are read
_TYPES: dict[int, tuple[int, int, Callable[[np.ndarray], np.ndarray]]] = {
    0: (4, 1, _float("<f4")),
    1: (2, 1, _float("<f2")),
    3: (20, _BLOCK, _q4_1),
    8: (34, _BLOCK, _q8_0),
}


class GGUF:
    """One file.

    Attributes:
      metadata: what its keys say: numbers, strings, booleans, and lists of these.

    Raises:
      GGUFError: see there.
    """

    def __init__(self, path: Path):
        self.path = path
        with path.open("rb") as file:
            self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._at = 0
        try:
            self._read_header()
        except struct.error as error:
            raise GGUFError(f"{path}: cut short in its header ({error})") from error

    def __iter__(self) -> Iterator[str]:
        """Names of the tensors."""
        return iter(self._tensors)

    def __getitem__(self, name: str) -> np.ndarray:
        """float32 tensor, its dimensions from the outermost to the innermost."""
        shape, kind, offset = self._tensors[name]
        if kind not in _TYPES:
            raise GGUFError(f"{self.path}: tensor {name} has type {kind}, which is not read")
        size, values, read = _TYPES[kind]
        start = self._data + offset
        count = math.prod(shape) // values * size
        raw = np.frombuffer(self._bytes[start : start + count], np.uint8)
        if len(raw) != count:
            raise GGUFError(f"{self.path}: cut short in tensor {name}; fetch it again")
        return read(raw).reshape(shape)

    def _read_header(self) -> None:
        magic, version, tensors, pairs = self._unpack("4sIQQ")
        if magic != b"GGUF" or version not in (2, 3):
            raise GGUFError(f"{self.path}: no GGUF file of version 2 or 3")
        self.metadata: dict[str, Any] = {}
        for _ in range(pairs):
            key = self._string()
            self.metadata[key] = self._value(self._one("I"))
        self._tensors: dict[str, tuple[tuple[int, ...], int, int]] = {}
        for _ in range(tensors):
            name, dimensions = self._string(), self._one("I")
            shape = self._unpack(f"{dimensions}Q")[::-1]  # stored innermost first
            kind, offset = self._unpack("IQ")
            self._tensors[name] = shape, kind, offset
        alignment = self.metadata.get("general.alignment", 32)
        self._data = -(-self._at // alignment) * alignment

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            inner, count = self._unpack("IQ")
            if inner in _SCALARS:
                return list(self._unpack(f"{count}{_SCALARS[inner]}"))
            return [self._value(inner) for _ in range(count)]
        if kind not in _SCALARS:
            raise GGUFError(f"{self.path}: a metadata value has type {kind}, which is not read")
        return self._one(_SCALARS[kind])

    def _string(self) -> str:
        length = self._one("Q")
        text = self._bytes[self._at : self._at + length].decode("utf-8")
        self._at += length
        return text

    def _one(self, form: str) -> Any:
        return self._unpack(form)[0]

    def _unpack(self, form: str) -> tuple[Any, ...]:
        found = struct.unpack_from(f"<{form}", self._bytes, self._at)
        self._at += struct.calcsize(f"<{form}")
        return found
