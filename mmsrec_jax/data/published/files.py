"""Where a publisher's file lies, whether it is the one that was published, and its lines."""

import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from mmsrec_jax.runtime import digests, reading
from mmsrec_jax.runtime.errors import UserError, first_line
from mmsrec_jax.runtime.reading import LONGEST_LINE

_CHUNK = 8 << 20  # bytes of unpacked text that are parsed at a time


@dataclass(frozen=True)
class File:
    """One file of a publisher.

    names: where it may lie in the folder of a source, without .gz, which may follow.
    url: of the file itself; empty where the publisher wants a login or a click.
    digest, gz_digest: "md5:..." or "sha256:..." of the file as published, and of its .gz; empty
      where none is known.
    """

    names: tuple[str, ...]
    url: str = ""
    digest: str = ""
    gz_digest: str = ""

    def locate(self, root: Path) -> Path | None:
        """The file below `root`, None when it is not there.

        Raises:
          UserError: it is there more than once, or is no regular file.
        """
        candidates = [root / f"{name}{end}" for name in self.names for end in ("", ".gz")]
        found = [path for path in candidates if os.path.lexists(path)]
        if len(found) > 1:
            raise UserError(f"{found[0]} and {found[1]} are both here; remove one of them")
        for path in found:
            reading.check_regular(path, within=reading.home(root))
        return found[0] if found else None

    def required(self, root: Path, page: str, hint: str = "") -> Path:
        """As `locate`; a missing file is a UserError with the page that has it."""
        path = self.locate(root)
        if path is not None:
            return path
        ending = "" if self.names[0].endswith(".zip") else "[.gz]"
        fetched = "; or set config.data.download=True" if self.url else ""
        raise UserError(
            f"{root / self.names[0]}{ending} is not here; download it from {self.url or page}"
            f"{self.checksums()}{hint}{fetched}"
        )

    def checksums(self) -> str:
        """As " (md5:...; its .gz has md5:...)"; empty where none is known."""
        known = [self.digest] if self.digest else []
        if self.gz_digest:
            known.append(f"its .gz has {self.gz_digest}")
        return f" ({'; '.join(known)})" if known else ""

    def check_digest(self, path: Path, page: str, *, name: str = "") -> None:
        """Raises UserError when the file at `path` is not the one that was published. name: of it,
        for the message, in place of `path`."""
        expected = self.gz_digest if path.suffix == ".gz" else self.digest
        if not expected:
            return
        algorithm, _, value = expected.partition(":")
        found = digests.whole(path, algorithm)
        if found != value:
            raise UserError(
                f"{name or path}: its {algorithm} is {found} and not {value}, that of the "
                "published file; "
                f"download it again from {self.url or page}"
            )


class Chunk(NamedTuple):
    """Whole lines of a file, unpacked; `first` is the number of the first, counted from 1."""

    path: Path
    first: int
    data: bytes

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """(number, line without its end) of the lines that are not blank."""
        for number, line in enumerate(self.data.split(b"\n"), self.first):
            if line := line.rstrip(b"\r"):
                yield number, line

    def line_of_row(self, row: int) -> int:
        """The number of the line that holds row `row`, counted from 0; of the last line where
        several rows share lines."""
        numbers = [number for number, _ in self.lines()]
        return numbers[min(row, len(numbers) - 1)]


def chunks(path: Path) -> Iterator[Chunk]:
    """The text of a file, plain or .gz, in parts of bounded size.

    Raises:
      UserError: it cannot be read or unpacked, or a line is longer than `LONGEST_LINE`.
    """
    first, rest = 1, b""
    with reading.open_unpacked(path, name=f"read {path.name}") as stream:
        while data := _more(stream, path):
            text = rest + data
            if first == 1 and not rest:
                text = text.removeprefix(b"\xef\xbb\xbf")
            end = text.rfind(b"\n") + 1
            whole, rest = text[:end], text[end:]
            ends = np.flatnonzero(np.frombuffer(whole, np.uint8) == ord("\n"))
            lengths = np.diff(ends, prepend=-1, append=len(text)) - 1
            if lengths.max() > LONGEST_LINE:
                number = first + int(lengths.argmax())
                raise UserError(f"{path}:{number}: longer than {LONGEST_LINE:,} bytes; shorten it")
            if whole:
                yield Chunk(path, first, whole)
                first += len(ends)
    if rest:
        yield Chunk(path, first, rest)


def _more(stream: BinaryIO, path: Path) -> bytes:
    try:
        return stream.read(_CHUNK)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(
            f"{path}: damaged, download or copy it again: {first_line(error)}"
        ) from error


def lines(path: Path, encoding: str = "utf-8") -> Iterator[tuple[int, str]]:
    """(number, text) of the lines that are not blank. Raises UserError as `chunks` and for what is
    not of the encoding."""
    for chunk in chunks(path):
        for number, line in chunk.lines():
            yield number, decoded(line, path, number, encoding)


def decoded(line: bytes, path: Path, number: int, encoding: str = "utf-8") -> str:
    """The text of a line; UserError names one that is not of the encoding."""
    try:
        return line.decode(encoding)
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}:{number}: not {encoding} at byte {error.start} of the line; convert the "
            "file, or download or copy it again"
        ) from None
