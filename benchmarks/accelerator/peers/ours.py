"""What our sides share: the mesh, the model, programs compiled while weights are read."""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh

from benchmarks.accelerator.peers import weights
from mmsrec_jax.hf import loading, mapping
from mmsrec_jax.hf.processor import read_json
from mmsrec_jax.models.config import MLLMConfig
from mmsrec_jax.models.mllm import MLLM
from mmsrec_jax.runtime import sharding

_COMPILED_AT_ONCE = 6


def mesh() -> Mesh:
    return sharding.make_mesh(devices=jax.devices()[:1])


def dtype(tiny: bool) -> str:
    """Of the computation: with float32 the tiny run can ask for equal results."""
    return "float32" if tiny else "bfloat16"


def load(tiny: bool) -> tuple[MLLM, float]:
    """The model, held in its dtype, and the seconds that reading it took."""
    start = time.perf_counter()
    model = loading.load(weights.directory(tiny), dtype(tiny), mesh())
    jax.block_until_ready(jax.tree.leaves(model))
    return model, time.perf_counter() - start


def config(tiny: bool) -> MLLMConfig:
    directory = weights.directory(tiny)
    raw = read_json(directory / "config.json")
    return mapping.config_from_hf(raw, mapping.processor_of(directory))


def abstract(tiny: bool, mesh: Mesh) -> tuple[nnx.GraphDef, nnx.State]:
    """The split model of `load` as shapes with shardings: programs compile while it is read."""
    shape, held = config(tiny), dtype(tiny)
    model = nnx.eval_shape(lambda: MLLM(shape, rngs=nnx.Rngs(0), param_dtype=held, dtype=held))
    graphdef, state = nnx.split(model)
    return graphdef, sharding.abstract(state, sharding.shardings(state, mesh))


class Programs:
    """Compiles in threads. Lowering takes place in the caller's, which knows mesh and attention."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_COMPILED_AT_ONCE)
        self._futures: dict[str, Future[tuple[Any, float]]] = {}

    def start(self, name: str, lower: Callable[[], Any]) -> None:
        """lower: returns `jax.stages.Lowered`; what it raises, `take` raises."""
        try:
            lowered = lower()
        except Exception as error:
            self._futures[name] = Future()
            self._futures[name].set_exception(error)
        else:
            self._futures[name] = self._threads.submit(_compile, lowered)

    def wait(self) -> None:
        """Until all are compiled: compiling tries kernels on the device, which timing needs."""
        for future in self._futures.values():
            future.exception()

    def take(self, name: str) -> tuple[Any, float]:
        """The compiled program, and seconds from when its compilation began, others beside it."""
        return self._futures.pop(name).result()


def _compile(lowered: Any) -> tuple[Any, float]:
    start = time.perf_counter()
    return lowered.compile(), time.perf_counter() - start


def program_gib(compiled: Any) -> float:
    """Device memory that a call holds at most, arguments included, by XLA's account."""
    memory = compiled.memory_analysis()
    return (
        memory.argument_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
    ) / 2**30
