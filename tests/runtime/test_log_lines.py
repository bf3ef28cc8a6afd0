"""Which log lines a user sees: ours, and warnings of anyone."""

import logging
import sys
from pathlib import Path

import pytest

from mmsrec_jax.runtime import startup

ROOT = Path(startup.__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("path", "level", "shown"),
    [
        (ROOT / "mmsrec_jax" / "data" / "build.py", logging.INFO, True),
        (ROOT / "launch" / "train.py", logging.INFO, True),
        (Path("/somewhere/site/orbax/checkpoint/manager.py"), logging.INFO, False),
        (Path("/env/lib/site-packages/orbax/checkpoint/manager.py"), logging.INFO, False),
        (Path("/somewhere/site/orbax/checkpoint/manager.py"), logging.WARNING, True),
    ],
)
def test_lines_of_libraries_are_shown_from_a_warning_on(monkeypatch, path, level, shown):
    monkeypatch.setattr(sys, "argv", [str(ROOT / "launch" / "train.py")])
    record = logging.LogRecord("absl", level, str(path), 1, "said", None, None)
    assert startup._is_ours_or_warns(record) == shown
