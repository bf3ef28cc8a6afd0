"""Checksums of arrays: of their values, wherever they lie and however they are sharded.

A value's bits are mixed with its place (the finalizer of MurmurHash3, a bijection), and the results
added modulo 2**32: the order of the additions does not matter, any single change is seen, and
others but for one in 2**32. Computed before arrays are written and after they are read, they see
whatever happens between: on the disk, on the way, and in the putting together of shards.
"""

import functools
import math
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np

_CHUNK = 2**18  # values at a time: as many as a cache holds
_THREADS = 8
_PLACE, _FIRST, _SECOND = 0x9E3779B9, 0x85EBCA6B, 0xC2B2AE35


def of_array(array: jax.Array | np.ndarray, *, by_row: bool = False) -> list[int]:
    """The checksum of an array, or one for each index of its first axis.

    What lies on the host, or on its CPU alone, is read there, other arrays where they are. All
    processes have to call it.
    """
    return [int(value) for value in np.asarray(_sums(array, by_row)).ravel()]


def _sums(array: jax.Array | np.ndarray, by_row: bool) -> jax.Array | np.ndarray:
    if isinstance(array, jax.Array) and not _on_host(array):
        return _on_device(array, by_row)
    values = np.asarray(array)
    if by_row:
        return np.array([_of_host(row) for row in values], np.uint32)
    return np.array(_of_host(values), np.uint32)


def _on_host(array: jax.Array) -> bool:
    whole = array.is_fully_addressable or array.is_fully_replicated
    return whole and all(device.platform == "cpu" for device in array.devices())


def _of_host(values: np.ndarray) -> int:
    width = values.dtype.itemsize
    bits = np.ascontiguousarray(values).reshape(-1).view(f"<u{min(width, 4)}")

    def part(start: int) -> int:
        chunk = bits[start : start + _CHUNK].astype(np.uint32)
        place = np.arange(start, start + len(chunk), dtype=np.uint64).astype(np.uint32)
        with np.errstate(over="ignore"):
            chunk ^= place * np.uint32(_PLACE)
            chunk ^= chunk >> np.uint32(16)
            chunk *= np.uint32(_FIRST)
            chunk ^= chunk >> np.uint32(13)
            chunk *= np.uint32(_SECOND)
            chunk ^= chunk >> np.uint32(16)
        return int(chunk.sum(dtype=np.uint64))

    starts = range(0, len(bits), _CHUNK)
    if len(starts) < 2:
        return sum(map(part, starts)) % 2**32
    with ThreadPoolExecutor(_THREADS) as threads:
        return sum(threads.map(part, starts)) % 2**32


@functools.partial(jax.jit, static_argnums=1)
def _on_device(array: jax.Array, by_row: bool) -> jax.Array:
    width = array.dtype.itemsize
    if array.dtype == jnp.bool_:
        bits = array.astype(jnp.uint8)
    else:
        bits = jax.lax.bitcast_convert_type(array, jnp.dtype(f"u{min(width, 4)}"))
    bits = bits.astype(jnp.uint32)  # 8 bytes become two values on a last axis
    first = 1 if by_row else 0
    place = jnp.zeros(bits.shape, jnp.uint32)
    for axis in range(first, bits.ndim):
        stride = math.prod(bits.shape[axis + 1 :]) % 2**32
        steps = jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
        place += steps * np.uint32(stride)
    bits ^= place * np.uint32(_PLACE)
    bits ^= bits >> 16
    bits *= np.uint32(_FIRST)
    bits ^= bits >> 13
    bits *= np.uint32(_SECOND)
    bits ^= bits >> 16
    return jnp.sum(bits, axis=tuple(range(first, bits.ndim)), dtype=jnp.uint32)
