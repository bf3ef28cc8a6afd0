"""Rows of tensors in files, and which of them a block of a parameter needs."""

import itertools
import math

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from mmsrec_jax.hf.families.base import ParamSpec
from mmsrec_jax.hf.tensors import Tensors

RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64, ml_dtypes.bfloat16])
def test_rows_of_a_file(tmp_path, dtype):
    stored = {
        "model.a": RANDOM.normal(size=(7, 3, 2)).astype(dtype),
        "model.b": RANDOM.normal(size=5).astype(dtype),
    }
    save_file(stored, tmp_path / "model.safetensors", metadata={"format": "pt"})
    tensors = Tensors(tmp_path)
    assert set(tensors) == {"text.a", "text.b"} and tensors["text.b"].name == "model.b"
    for name, value in stored.items():
        ours = name.replace("model", "text")
        read = tensors.read(ours, value.shape)
        assert read.dtype == dtype
        np.testing.assert_array_equal(read, value)
        np.testing.assert_array_equal(tensors.read(ours, value.shape, slice(2, 4)), value[2:4])


@pytest.mark.parametrize("in_axes, part, divided", [
    (1, (0, 1), (0, 1)), (2, (0, 1), (0, 2)), (1, (1, 3), (0, 1)), (0, (2, 3), (0,)),
    (None, (0, 1), (0, 1, 2)),
])  # fmt: skip
def test_block_of_a_parameter(in_axes, part, divided):
    """A block written in the layout of the files is what `tensor_index` selects there."""
    shape = (4, 6, 2)
    spec = ParamSpec("ours", "theirs", in_axes, part)
    tensor = RANDOM.normal(size=spec.tensor_shape(shape))
    parameter = spec.read(tensor, shape)
    for axes in itertools.product((False, True), repeat=len(divided)):
        index = tuple(
            slice(size // 2, size) if dict(zip(divided, axes, strict=True)).get(axis) else
            slice(0, size)
            for axis, size in enumerate(shape)
        )  # fmt: skip
        block = parameter[index]
        np.testing.assert_array_equal(
            tensor[spec.tensor_index(shape, index)], spec.write(np.ascontiguousarray(block))
        )


def test_blocks_that_lie_apart_are_refused():
    spec = ParamSpec("ours", "theirs", 1)
    with pytest.raises(ValueError, match="only the first axis may be divided"):
        spec.tensor_index((4, 6, 2), (slice(0, 4), slice(0, 6), slice(0, 1)))
    assert math.prod(spec.tensor_shape((4, 6, 2))) == 48
