"""A publisher's files into the folder of a data set, where the publisher offers them to everyone.

A file arrives whole, with the published checksum where one is known, or not at all. The same call
again fetches what is still missing.
"""

import contextlib
import http.client
import shutil
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from absl import logging

from mmsrec_jax.data.published.archive import unpack
from mmsrec_jax.data.published.files import File
from mmsrec_jax.data.published.source import Source
from mmsrec_jax.runtime import disk
from mmsrec_jax.runtime.errors import UserError, first_line
from mmsrec_jax.runtime.progress import Progress

_AGENT = "mmsrec_jax (research; files of a data set)"
_SILENCE = 60.0  # seconds without a byte
_CHUNK = 1 << 20
_MB = 1_000_000
_FIELD = "config.data.download=True"


def fetch(source: Source, root: Path, files: Sequence[File]) -> None:
    """Downloads those of `files` that are not below `root`, an existing folder.

    Raises:
      UserError: the publisher offers one to people alone, names it and the page; no answer, another
        answer than the file, or the file is not the published one.
    """
    missing = [file for file in files if file.locate(root) is None]
    if not missing:
        return
    for file in () if source.archive else missing:
        if not file.url:
            raise UserError(
                f"{_FIELD}: {source.publisher} offers {file.names[0]} on a page alone; get it "
                f"there, {source.page}{file.checksums()}, and put it into {root}"
            )
    arriving = disk.temporary(root / "download")
    arriving.mkdir()
    try:
        if source.archive:
            packed = _download(source.archive, arriving, source.page)
            unpack(packed, missing, arriving / "unpacked")
            for file in missing:
                _place(file.required(arriving / "unpacked", source.page), root / file.names[-1])
        else:
            for file in missing:
                path = _download(file, arriving, source.page)
                _place(path, (root / file.names[0]).with_name(path.name))
    finally:
        shutil.rmtree(arriving, ignore_errors=True)


def _place(path: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    disk.sync(path)
    path.replace(target)
    disk.sync(target.parent)
    logging.info("%s: here, %s bytes", target, f"{target.stat().st_size:,}")


def _download(file: File, folder: Path, page: str) -> Path:
    """The file in `folder`, under the name of its address, checked."""
    path = folder / file.url.rpartition("/")[2]
    logging.info("%s: downloads it", file.url)
    with _answered(file.url, page):
        asked = urllib.request.Request(file.url, headers={"User-Agent": _AGENT})
        response = urllib.request.urlopen(asked, timeout=_SILENCE)
    with response, path.open("wb") as out:
        if response.headers.get_content_type() == "text/html":
            raise UserError(f"{file.url}: a web page came and not the file; look at {page}")
        stated = response.headers["Content-Length"]
        size = int(stated) if stated and stated.isdigit() else None
        progress = Progress(f"download {path.name}", (size or 0) // _MB + 1, unit="MB")
        count = 0
        for part in _parts(response, file.url, page):
            with disk.named(path):
                out.write(part)
            count += len(part)
            if size is not None and count < size:
                progress.update(count // _MB - progress.done)
    if size is not None and count != size:
        raise _broken(file.url, f"{count:,} of {size:,} bytes came")
    if size is not None:
        progress.update(progress.total - progress.done)
    file.check_digest(path, page, name=file.url)
    return path


def _parts(response: IO[bytes], url: str, page: str) -> Iterator[bytes]:
    while True:
        with _answered(url, page):
            part = response.read(_CHUNK)
        if not part:
            return
        yield part


@contextlib.contextmanager
def _answered(url: str, page: str) -> Iterator[None]:
    try:
        yield
    except urllib.error.HTTPError as error:
        raise UserError(
            f"{url}: HTTP {error.code} {error.reason}; look whether the file has moved, {page}"
        ) from error
    except (OSError, http.client.HTTPException) as error:
        raise _broken(url, first_line(error)) from error


def _broken(url: str, problem: str) -> UserError:
    return UserError(f"{url}: broken off ({problem}); the same command tries it again")
