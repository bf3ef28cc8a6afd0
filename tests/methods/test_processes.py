"""The whole method in real processes: 2 x 4 and 4 x 2 devices end where 1 x 8 ends.

Nearly all of the time every process compiles for itself, hence the flags for that.
"""

import json
import re
import socket
import time

import launched
import numpy as np
import pyarrow.parquet as pq
import pytest
import xla_flags

LOOPS = ("warmup", "summarizer", "sasrec", "plain_sft", "sft", "cached")
DEVICES = 8
TINY = {
    "input_shards": 4,
    "data.toyshop.num_users": 100, "data.toyshop.num_items": 40, "data.toyshop.num_groups": 3,
    "model.tiny.hidden": 32, "model.tiny.layers": 1, "model.tiny.intermediate": 32,
    "model.tiny.vision_hidden": 24, "model.tiny.vision_layers": 1,
    "model.tiny.vision_intermediate": 24, "prompts.text_tokens": 8,
    "warmup.steps": 6, "warmup.warmup_steps": 2, "warmup.checkpoint_every": 3,
    "warmup.log_every": 1, "warmup.batch_size": 8, "warmup.learning_rate": 1e-3,
    "summarizer.steps": 2, "summarizer.batch_size": 8, "summarizer.num_generations": 2,
    "summarizer.micro_batch": 16, "summarizer.distractors": 2, "summarizer.max_new_tokens": 8,
    "summarizer.log_every": 1, "summaries.batch_size": 8, "sasrec.steps": 6,
    "sasrec.evaluate_every": 3, "sasrec.log_every": 1, "sasrec.batch_size": 8, "sasrec.dim": 8,
    "sft.steps": 3, "sft.warmup_steps": 1, "sft.checkpoint_every": 3, "sft.batch_size": 8,
    "sft.log_every": 1, "forms": "('joint', 'cached')", "cached.steps": 2,
    "cached.evaluate_every": 2, "cached.warmup_steps": 1, "cached.checkpoint_every": 2,
    "cached.log_every": 1, "cached.num_users": 8, "cached.num_items": 16,
    "cached.validation_rows": 16, "cached.score_users": 8, "cached.score_items": 40,
    "evaluation.users": 20, "evaluation.batch_size": 8,
    "evaluation.rerank": 25, "evaluation.fuse": True,
}  # fmt: skip


class Job:
    """`launch/train.py` in `count` processes that share one workdir and eight devices."""

    def __init__(self, workdir, count, *arguments):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        flags = [f"--config.{name}={value}" for name, value in TINY.items()]
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
                    "launch/train.py", "--config=configs/quickstart.py", f"--workdir={workdir}",
                    *flags, *arguments, log=log, compiled=workdir.parent / f"compiled-{count}",
                    variables=variables,
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


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folder of all runs, which share what was compiled for as many processes."""
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module")
def warmed_up(runs):
    """What one process does in the warm-up."""
    Job(runs / "one", 1, "--steps=data,model,warmup").wait()
    return runs / "one"


@pytest.fixture(scope="module")
def taken_over(runs):
    """Two, stopped in the warm-up by a signal to one of them; one process takes over."""
    workdir = runs / "two"
    job = Job(workdir, 2)
    deadline = time.monotonic() + 400
    while not (workdir / "warmup" / "metrics.jsonl").exists():  # the first step compiles
        assert time.monotonic() < deadline
        assert all(process.exitcode is None for process in job.processes), job.wait()
        time.sleep(0.05)
    job.processes[1].terminate()
    stopped = job.wait()
    left = max(int(path.name) for path in (workdir / "warmup" / "checkpoints").iterdir())
    Job(workdir, 1, "--steps=warmup").wait()
    return workdir, left, stopped


@pytest.fixture(scope="module")
def one(warmed_up):
    Job(warmed_up, 1).wait()
    return warmed_up


@pytest.fixture(scope="module")
def two(taken_over):
    workdir, _, _ = taken_over
    return workdir, Job(workdir, 2).wait()


@pytest.fixture(scope="module")
def four(runs):
    return runs / "four", Job(runs / "four", 4).wait()


@pytest.fixture(params=["two", "four"])
def several(request):
    """A run of several processes and what each of them has said."""
    return request.getfixturevalue(request.param)


def metrics(directory):
    found = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith("time/")} for line in found]


def assert_same_curves(found, wanted):
    """Sums over devices are taken in another order: float32's last bits, grown by training."""
    assert [row["step"] for row in found] == [row["step"] for row in wanted]
    for a, b in zip(found, wanted, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_allclose(a[name], b[name], rtol=1e-4, atol=1e-4, err_msg=name)


def test_a_signal_to_one_stops_both_and_one_goes_on_with_the_data_of_two(warmed_up, taken_over):
    workdir, left, stopped = taken_over
    assert 0 < left < TINY["warmup.steps"]
    assert "stopped by SIGTERM; go on with: " in stopped[0].splitlines()[-1]
    assert_same_curves(metrics(workdir / "warmup"), metrics(warmed_up / "warmup"))


@pytest.mark.processes
@pytest.mark.parametrize("step", LOOPS)
def test_the_curves_of_every_loop_are_those_of_one_process(one, several, step):
    assert_same_curves(metrics(several[0] / step), metrics(one / step))


@pytest.mark.processes
def test_summaries_and_ranks_are_those_of_one_process(one, several):
    """To the letter: no two candidates of the shop score within float32's last bits."""
    workdir, _ = several
    summaries = [(run / "summaries" / "summaries.jsonl").read_text() for run in (workdir, one)]
    assert summaries[0] == summaries[1]
    scored = [(run / "summaries" / "rewards.jsonl").read_text() for run in (workdir, one)]
    for found, wanted in zip(*(map(json.loads, text.splitlines()) for text in scored), strict=True):
        assert found["item"] == wanted["item"]
        assert found["rewards"] == pytest.approx(wanted["rewards"], abs=1e-4)
    names = sorted(path.name for path in (one / "evaluation").iterdir())
    assert names == sorted(path.name for path in (workdir / "evaluation").iterdir())
    assert len([name for name in names if name.startswith("ranks-")]) == 27
    for name in names:
        if name.endswith(".parquet"):
            found, wanted = (pq.read_table(run / "evaluation" / name) for run in (workdir, one))
            assert found.equals(wanted), name
    assert (workdir / "table.json").read_text() == (one / "table.json").read_text()


@pytest.mark.processes
def test_all_write_checkpoints_and_one_everything_else(several):
    workdir, (main, *others) = several
    assert "step evaluation is finished" in main
    ours = re.compile(r"\d\d:\d\d:\d\d (?!WARNING)")
    assert [line for said in others for line in said.splitlines() if ours.match(line)] == []
    assert not [path.name for path in workdir.iterdir() if path.name.startswith(".")]
    for step in LOOPS[1:]:
        assert len(list((workdir / step / "tensorboard").glob("events.*"))) == 1
        last = max((workdir / step / "checkpoints").iterdir(), key=lambda path: int(path.name))
        written = {path.name for path in (last / "state").glob("ocdbt.process_*")}
        assert written == {f"ocdbt.process_{index}" for index in range(1 + len(others))}


@pytest.mark.processes
def test_four_processes_two_of_which_hold_the_same_rows(runs):
    # A vocabulary that four parts divide: the corpus would give a few tokens more.
    sizes = ("--steps=data,model,warmup", "--config.model.tiny.vocab_size=768")
    Job(runs / "pairs", 4, *sizes, "--config.mesh.tensor=4").wait()
    Job(runs / "alone", 1, *sizes).wait()
    assert_same_curves(metrics(runs / "pairs" / "warmup"), metrics(runs / "alone" / "warmup"))
