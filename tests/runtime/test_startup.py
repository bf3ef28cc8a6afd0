"""What a program of `launch/` sets before it starts."""

import os

import pytest

from mmsrec_jax.runtime import startup


@pytest.mark.parametrize(
    ("has_gpu", "given", "expected"),
    [
        (True, None, "--xla_gpu_enable_triton_gemm=false"),
        (True, "--xla_dump_to=here", "--xla_dump_to=here"),
        (False, None, None),
    ],
)
def test_products_by_cublas_alone_where_there_is_a_gpu(
    monkeypatch, tmp_path, has_gpu, given, expected
):
    device = tmp_path / "nvidia0"
    if has_gpu:
        device.touch()
    monkeypatch.setattr(startup, "_ACCELERATOR_FILES", {"GPU": (str(device),)})
    monkeypatch.setenv("XLA_FLAGS", given or "")
    if given is None:
        monkeypatch.delenv("XLA_FLAGS")
    startup._compile_without_triton()
    assert os.environ.get("XLA_FLAGS") == expected
