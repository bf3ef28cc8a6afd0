"""Amounts against counts by hand, the clock against devices of known speed, and what is written."""

import json
import time

import jax
import jax.numpy as jnp
import mllm_batches as mb
import numpy as np
import pytest
from flax import nnx
from jax.experimental.compilation_cache.compilation_cache import reset_cache

from mmsrec_jax.models import flops, lora
from mmsrec_jax.runtime import startup
from mmsrec_jax.runtime.errors import UserError
from mmsrec_jax.training import loop, metering


@pytest.mark.parametrize("rank", [0, 2])
def test_flops_are_those_of_the_rows(rank):
    rng = np.random.default_rng(0)
    grids = [[[(4, 4)], [(2, 6), (4, 4)]], [[]], [[(8, 4)]]]
    rows = [mb.pack([mb.example(rng, one, 3, suffixes=(2,)) for one in row]) for row in grids]
    rows[1] |= {k: v[:0] for k, v in rows[0].items() if k.startswith("patch")}
    tokens = np.array([len(row["tokens"]) for row in rows])
    targets = np.array([2, 1, 0])
    model = mb.model()
    if rank:
        lora.add(model, rank, 1.0, ("q", "down"), rngs=nnx.Rngs(0))
    adapters = flops.Adapters(rank, ("q", "down")) if rank else None
    expected = [
        flops.train_step(model.config, flops.Row(n, t, sum(images, [])), adapters)
        for n, t, images in zip(tokens.tolist(), targets.tolist(), grids, strict=True)
    ]
    counted = metering.ModelFlops(model, adapters=bool(rank))
    got = counted(flops.train_step, tokens, targets, mb.batch(rows, 48, 64))
    assert got == sum(sum(parts.values()) for parts in expected)


def test_padding_counts_for_nothing():
    segments = np.array([[1, 1, 2, 3, 0], [1, 0, 0, 0, 0], [0, 0, 0, 0, 0]])
    assert metering.of_rows(segments) == {"tokens": 5, "room": 15, "examples": 4}


class Busy:
    """What a device is computing until a time."""

    def __init__(self, until: float):
        self.until = until

    def block_until_ready(self):
        time.sleep(max(self.until - time.monotonic(), 0))


def waiting(data: float, device: float, steps: int = 4) -> tuple[float, float]:
    """Share of waiting on a device that needs `device` seconds a step, for batches that take
    `data` seconds each; and the seconds in which the host has given it all steps."""

    def batches():
        while True:
            time.sleep(data)
            yield None

    meter, source, free = metering.Meter("test"), batches(), time.monotonic()
    for _ in range(2):
        began = time.monotonic()
        for _ in range(steps):
            meter.next(source)
            free = max(free, time.monotonic()) + device
            meter.ran({"loss": Busy(free)})
        host = time.monotonic() - began
        time.sleep(max(free - time.monotonic(), 0))  # as the means of the metrics do
        values, _ = meter.window({})
    meter.close()
    return values["time/waiting_for_data"], host


def test_people_see_the_share_of_padding():
    meter = metering.Meter("test")
    meter.ran({"loss": 0.0})
    means = {"loss": 0.0} | metering.amount(tokens=30, room=40, examples=2)
    values, shown = meter.window(means)
    meter.close()
    assert means == {"loss": 0.0} and values["time/occupancy"] == 0.75
    assert shown["padding"] == 0.25 and "occupancy" not in shown


def test_waiting_is_the_time_in_which_devices_have_nothing_to_do(caplog):
    share, host = waiting(data=0.01, device=0.15)  # the next batch comes while a device computes
    assert share < 0.25 and host < 3 * 0.15  # and no step waits for the one before
    assert not caplog.records
    share, _ = waiting(data=0.06, device=0.02)
    assert share == pytest.approx(0.67, abs=0.2)
    (record,) = caplog.records
    assert "waited for data" in record.getMessage() and "`workers`" in record.getMessage()


@jax.jit
def double(x):
    return x * 2


def run(directory, *, steps=6, **options):
    """Two steps a line; the fifth step meets a new shape."""

    def step_fn(state, batch):
        metrics = {"loss": double(jnp.ones(2 if batch == 5 else 1)).sum()}
        work = {"tokens": 100 * batch, "room": 400 * batch, "examples": 3, "flops": 1e6}
        return state, metrics | metering.amount(parts=2, **work)

    class Batches:
        at = 0

        def __next__(self):
            self.at += 1
            return self.at

        def get_state(self):
            return self.at

    loop.run(
        {"w": jnp.zeros(1)}, step_fn, Batches(), name="test", directory=directory, steps=steps,
        checkpoint_every=6, log_every=2, **options,
    )  # fmt: skip
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def test_the_log_shows_rates_and_compilations(tmp_path, monkeypatch):
    kind = jax.devices()[0].device_kind
    rows = run(tmp_path / "cpu")
    assert {name for name in rows[0] if not name.startswith("time/")} == {"step", "loss"}
    assert "time/mfu" not in rows[0]  # nobody knows a CPU's peak
    monkeypatch.setitem(metering.CHIP, kind, "h100")
    second = run(tmp_path / "known")
    for row, tokens in zip(second, (300, 700, 1100), strict=True):
        seconds = row["time/seconds_per_step"]
        assert row["time/tokens_per_second"] * seconds == pytest.approx(tokens)
        assert row["time/occupancy"] == 0.25 and "time/room_per_second" not in row
        assert row["time/examples_per_second"] * seconds == pytest.approx(6)
        assert row["time/mfu"] * seconds * 989e12 * jax.device_count() == pytest.approx(2e6)
    counts = [row["time/compilations"] for row in rows]
    assert counts[1] == counts[0] and counts[2] > counts[1]
    assert {row["time/compilations"] for row in second} == {counts[2]}


@pytest.mark.parametrize("last", [3, 9])
def test_a_trace_of_the_steps_that_are_asked_for(tmp_path, last):
    """The run may end before its trace does."""
    run(tmp_path, profile=metering.steps_to_trace(f"2:{last}"))
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


def test_a_trace_of_steps_that_do_not_come_is_a_warning(tmp_path, caplog):
    run(tmp_path, profile=(8, 9))
    assert not (tmp_path / "profile").exists()
    assert any("step 8 was not run" in record.getMessage() for record in caplog.records)


def test_steps_to_trace():
    assert metering.steps_to_trace("10:13") == (10, 13)
    assert metering.steps_to_trace("") is None
    for text in ("10", "0:4", "5:4", "a:b", "1:2:3", "-1:2"):
        with pytest.raises(UserError, match="config.profile='.*' is not FIRST:LAST"):
            metering.steps_to_trace(text)


def test_programs_are_kept_for_the_next_start(tmp_path, monkeypatch):
    """What a run sets by itself; a program that takes no second to compile is not worth a file."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = [getattr(jax.config, name) for name in names]
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    try:
        startup.keep_compiled_programs(tmp_path / "compiled")
        jax.config.update(names[1], 0.0)
        reset_cache()
        jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((3, 3))).block_until_ready()
        assert list((tmp_path / "compiled").glob("jit_*"))
        monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "elsewhere")
        startup.keep_compiled_programs(tmp_path / "other")
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / "compiled")
    finally:
        for name, value in zip(names, before, strict=True):
            jax.config.update(name, value)
        reset_cache()
