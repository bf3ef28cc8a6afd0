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


def test_a_checkpoint_that_a_thread_cannot_write_ends_the_program(monkeypatch):
    ends = []
    monkeypatch.setattr(startup, "_end_from_thread", ends.append)
    for error in (OSError(28, "No space left on device", "/runs/a/5"), ValueError("of orbax")):
        for thread in ("async_save", "MainThread"):
            record = logging.LogRecord(
                "absl", logging.ERROR, "/env/orbax/checkpoint/async.py", 1, "Failed", (),
                (type(error), error, None),
            )  # fmt: skip
            record.threadName = thread
            startup._FailedSaves().emit(record)
    assert len(ends) == 2 and all(line.startswith("a checkpoint cannot be writ") for line in ends)
    assert "/runs/a/5: No space left on device; free some space" in ends[0] and "orbax" in ends[1]


def test_what_orbax_cannot_do_is_one_warning(monkeypatch):
    monkeypatch.setattr(sys, "argv", [str(ROOT / "launch" / "train.py")])
    try:
        raise OSError(39, "Directory not empty", "/runs/a/checkpoints/2")
    except OSError:
        failed = sys.exc_info()
    record = logging.LogRecord(
        "absl", logging.ERROR, "/env/orbax/checkpoint/storage.py", 1,
        "Failed to remove checkpoint (%s)\nand more", ("/runs/a/checkpoints/2",), failed,
    )  # fmt: skip
    assert startup._is_ours_or_warns(record)
    line = startup.PlainFormatter("%(asctime)s %(message)s", "%H:%M:%S").format(record)
    assert line[8:] == (
        " WARNING: orbax: Failed to remove checkpoint (/runs/a/checkpoints/2) (Directory not empty)"
    )
