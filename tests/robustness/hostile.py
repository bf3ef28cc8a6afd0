"""A runner of small hostile cases: what is damaged, and what must come out of it.

A case that calls a function stands in `refused`. One that runs a program of launch/ calls
`run` and then `Outcome.check_refused`; its test carries the marker `robustness`.
"""

import contextlib
import dataclasses
import hashlib
import os
import re
import resource
import time
from collections.abc import Iterator
from pathlib import Path

import launched
import pytest

from mmsrec_jax.runtime.errors import UserError

_LINE = re.compile(r"\d\d:\d\d:\d\d .*")  # what `startup.plain_log_lines` lets through
_ERROR = re.compile(r"\d\d:\d\d:\d\d ERROR: (.*)")
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_LONGEST_LINE = 1000


@contextlib.contextmanager
def refused(*named: str, seconds: float = 20.0) -> Iterator[None]:
    """The block raises a UserError of one printable line with every one of `named` in it."""
    begun = time.monotonic()
    with pytest.raises(UserError) as raised:
        yield
    assert time.monotonic() - begun < seconds, "it took too long to say so"
    check_line(str(raised.value), *named)


def check_line(message: str, *named: str) -> None:
    """`message` is one printable line of a length that is read, with each of `named` in it."""
    assert not _UNPRINTABLE.search(message), f"more than one line, or terminal codes: {message!r}"
    assert len(message) <= _LONGEST_LINE, f"{len(message)} characters: {message[:200]}..."
    for name in named:
        assert name in message, f"{name!r} is not named in: {message}"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a program left: its exit status (negative: the signal) and both its outputs."""

    status: int
    out: str
    err: str

    @property
    def errors(self) -> list[str]:
        """The messages of its error lines."""
        return [found[1] for found in map(_ERROR.fullmatch, self.err.splitlines()) if found]

    def check_refused(self, *named: str) -> None:
        """It ended with status 2 and one error line, which has each of `named` in it."""
        assert "Traceback" not in self.err + self.out, self.err[-3000:]
        strange = [line for line in self.err.splitlines() if not _LINE.fullmatch(line)]
        assert not strange, f"not a log line: {strange[:5]}"
        assert self.status == 2, f"status {self.status}: {self.err[-1000:]}"
        assert len(self.errors) == 1, self.err[-3000:]
        check_line(self.errors[0], *named)


def run(
    program: str,
    *arguments: str,
    logs: Path,
    timeout: float = 120.0,
    cwd: Path = launched.ROOT,
    compiled: Path | None = None,
    memory_gib: float | None = None,
) -> Outcome:
    """A program of launch/ in a process of its own.

    Args:
      logs: an empty or new folder for its two outputs.
      timeout: seconds, after which it is killed and the test fails.
      cwd: the folder it starts in.
      compiled: folder of compiled programs that several runs share.
      memory_gib: the most that the process may allocate.
    """
    logs.mkdir(parents=True, exist_ok=True)
    out, err = logs / "out", logs / "err"
    for log in (out, err):
        log.write_text("")
    limits = () if memory_gib is None else ((resource.RLIMIT_DATA, int(memory_gib * 2**30)),)
    process = launched.start(
        program, *arguments, log=out, errors=err, cwd=cwd, compiled=compiled, limits=limits
    )
    process.join(timeout)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise AssertionError(f"{program} still ran after {timeout:g} s: {err.read_text()[-2000:]}")
    return Outcome(process.exitcode, out.read_text(), err.read_text())


def snapshot(folder: Path) -> dict[str, str]:
    """What lies under `folder`, by relative path: a digest of a file's bytes, a link's target."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            value = f"-> {os.readlink(path)}"
        elif path.is_dir():
            value = "folder"
        elif path.is_file():
            value = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            value = "device"
        found[path.relative_to(folder).as_posix()] = value
    return found


@contextlib.contextmanager
def untouched(folder: Path) -> Iterator[None]:
    """The block neither changes, adds nor removes anything under `folder`."""
    before = snapshot(folder)
    yield
    after = snapshot(folder)
    changed = {k for k in before.keys() | after.keys() if before.get(k) != after.get(k)}
    assert not changed, f"changed under {folder}: {sorted(changed)[:10]}"


def flip_byte(path: Path, at: float = 0.5) -> None:
    """Inverts the bits of one byte, the share `at` into the file; its size and mtime stay."""
    status, data = path.stat(), bytearray(path.read_bytes())
    data[min(int(len(data) * at), len(data) - 1)] ^= 0xFF
    path.write_bytes(bytes(data))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
