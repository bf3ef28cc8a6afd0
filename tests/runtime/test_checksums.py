"""Checksums of arrays: the same on host and device and however they are sharded; damage is seen."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from mmsrec_jax.runtime import checksums

MASK = 2**32 - 1


def one_by_one(values):
    """The definition, in Python's own numbers, a value at a time."""
    width, total = min(values.dtype.itemsize, 4), 0
    raw = np.ascontiguousarray(values).tobytes()
    for place in range(len(raw) // width):
        bits = int.from_bytes(raw[place * width : (place + 1) * width], "little")
        bits ^= place * 0x9E3779B9 & MASK
        bits ^= bits >> 16
        bits = bits * 0x85EBCA6B & MASK
        bits ^= bits >> 13
        bits = bits * 0xC2B2AE35 & MASK
        total += bits ^ bits >> 16
    return total & MASK


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.int8, np.bool_, np.float64])
def test_every_way_gives_what_the_definition_gives(dtype):
    values = np.random.default_rng(0).normal(size=(8, 3, 5)).astype(dtype)
    wanted = [one_by_one(row) for row in values]
    assert checksums.of_array(values, by_row=True) == wanted
    assert checksums.of_array(values) == [one_by_one(values)]
    with jax.enable_x64(True):
        mesh = jax.make_mesh((4, 2), ("x", "y"))
        sharded = jax.device_put(values, NamedSharding(mesh, PartitionSpec(("x", "y"))))
        found = [checksums._on_device(sharded, flag) for flag in (True, False)]
    np.testing.assert_array_equal(found[0], np.array(wanted, np.uint32))
    assert int(found[1]) == one_by_one(values)


def test_large_arrays_are_summed_in_parts():
    values = np.arange(checksums._CHUNK * 2 + 7, dtype=np.int32)
    on_device = int(checksums._on_device(jnp.asarray(values), False))
    assert checksums.of_array(values) == [on_device]


def test_any_byte_a_swap_and_what_is_lost_are_seen():
    rng = np.random.default_rng(1)
    values = rng.normal(size=(6, 7)).astype(np.float32)
    whole = checksums.of_array(values)
    damaged = [values[::-1], np.where(values == values[2, 3], 0, values), np.zeros_like(values)]
    signs = values.copy()
    signs[[1, 4]] *= -1  # the highest bits alone, of which a plain sum would lose pairs
    damaged.append(signs)
    for at in range(values.nbytes):
        raw = bytearray(values.tobytes())
        raw[at] ^= 1 << rng.integers(8)
        damaged.append(np.frombuffer(bytes(raw), np.float32).reshape(values.shape))
    for other in damaged:
        assert checksums.of_array(other) != whole
    assert checksums.of_array(values.copy()) == whole
