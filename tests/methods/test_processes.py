"""Both methods in real processes: 2 x 4 and 4 x 2 devices end where 1 x 8 ends, and so does a run
that is killed in its steps and goes on on another mesh.

Nearly all of the time every process compiles for itself, hence the flags for that.
"""

import itertools
import json
import re
import socket
import time

import killed_runs
import launched
import numpy as np
import pyarrow.parquet as pq
import pytest
import xla_flags
from tiny_methods import METHODS

DEVICES = 8
MESHES = ({"data": 1, "fsdp": 8, "tensor": 1}, {"data": 2, "fsdp": 2, "tensor": 2})


class Job:
    """`launch/train.py` in `count` processes that share one workdir and eight devices."""

    def __init__(self, method, workdir, count, *arguments):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        flags = [f"--config.{name}={value}" for name, value in method.flags.items()]
        self.logs = [workdir.with_name(f"{workdir.name}-{count}-{i}.log") for i in range(count)]
        self.processes = []
        for index, log in enumerate(self.logs):
            log.write_text("")
            variables = {"XLA_FLAGS": xla_flags.of_devices(DEVICES // count)}
            if count > 1:
                variables["JAX_COORDINATOR_ADDRESS"] = address
                variables["JAX_NUM_PROCESSES"] = str(count)
                variables["JAX_PROCESS_ID"] = str(index)
            self.processes.append(
                launched.start(
                    "launch/train.py", f"--config=configs/quickstart.py{method.variant}",
                    f"--workdir={workdir}", *flags, *arguments, log=log,
                    compiled=workdir.parent / f"compiled-{count}", variables=variables,
                )
            )  # fmt: skip

    def wait(self):
        """What each process has said. All end with status 0."""
        try:
            for process in self.processes:
                process.join(timeout=1200)
            codes = [process.exitcode for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()
        said = [log.read_text() for log in self.logs]
        assert codes == [0] * len(codes), "\n----\n".join(text[-3000:] for text in said)
        return said


def wait_for(job, found, seconds=400):
    """What `found()` gives once it gives something, while the processes run."""
    deadline = time.monotonic() + seconds
    while not (value := found()):  # the first step compiles
        assert time.monotonic() < deadline
        assert all(process.exitcode is None for process in job.processes), job.wait()
        time.sleep(0.05)
    return value


@pytest.fixture(
    scope="module", params=["mmsrarec", pytest.param("mllm_srec", marks=pytest.mark.processes)]
)
def method(request):
    return METHODS[request.param]


@pytest.fixture(scope="module")
def runs(method, tmp_path_factory):
    """The folder of all runs, which share what was compiled for as many processes."""
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module")
def warmed_up(method, runs):
    """What one process does in the warm-up."""
    Job(method, runs / "one", 1, "--steps=data,model,warmup").wait()
    return runs / "one"


@pytest.fixture(scope="module")
def taken_over(method, runs):
    """Two, stopped in the warm-up by a signal to one of them; one process takes over."""
    workdir = runs / "two"
    job = Job(method, workdir, 2)
    wait_for(job, (workdir / "warmup" / "metrics.jsonl").exists)
    job.processes[1].terminate()
    stopped = job.wait()
    left = max(int(path.name) for path in (workdir / "warmup" / "checkpoints").iterdir())
    Job(method, workdir, 1, "--steps=warmup").wait()
    return workdir, left, stopped


@pytest.fixture(scope="module")
def one(method, warmed_up):
    Job(method, warmed_up, 1).wait()
    return warmed_up


@pytest.fixture(scope="module")
def two(method, taken_over):
    workdir, _, _ = taken_over
    return workdir, Job(method, workdir, 2).wait()


@pytest.fixture(scope="module")
def four(method, runs):
    return runs / "four", Job(method, runs / "four", 4).wait()


@pytest.fixture(scope="module")
def meshes(method, runs):
    """A run of one process that is killed in its steps and goes on on the other mesh each time."""
    workdir, starts = runs / "meshes", itertools.cycle(MESHES)

    def start(*_):
        sizes = next(starts)
        flags = [f"--config.mesh.{axis}={size}" for axis, size in sizes.items()]
        return Job(method, workdir, 1, *flags).processes[0]

    assert killed_runs.kill_in(workdir, method.killed, start) == list(method.killed)
    process = start()
    process.join(1200)
    said = (runs / "meshes-1-0.log").read_text()
    assert process.exitcode == 0, said[-3000:]
    return workdir, [said]


@pytest.fixture(params=["two", "four", "meshes"])
def several(request):
    """A run of several processes, or on several meshes, and what each of them has said."""
    return request.getfixturevalue(request.param)


def metrics(directory):
    found = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith("time/")} for line in found]


def assert_same_curves(found, wanted, step=""):
    """Sums over devices are taken in another order: float32's last bits, grown by training."""
    assert [row["step"] for row in found] == [row["step"] for row in wanted]
    for a, b in zip(found, wanted, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_allclose(
                a[name], b[name], rtol=1e-4, atol=1e-4, err_msg=f"{step} {name}"
            )


def test_a_signal_to_one_stops_both_and_one_goes_on_with_the_data_of_two(
    method, warmed_up, taken_over
):
    workdir, left, stopped = taken_over
    assert 0 < left < method.flags["warmup.steps"]
    assert "stopped by SIGTERM; go on with: " in stopped[0].splitlines()[-1]
    assert_same_curves(metrics(workdir / "warmup"), metrics(warmed_up / "warmup"))


@pytest.mark.processes
def test_the_curves_of_every_loop_are_those_of_one_process(method, one, several):
    for step in method.loops:
        assert_same_curves(metrics(several[0] / step), metrics(one / step), step)


@pytest.mark.processes
def test_texts_and_ranks_are_those_of_one_process(method, one, several):
    """To the letter, but that another mesh adds in another order: there, few of the items of the
    lists trade places with those that score within float32's last bits of them."""
    workdir, _ = several
    for name in method.texts:
        texts = [(run / f"{name}.jsonl").read_text() for run in (workdir, one)]
        assert texts[0] == texts[1] and texts[0], name
    assert_same_rewards(workdir, one)
    names = sorted(path.name for path in (one / "evaluation").iterdir())
    assert names == sorted(path.name for path in (workdir / "evaluation").iterdir())
    assert len([name for name in names if name.startswith("ranks-")]) == method.ranks
    for name in names:
        if name.endswith(".parquet"):
            found, wanted = (pq.read_table(run / "evaluation" / name) for run in (workdir, one))
            if workdir.name == "meshes" and "top" in wanted.column_names:
                lists = [np.array(table["top"].to_pylist()) for table in (found, wanted)]
                assert np.mean(lists[0] != lists[1]) < 0.01, name
                assert_neighbors_traded(*lists)
                found, wanted = (table.drop_columns("top") for table in (found, wanted))
            assert found.equals(wanted), name
    assert (workdir / "table.json").read_text() == (one / "table.json").read_text()


def assert_neighbors_traded(found, wanted):
    """Lists int[n, k] are equal but for items that stand side by side; the last may be another."""
    for mine, theirs in zip(found, wanted, strict=True):
        at = 0
        while at < len(mine) - 1:
            if mine[at] != theirs[at]:
                assert (mine[at], mine[at + 1]) == (theirs[at + 1], theirs[at])
                at += 1
            at += 1


def assert_same_rewards(workdir, one):
    """Of every summary, where a step rewards them."""
    scored = [run / "summaries" / "rewards.jsonl" for run in (workdir, one)]
    assert scored[0].exists() == scored[1].exists()
    if not scored[0].exists():
        return
    texts = [path.read_text().splitlines() for path in scored]
    for found, wanted in zip(*(map(json.loads, lines) for lines in texts), strict=True):
        assert found["item"] == wanted["item"]
        assert found["rewards"] == pytest.approx(wanted["rewards"], abs=1e-4)


@pytest.mark.processes
@pytest.mark.parametrize("several", ["two", "four"], indirect=True)
def test_all_write_checkpoints_and_one_everything_else(method, several):
    workdir, (main, *others) = several
    assert "step evaluation is finished" in main
    ours = re.compile(r"\d\d:\d\d:\d\d (?!WARNING)")
    assert [line for said in others for line in said.splitlines() if ours.match(line)] == []
    assert not [path.name for path in workdir.iterdir() if path.name.startswith(".")]
    for step in method.loops[1:]:
        assert len(list((workdir / step / "tensorboard").glob("events.*"))) == 1
        last = max((workdir / step / "checkpoints").iterdir(), key=lambda path: int(path.name))
        written = {path.name for path in (last / "state").glob("ocdbt.process_*")}
        assert written == {f"ocdbt.process_{index}" for index in range(1 + len(others))}


@pytest.mark.processes
def test_four_processes_two_of_which_hold_the_same_rows(method, runs, warmed_up):
    steps = ("--steps=data,model,warmup", "--config.mesh.tensor=4")
    Job(method, runs / "pairs", 4, *steps).wait()
    assert_same_curves(metrics(runs / "pairs" / "warmup"), metrics(warmed_up / "warmup"))
