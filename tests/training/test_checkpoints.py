"""What stays on disk, what damage costs, and other meshes."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import pytest
import xla_flags
from jax.sharding import NamedSharding, PartitionSpec

from mmsrec_jax.runtime.errors import UserError
from mmsrec_jax.training.checkpoints import Checkpoints


def sharded(devices):
    mesh = jax.make_mesh((devices,), ("rows",), devices=jax.devices()[:devices])
    return NamedSharding(mesh, PartitionSpec("rows"))


def state(step, devices=8):
    rows = jax.random.normal(jax.random.key(step), (4096,))
    return {"w": jax.device_put(rows, sharded(devices)), "inner": {"count": jnp.int32(step)}}


def assert_equal(found, wanted):
    chex.assert_trees_all_equal(found, wanted)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    directory = tmp_path_factory.mktemp("saved") / "checkpoints"
    checkpoints = Checkpoints(directory)
    for step in (1, 2):
        checkpoints.save(step, state(step), {"position": step})
    checkpoints.close()
    return directory


@pytest.mark.parametrize("damage", ["half", "empty", "gone", "flipped"])
def test_damage_to_any_file_costs_at_most_a_checkpoint(saved, tmp_path, caplog, damage):
    files = sorted(p.relative_to(saved) for p in (saved / "2").rglob("*") if p.is_file())
    needed = set()
    for number, file in enumerate(files):
        directory = tmp_path / str(number)
        shutil.copytree(saved, directory)
        content = (directory / file).read_bytes()
        if damage == "gone":
            (directory / file).unlink()
        elif damage == "flipped" and content:
            middle = len(content) // 2
            flipped = bytes([content[middle] ^ 0xFF])
            (directory / file).write_bytes(content[:middle] + flipped + content[middle + 1 :])
        else:
            (directory / file).write_bytes(
                content[: len(content) // 2] if damage == "half" else b""
            )
        caplog.clear()
        checkpoints = Checkpoints(directory)
        step, found, host = checkpoints.restore(state(0))
        checkpoints.close()
        assert_equal(found, state(step))
        assert host == {"position": step}
        loud = any("passed over" in record.getMessage() for record in caplog.records)
        assert loud == (step == 1)
        if loud:
            needed.add(file.parts[1])
    assert needed == {"state", "host"}


def test_what_was_written_halfway_is_no_checkpoint(saved, tmp_path):
    directory = tmp_path / "checkpoints"
    shutil.copytree(saved, directory)
    (directory / "2").rename(directory / "2.orbax-checkpoint-tmp")
    checkpoints = Checkpoints(directory)
    step, found, _ = checkpoints.restore(state(0))
    checkpoints.close()
    assert step == 1
    assert_equal(found, state(1))


def test_four_devices_read_what_eight_wrote(saved):
    checkpoints = Checkpoints(saved)
    _, found, _ = checkpoints.restore(state(0, devices=4))
    checkpoints.close()
    assert_equal(found, state(2))
    assert found["w"].sharding == sharded(4)


def test_the_latest_and_the_first_of_the_best_stay(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2, best="ndcg")
    with pytest.raises(UserError, match="no checkpoint has ndcg"):
        checkpoints.restore_best(state(0))
    for step, ndcg in enumerate((0.3, 0.7, 0.5, 0.7, 0.1), 1):
        checkpoints.save(step, state(step), {}, {"ndcg": ndcg})
    checkpoints.save(6, state(6), {})
    checkpoints.close()
    assert {path.name for path in tmp_path.iterdir()} == {"2", "5", "6"}
    again = Checkpoints(tmp_path, keep=2, best="ndcg")
    assert_equal(again.restore_best(state(0)), state(2))
    shutil.rmtree(tmp_path / "2" / "state")
    with pytest.raises(UserError, match="the best checkpoint, cannot be read"):
        again.restore_best(state(0))
    again.close()


def test_two_processes_use_what_both_can_read_and_share_rows_without_overlap(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = Path(__file__).with_name("pair.py")
    shared = os.environ | {
        "PYTHONPATH": str(script.parents[2]),
        "XLA_FLAGS": xla_flags.of_devices(2),
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
        "JAX_NUM_PROCESSES": "2",
    }
    pair = [
        subprocess.Popen(
            [sys.executable, script, tmp_path], env=shared | {"JAX_PROCESS_ID": str(index)},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for index in range(2)
    ]  # fmt: skip
    for process in pair:
        said, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors[-3000:]
        said = [line for line in said.splitlines() if not line.startswith("[Gloo]")]
        assert said == [
            "whole 2", "damaged 1", "the main process says no [0, 1]", "scored True"
        ]  # fmt: skip
        assert errors.count("passed over") == 1
