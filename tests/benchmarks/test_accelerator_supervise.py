"""Programs under a budget of time, with stubs in place of training runs."""

import os
import signal
import sys
import threading
import time

from benchmarks.accelerator import supervise

SAVES = """
import pathlib, signal, sys, time
def save(*_):
    pathlib.Path("saved").write_text("state")
    sys.exit(0)
signal.signal(signal.SIGTERM, save)
pathlib.Path("begun").touch()
time.sleep(60)
"""
HANGS = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"


def command(folder, name, program):
    (folder / name).mkdir()
    return supervise.Command(
        name, [sys.executable, "-c", program], folder / name, {"WORD": name}, folder / "log.txt"
    )


def after(seconds):
    return supervise.Budget(seconds / 60, reserve=0)


def test_all_run_in_order_and_their_lines_are_kept(tmp_path, capfd):
    program = "import os; print(os.environ['WORD'])"
    commands = [command(tmp_path, name, program) for name in ("one", "two", "three")]
    assert supervise.run(commands, after(60)) == dict.fromkeys(("one", "two", "three"), "finished")
    assert (tmp_path / "log.txt").read_text() == "one\ntwo\nthree\n"
    assert capfd.readouterr().out == "one\ntwo\nthree\n"


def test_used_up_minutes_end_the_program_after_it_has_saved(tmp_path):
    commands = [command(tmp_path, "first", SAVES), command(tmp_path, "second", SAVES)]
    began = time.monotonic()
    states = supervise.run(commands, after(3))
    assert states == {"first": "stopped", "second": "not begun"}
    assert (tmp_path / "first" / "saved").read_text() == "state"
    assert time.monotonic() - began < 15


def test_a_program_that_does_not_end_is_killed_after_the_grace(tmp_path):
    began = time.monotonic()
    assert supervise.run([command(tmp_path, "a", HANGS)], after(1), grace=1) == {"a": "stopped"}
    assert time.monotonic() - began < 20


def test_a_failure_ends_what_waits(tmp_path):
    commands = [command(tmp_path, "a", "raise SystemExit(2)"), command(tmp_path, "b", "")]
    assert supervise.run(commands, after(60)) == {"a": "failed", "b": "not begun"}


def test_several_at_a_time(tmp_path):
    meet = (
        "import os, pathlib, time\n"
        "pathlib.Path('../met-' + os.environ['WORD']).touch()\n"
        "end = time.monotonic() + 30\n"
        "while len(list(pathlib.Path('..').glob('met-*'))) < 2 and time.monotonic() < end:\n"
        "    time.sleep(.05)\n"
        "assert time.monotonic() < end\n"
    )
    commands = [command(tmp_path, name, meet) for name in "ab"]
    assert supervise.run(commands, after(60), jobs=2) == {"a": "finished", "b": "finished"}


def test_a_signal_to_this_process_uses_up_the_budget(tmp_path):
    def send():
        while not (tmp_path / "a" / "begun").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=send).start()
    assert supervise.run([command(tmp_path, "a", SAVES)], after(60)) == {"a": "stopped"}
    assert (tmp_path / "a" / "saved").exists()


def test_the_watcher_is_called_while_it_runs_and_at_the_end(tmp_path):
    seen = []
    supervise.run(
        [command(tmp_path, "a", "open('out', 'w').close()")],
        after(60),
        watch=lambda: seen.append((tmp_path / "a" / "out").exists()),
    )
    assert seen[-1]
