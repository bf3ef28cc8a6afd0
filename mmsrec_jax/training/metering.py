"""What the steps of a loop cost: time, tokens, FLOPs, waiting, memory, compilations; traces.

Nothing here makes the main thread wait for a device: a thread of its own sees when a step is done.
"""

import contextlib
import functools
import re
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging

from mmsrec_jax.models import flops, lora
from mmsrec_jax.models.batch import Batch, Patches
from mmsrec_jax.models.mllm import MLLM
from mmsrec_jax.runtime.chips import CHIPS
from mmsrec_jax.runtime.errors import UserError

STALLED = 0.3  # share of a window in which devices had nothing to do but wait for data

CHIP = {  # JAX's name of a device -> ours
    "TPU v4": "v4",
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v5": "v5p",
    "TPU v5p": "v5p",
    "TPU v6 lite": "v6e",
    "TPU v6e": "v6e",
    "TPU7x": "tpu7x",
    "NVIDIA H100 80GB HBM3": "h100",
}

_WORK = "work/"  # metrics of a step that are amounts of work: the log shows them per second
_ROOM = "room"  # beside tokens: how many would fit
_COMPILED = "/jax/core/compile/backend_compile_duration"


def amount(*, parts: int = 1, **work: float) -> dict[str, float]:
    """Work of one step (tokens, examples, flops) as metrics for `Meter`.

    parts: of how many equal parts of a batch this one was counted
      (`sharding.process_batch_shard`); the others are taken to have as much work.
    """
    return {_WORK + name: float(value) * parts for name, value in work.items()}


def of_rows(segments: np.ndarray) -> dict[str, int]:
    """Tokens, room for them and examples of packed rows.

    segments: int[B, L], 1, 2, ... in each row, 0 is padding.
    """
    return {
        "tokens": int(np.sum(segments > 0)),
        _ROOM: segments.size,
        "examples": int(np.sum(segments.max(axis=1))),
    }


class ModelFlops:
    """FLOPs that `model` requires for batches on the host (`models.flops`), padding not counted.

    adapters: those of the model are trained.
    """

    def __init__(self, model: MLLM, *, adapters: bool):
        adapted = lora.adapted(model) if adapters else {}
        ranks = [x.lora_a.shape[-1] for x in adapted.values() if x.lora_a is not None]
        self._config = model.config
        self._adapters = flops.Adapters(ranks[0], tuple(adapted)) if ranks else None
        self._cached = functools.cache(self._of_image)

    def __call__(
        self,
        count: Callable[..., flops.Flops],
        tokens: np.ndarray,
        targets: np.ndarray,
        batch: Batch,
    ) -> int:
        """Sum over rows of `count` (`flops.forward` or `flops.train_step`).

        tokens, targets: int[B], see `flops.Row`; batch: for its images, if any.
        """
        total = sum(
            self._sum(count, flops.Row(int(length), int(read)))
            for length, read in zip(tokens, targets, strict=True)
        )
        return total + sum(self._cached(count, grid) for grid in _grids(batch.images))

    def _of_image(self, count: Callable[..., flops.Flops], grid: tuple[int, int]) -> int:
        return self._sum(count, flops.Row(0, 0, [grid]))

    def _sum(self, count: Callable[..., flops.Flops], row: flops.Row) -> int:
        return sum(count(self._config, row, self._adapters).values())


def _grids(images: Patches | None) -> list[tuple[int, int]]:
    """Rows and columns of patches of every image; the patches of an image are neighbors."""
    if images is None:
        return []
    ids = images.image_ids
    ids = np.where(ids > 0, ids + np.arange(len(ids))[:, None] * (ids.max() + 1), 0).ravel()
    starts = np.flatnonzero(np.diff(ids, prepend=0))
    if not len(starts):
        return []
    sizes = np.maximum.reduceat(images.hw.reshape(-1, 2), starts) + 1
    return [tuple(size) for size in sizes[ids[starts] > 0].tolist()]


class Meter:
    """Clocks the steps of one loop in windows, from one line of metrics to the next."""

    def __init__(self, name: str):
        self._name = name
        self._watch = ThreadPoolExecutor(1, "steps")
        self._last: Future[float] | None = None
        self._windows, self._warned = 0, False
        self._compilations = _compilations()
        self._restart()

    def _restart(self) -> None:
        self._began, self._steps, self._waited = time.monotonic(), 0, 0.0

    def next(self, batches: Iterator[Any]) -> Any:
        """The next batch. Waiting for it counts from when the devices have nothing else to do."""
        began = time.monotonic()
        batch = next(batches)
        now = time.monotonic()
        if self._last is None or self._last.done():
            idle = began if self._last is None else max(began, self._last.result())
            self._waited += max(now - idle, 0.0)
        return batch

    def ran(self, metrics: Mapping[str, Any]) -> None:
        """Counts a step, which is done as soon as its `metrics` are."""
        self._steps += 1
        self._last = self._watch.submit(_when_ready, metrics)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Time inside is no time of the steps."""
        since = time.monotonic()
        yield
        self._began += time.monotonic() - since

    def window(self, means: dict[str, float]) -> tuple[dict[str, float], dict[str, float]]:
        """Ends a window, when its steps are known to be done -> (values for the log, the short ones
        for people).

        means: metrics by their means over the steps; those of `amount` are taken out.
        """
        seconds = (time.monotonic() - self._began) / self._steps
        work = {name: means.pop(name) for name in list(means) if name.startswith(_WORK)}
        room = work.pop(_WORK + _ROOM, 0.0)
        rates = {name.removeprefix(_WORK): value / seconds for name, value in work.items()}
        short = {f"{name}/s": rates[name] for name in ("tokens", "examples") if name in rates}
        values = {
            "time/seconds_per_step": seconds,
            "time/waiting_for_data": self._waited / (seconds * self._steps),
            "time/compilations": len(self._compilations),
        }
        values |= {f"time/{name}_per_second": rate for name, rate in rates.items()}
        if room:
            values["time/occupancy"] = work[_WORK + "tokens"] / room
            short["padding"] = 1 - values["time/occupancy"]
        chip = CHIP.get(jax.devices()[0].device_kind)
        if chip and "flops" in rates:
            peak = CHIPS[chip].flops * jax.device_count()
            values["time/mfu"] = short["MFU"] = rates["flops"] / peak
        if memory := _peak_memory():
            values["time/device_gib"] = short["GiB"] = memory / 2**30
        self._warn(values["time/waiting_for_data"])
        self._windows += 1
        self._restart()
        return values, short

    def _warn(self, waiting: float) -> None:
        # The first window fills the pipeline.
        if self._windows and waiting > STALLED and not self._warned:
            self._warned = True
            logging.warning(
                "%s: the devices waited for data %.0f%% of the last %d steps; raise `workers` in "
                "this step's section of the config (a sequential model has none: raise batch_size)",
                self._name, 100 * waiting, self._steps,
            )  # fmt: skip

    def close(self) -> None:
        self._watch.shutdown()


def _when_ready(metrics: Mapping[str, Any]) -> float:
    jax.block_until_ready(metrics)
    return time.monotonic()


@functools.cache
def _compilations() -> list[float]:
    """Seconds of every compilation from now on, cached programs among them; grows."""
    seconds: list[float] = []

    def listen(event: str, duration_secs: float, **_: Any) -> None:
        if event == _COMPILED:
            seconds.append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(listen)
    return seconds


def _peak_memory() -> int:
    """Bytes of the fullest device of this process so far; 0 where the backend does not say."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    return max(found.get("peak_bytes_in_use", 0) for found in stats)


Steps = tuple[int, int]  # first and last


def steps_to_trace(text: str) -> Steps | None:
    """`config.profile`: "10:13" are steps 10 to 13, "" none.

    Raises:
      UserError: it is neither.
    """
    if not text:
        return None
    found = re.fullmatch(r"([0-9]{1,9}):([0-9]{1,9})", text)
    first, last = map(int, found.groups()) if found else (0, 0)
    if not 1 <= first <= last:
        raise UserError(
            f"config.profile={text!r} is not FIRST:LAST, two steps counted from 1, such as 10:13"
        )
    return first, last


class Trace:
    """Writes a profiler trace of some steps into `directory`; what XProf and TensorBoard show."""

    def __init__(self, steps: Steps | None, directory: Path):
        self._steps, self._directory = steps, directory
        self._begun = self._running = False

    def before(self, step: int) -> None:
        if self._steps and step == self._steps[0]:
            jax.profiler.start_trace(self._directory)
            self._begun = self._running = True

    def after(self, step: int, metrics: Mapping[str, Any]) -> None:
        if self._steps and self._running and step == self._steps[1]:
            jax.block_until_ready(metrics)
            self._end()

    def close(self) -> None:
        """Ends a trace that is still running."""
        if self._running:
            self._end()
        elif self._steps and not self._begun:
            logging.warning("no trace in %s: step %d was not run", self._directory, self._steps[0])

    def _end(self) -> None:
        self._running = False
        jax.profiler.stop_trace()
        first, last = self._steps or (0, 0)
        logging.info("trace of steps %d to %d: %s", first, last, self._directory)
