"""Whole command lines on a bucket: a killed run goes on on another machine, and what reads it."""

import json
import os
import time

import launched
import pytest
from test_state_commands import FLAGS, TRAIN

pytestmark = pytest.mark.robustness
WORKDIR = "gs://lab/runs/shop"


@pytest.fixture
def command(bucket_server, tmp_path):
    """Starts a program on a machine of its own."""

    def start(program, *flags, machine="machine"):
        return launched.start(
            program,
            f"--local_dir={tmp_path / machine}",
            *flags,
            log=tmp_path / "log",
            compiled=tmp_path / "compiled",
            variables=bucket_server.environment,
        )

    return start


def said(tmp_path, process, status=0):
    process.join(300)
    found = (tmp_path / "log").read_text()
    assert process.exitcode == status, found[-3000:]
    return found


def test_a_killed_run_goes_on_on_another_machine(bucket_server, command, tmp_path):
    program, config = TRAIN
    said(tmp_path, command(program, config, *FLAGS, f"--workdir={tmp_path / 'disk'}"))

    def train(machine):
        return command(program, config, *FLAGS, f"--workdir={WORKDIR}", machine=machine)

    process = train("first")
    while not any("checkpoints/3/commit" in n for n in bucket_server.names("lab")):
        assert process.is_alive(), said(tmp_path, process)
        time.sleep(0.01)
    process.kill()
    process.join()
    assert "runs/shop/run.lock" in bucket_server.names("lab")
    assert "step sasrec goes on" in said(tmp_path, train("second"))
    for name in ("table.json", "sasrec/model/weights.safetensors"):
        found = bucket_server.objects["lab", f"runs/shop/{name}"].data
        assert found == (tmp_path / "disk" / name).read_bytes()
    assert "runs/shop/run.lock" not in bucket_server.names("lab")

    out = tmp_path / "out"
    evaluate = ("launch/evaluate.py", "--page", "--compare", f"--out={out}", WORKDIR)
    said(tmp_path, command(*evaluate, machine="reader"))
    assert (out / "comparison.html").exists()
    export = ("launch/export.py", f"--workdir={WORKDIR}", "--step=sasrec")
    said(tmp_path, command(*export, f"--out={tmp_path / 'x'}", machine="reader"))
    assert (tmp_path / "x" / "weights.npz").exists()
    bucket_server.put("lab", "runs/shop/sasrec/model/config.json", b"{}")
    found = said(tmp_path, command(*export, f"--out={tmp_path / 'y'}", machine="reader"), 2)
    assert f"is the copy of {WORKDIR}; delete there what is to be made again" in found


def test_data_in_a_bucket(bucket_server, command, tmp_path):
    rows = [f"u{u}\ti{(u * 7 + n * 3) % 40}\t{n}" for u in range(30) for n in range(8)]
    text = "\n".join(["user_id:token\titem_id:token\ttimestamp:float", *dict.fromkeys(rows)])
    bucket_server.put("lab", "shop/shop.inter", text.encode())
    flags = ["--config=configs/base.py:sasrec", "--config.data.root=gs://lab/shop", "--steps=data"]
    flags += ["--config.data.user_core=2", "--config.data.item_core=1"]
    records = []
    for machine in ("first", "second"):
        run = command(TRAIN[0], *flags, f"--workdir=gs://lab/{machine}", machine=machine)
        assert "step data is finished" in said(tmp_path, run)
        name = f"{machine}/data/step.json"
        records.append(json.loads(bucket_server.objects["lab", name].data))
    assert records[0]["fingerprint"] == records[1]["fingerprint"]
    assert os.listdir(tmp_path / "first") != os.listdir(tmp_path / "second")
    run = command(TRAIN[0], *flags, "--workdir=gs://lab/first", machine="second")
    assert said(tmp_path, run).count("step data begins") == 2
    found = said(tmp_path, command("launch/data.py", "stats", *flags[:2], *flags[3:]))
    assert "30" in found
