"""What a program of `launch/` sets before it starts."""

import os

import launched
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


def test_every_program_says_that_it_compiles(tmp_path):
    program = tmp_path / "program.py"
    program.write_text("""import time

import jax
from mmsrec_jax.runtime import compiling, startup

compiling.LONG = 0.0

def main(argv):
    def cumulate(x):
        for _ in range(50):
            x = jax.numpy.sin(x) @ x
        return x * time.time()  # no program of it was stored
    jax.jit(cumulate)(jax.numpy.ones((3, 3)))

startup.launch(main)
""")
    status, said = launched.run(str(program), log=tmp_path / "log")
    assert status == 0 and " compiling cumulate\n" in said and " compiled cumulate (0:" in said
    programs = [path.read_text() for path in (launched.ROOT / "launch").glob("*.py")]
    assert len(programs) == 8 and all("startup.launch(main" in text for text in programs)
