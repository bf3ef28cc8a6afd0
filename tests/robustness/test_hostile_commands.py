"""Command lines that cannot work: one line says why, nothing is written."""

import hostile
import pytest

pytestmark = pytest.mark.robustness


def test_an_unknown_setting(tmp_path):
    workdir = tmp_path / "run"
    found = hostile.run(
        "launch/train.py",
        "--config=configs/quickstart.py",
        f"--workdir={workdir}",
        "--config.sft.stpes=5",
        logs=tmp_path / "logs",
    )
    found.check_refused("--config.sft.stpes", "did you mean 'steps'?")
    assert not workdir.exists()
