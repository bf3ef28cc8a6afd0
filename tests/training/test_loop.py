"""The shared loop: an interrupted run ends in the same bits and leaves the same metrics."""

import json
import shutil

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmsrec_jax.runtime.errors import UserError
from mmsrec_jax.training import loop

STEPS = 11


def data():
    def draw(index, _):
        return np.random.default_rng(index).normal(size=4).astype(np.float32)

    source = grain.MapDataset.range(8).shuffle(seed=1).repeat().map_with_index(draw)
    return iter(source.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)))


@jax.jit
def step(state, batch):
    gradient = state["w"] - batch
    return {"w": state["w"] - 0.1 * gradient}, {"loss": jnp.mean(gradient**2)}


def run(directory, *, stop_at=None, **options):
    class Killed(BaseException):
        pass

    taken = 0

    def step_fn(state, batch):
        nonlocal taken
        taken += 1
        if taken == stop_at:
            raise Killed
        return step(state, batch)

    try:
        return loop.run(
            {"w": jnp.zeros(4)},
            step_fn,
            data(),
            name="test",
            directory=directory,
            steps=STEPS,
            checkpoint_every=3,
            log_every=2,
            **options,
        )
    except Killed:
        return None


def lines(directory):
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    directory = tmp_path_factory.mktemp("unbroken")
    return run(directory), lines(directory)


@pytest.mark.parametrize("stop_at", [1, 3, 6, 8])
def test_killed_and_resumed_equals_unbroken(tmp_path, unbroken, stop_at):
    assert run(tmp_path, stop_at=stop_at) is None
    final = run(tmp_path)
    np.testing.assert_array_equal(final["w"], unbroken[0]["w"])
    assert lines(tmp_path) == unbroken[1]


def test_a_finished_run_takes_no_step(tmp_path, unbroken):
    run(tmp_path)
    final = run(tmp_path, stop_at=1)
    np.testing.assert_array_equal(final["w"], unbroken[0]["w"])


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path, unbroken, caplog):
    run(tmp_path, stop_at=8, keep=2)
    newest = max((tmp_path / "checkpoints").iterdir(), key=lambda p: int(p.name))
    for file in (newest / "state").rglob("*"):
        if file.is_file() and file.stat().st_size > 0:
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    final = run(tmp_path, keep=2)
    np.testing.assert_array_equal(final["w"], unbroken[0]["w"])
    assert any("passed over" in record.getMessage() for record in caplog.records)


def test_no_readable_checkpoint_is_an_error_that_says_what_to_do(tmp_path):
    run(tmp_path, stop_at=5)
    shutil.rmtree(tmp_path / "checkpoints" / "3" / "state")
    with pytest.raises(UserError, match="remove the directory"):
        run(tmp_path)


def test_checkpoints_of_another_config_are_not_gone_on_with(tmp_path):
    run(tmp_path, stop_at=5, config={"learning_rate": 0.1, "weights": {"image": 1.0}})
    with pytest.raises(UserError, match="another config .weights.image: 1.0 -> 0.5"):
        run(tmp_path, config={"learning_rate": 0.1, "weights": {"image": 0.5}})


def test_a_position_that_the_batches_refuse_names_the_checkpoints(tmp_path, monkeypatch):
    run(tmp_path, stop_at=5)

    def refuse(state):
        raise UserError("of an earlier version; remove the checkpoints of this step")

    monkeypatch.setattr(type(data()), "set_state", lambda self, state: refuse(state))
    with pytest.raises(UserError, match=rf"^{tmp_path}/checkpoints: of an earlier version"):
        run(tmp_path)


def test_divergence_stops_the_run(tmp_path):
    def step_fn(state, batch):
        return state, {"loss": jnp.float32(np.nan)}

    with pytest.raises(UserError, match="loss is nan at step 2"):
        loop.run(
            {"w": jnp.zeros(4)}, step_fn, data(), name="test", directory=tmp_path, steps=4,
            checkpoint_every=4, log_every=2,
        )  # fmt: skip


def test_evaluation_can_stop_and_change_the_state(tmp_path):
    def evaluate(state, at):
        return {"w": state["w"] * 0}, {"validation": float(at)}, at >= 4

    final = run(tmp_path, evaluate=evaluate, evaluate_every=2)
    np.testing.assert_array_equal(final["w"], np.zeros(4))
    assert [row["validation"] for row in lines(tmp_path) if "validation" in row] == [2.0, 4.0]
    again = run(tmp_path, stop_at=1, evaluate=evaluate, evaluate_every=2)
    np.testing.assert_array_equal(again["w"], np.zeros(4))


def test_the_last_step_is_validated_too(tmp_path):
    def evaluate(state, at):
        return state, {"validation": float(at)}, False

    run(tmp_path, evaluate=evaluate, evaluate_every=4)
    found = [row["validation"] for row in lines(tmp_path) if "validation" in row]
    assert found == [*range(4, STEPS, 4), STEPS] and STEPS % 4
