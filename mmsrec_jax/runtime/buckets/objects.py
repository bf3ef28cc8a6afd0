"""The objects under one `gs://bucket/path`, by Google's own client, with errors as one line."""

import base64
import contextlib
import functools
import importlib.util
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mmsrec_jax.runtime.errors import UserError, first_line, root

if TYPE_CHECKING:  # of the extra [gcs]
    from google.cloud import storage

CONNECTIONS = 32  # at once
_RETRY_SECONDS = 120.0  # for which a request that fails is made again
_BLOCK = 2**20
_PACKAGES = ("gcsfs", "google.cloud.storage", "etils.epath")
_URL = re.compile(r"gs://[a-z0-9][a-z0-9._-]{1,220}(/[^/\s]+)*/?")


class Object(NamedTuple):
    """What a bucket says of an object.

    Attributes:
      name: below the folder that was listed.
      size: in bytes.
      generation: number of its content; another content has another one.
      crc32c: of its bytes, in base64.
      updated: when it was written, in nanoseconds since 1970.
    """

    name: str
    size: int
    generation: int
    crc32c: str
    updated: int


class ChangedError(Exception):
    """The object is not in the generation that the request wants."""


def is_url(given: str | os.PathLike[str]) -> bool:
    """Whether a path is that of a bucket."""
    return str(given).startswith("gs://")


def require(what: str) -> None:
    """Raises UserError, about `what` the user gave, when the packages of the extra are missing."""
    for package in _PACKAGES:
        try:
            found = importlib.util.find_spec(package)
        except ModuleNotFoundError:
            found = None
        if found is None:
            raise UserError(
                f"{what}: the package {package} is not installed; run pip install -e '.[gcs]', or "
                "give a path of this machine"
            )


class Objects:
    """The objects whose names begin with the path of `url`.

    Raises:
      UserError: no such bucket, no permission, no network; requests are made again for
        two minutes where that may help. The URL is no `gs://bucket/path`.
    """

    def __init__(self, url: str):
        if not _URL.fullmatch(url):
            raise UserError(f"{url}: no path of a bucket; give gs://BUCKET/FOLDER")
        require(url)
        self.url = url.rstrip("/")
        bucket, _, path = self.url.removeprefix("gs://").partition("/")
        self._prefix = f"{path}/" if path else ""
        with self._named():
            self._bucket = _client().bucket(bucket)

    def list(self, under: str = "") -> list[Object]:
        """All objects below the folder, or below one of its folders, in the order of their
        names. Marks of empty folders are left out."""
        prefix = f"{self._prefix}{under}/" if under else self._prefix
        with self._named(under):
            found = _client().list_blobs(self._bucket, prefix=prefix, retry=_retry())
            return [self._object(b) for b in found if not b.name.endswith("/")]

    def find(self, name: str) -> Object | None:
        """The object of this name, None where there is none."""
        with self._named(name):
            blob = self._bucket.get_blob(self._prefix + name, retry=_retry())
        return None if blob is None else self._object(blob)

    def download(self, known: Object, path: Path, progress: Callable[[int], None]) -> None:
        """Writes the content to `path`, after what an earlier start has written there already.

        progress: gets the number of bytes of each piece.

        Raises:
          UserError: what was read is not what the bucket holds.
        """
        blob = self._bucket.blob(self._prefix + known.name, generation=known.generation)
        had = path.stat().st_size if path.exists() else 0
        progress(min(had, known.size))
        if had < known.size:
            with path.open("ab") as file, self._named(known.name):
                blob.download_to_file(
                    _Counted(file, progress),
                    start=had,
                    raw_download=True,
                    checksum=None,  # of a part there is none: that of the whole comes below
                    retry=_retry(),
                )
        elif not known.size:
            path.touch()
        if crc32c(path) != known.crc32c:
            path.unlink()
            raise UserError(
                f"{self._shown(known.name)}: what arrived is not what the bucket holds; start the "
                "same command again"
            )

    def upload(self, path: Path, name: str, generation: int | None = None) -> Object:
        """Writes the content of a file, where a generation is given only over that one, 0 where
        there is none; what the bucket then says of it.

        Raises:
          ChangedError: it is in another one, of other content.
        """
        from google.api_core import exceptions

        blob = self._bucket.blob(self._prefix + name)
        try:
            with self._named(name, passing=(exceptions.PreconditionFailed,)):
                blob.upload_from_filename(
                    str(path), checksum="crc32c", if_generation_match=generation, retry=_retry()
                )
        except exceptions.PreconditionFailed as error:
            # A request that was made again after its answer was lost may have been carried out.
            if (found := self.find(name)) and found.crc32c == crc32c(path):
                return found
            raise ChangedError from error
        return self._object(blob)

    def read(self, name: str) -> tuple[bytes, int] | None:
        """Content and generation of a small object, None where there is none."""
        from google.api_core import exceptions

        blob = self._bucket.blob(self._prefix + name)
        try:
            with self._named(name, passing=(exceptions.NotFound,)):
                content = blob.download_as_bytes(retry=_retry())
        except exceptions.NotFound:
            return None
        return content, int(blob.generation)

    def write_if(self, name: str, content: bytes, generation: int) -> int:
        """Writes a small object where it is in this generation, 0 where it is absent; its new one.

        Raises:
          ChangedError: it is in another one.
        """
        from google.api_core import exceptions

        blob = self._bucket.blob(self._prefix + name)
        try:
            with self._named(name, passing=(exceptions.PreconditionFailed,)):
                blob.upload_from_string(content, if_generation_match=generation, retry=_retry())
        except exceptions.PreconditionFailed as error:
            # A request that was made again after its answer was lost may have been carried out.
            if (found := self.read(name)) and found[0] == content:
                return found[1]
            raise ChangedError from error
        return int(blob.generation)

    def delete(self, name: str, generation: int | None = None) -> None:
        """Removes an object, if it is there and, where a generation is given, in that one."""
        from google.api_core import exceptions

        blob = self._bucket.blob(self._prefix + name)
        passing = (exceptions.NotFound, exceptions.PreconditionFailed)
        with contextlib.suppress(*passing), self._named(name, passing=passing):
            blob.delete(if_generation_match=generation, retry=_retry())

    def copy(self, name: str, to: str, into: "Objects | None" = None) -> None:
        """Copies an object inside the buckets, to another name here or in another folder."""
        into = into or self
        source = self._bucket.blob(self._prefix + name)
        target = into._bucket.blob(into._prefix + to)
        with self._named(name):
            token, _, _ = target.rewrite(source, retry=_retry())
            while token is not None:
                token, _, _ = target.rewrite(source, token=token, retry=_retry())

    def _object(self, blob: "storage.Blob") -> Object:
        name, when = blob.name.removeprefix(self._prefix), blob.updated
        nanoseconds = int(when.timestamp()) * 10**9 + when.microsecond * 1000
        return Object(name, blob.size, int(blob.generation), blob.crc32c, nanoseconds)

    def _shown(self, name: str) -> str:
        return f"{self.url}/{name}" if name else self.url

    @contextlib.contextmanager
    def _named(
        self, name: str = "", *, passing: tuple[type[Exception], ...] = ()
    ) -> Iterator[None]:
        """Errors of the block, but those `passing`, become one line."""
        import requests
        from google.api_core import exceptions
        from google.auth import exceptions as auth
        from google.cloud.storage.exceptions import DataCorruption

        where = self._shown(name)
        try:
            yield
        except passing:
            raise
        except (exceptions.Forbidden, exceptions.Unauthorized) as error:
            raise UserError(
                f"{where}: no permission ({_said(error)}); give this machine's account the role "
                "Storage Admin on the bucket, or name another"
            ) from error
        except exceptions.NotFound as error:
            raise UserError(
                f"{where}: no such bucket, or the object went away; correct the path"
            ) from error
        except (auth.DefaultCredentialsError, auth.RefreshError) as error:
            raise UserError(
                f"{where}: this machine has no valid credentials ({first_line(error)}); run "
                "gcloud auth application-default login, or give its account access"
            ) from error
        except (
            exceptions.GoogleAPIError,
            auth.GoogleAuthError,
            requests.RequestException,
            DataCorruption,
        ) as error:
            raise UserError(
                f"{where}: the bucket cannot be reached ({_said(error)}); look at the network, "
                "then the same command goes on"
            ) from error


class _Counted:
    """A file that tells how much is written to it."""

    def __init__(self, file: Any, progress: Callable[[int], None]):
        self._file, self._progress = file, progress

    def write(self, data: bytes) -> int:
        self._progress(len(data))
        return self._file.write(data)

    def tell(self) -> int:
        return self._file.tell()


def crc32c(path: Path) -> str:
    """Of a file, as a bucket shows it."""
    import google_crc32c

    found = google_crc32c.Checksum()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            found.update(block)
    return base64.b64encode(found.digest()).decode()


@functools.cache
def _client() -> "storage.Client":
    from google.cloud import storage
    from requests.adapters import HTTPAdapter

    client = storage.Client()
    for scheme in ("https://", "http://"):
        client._http.mount(scheme, HTTPAdapter(pool_maxsize=CONNECTIONS))
    return client


@functools.cache
def _retry() -> Any:
    from google.cloud.storage.retry import DEFAULT_RETRY

    return DEFAULT_RETRY.with_timeout(_RETRY_SECONDS)


def _said(error: Exception) -> str:
    """What a server said, without the address that was asked."""
    last = getattr(error, "cause", None) or error  # of several tries
    if said := getattr(last, "message", ""):
        return first_line(Exception(re.sub(r"^[A-Z]+ https?://\S+ ?", "", said)))
    return first_line(root(last))
