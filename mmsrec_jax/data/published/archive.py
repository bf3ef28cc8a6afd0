"""The files of a publisher out of a zip."""

import shutil
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

from mmsrec_jax.data.published.files import File
from mmsrec_jax.runtime import disk
from mmsrec_jax.runtime.errors import UserError, first_line

_MOST_EXPANDED = 200  # bytes of a file for a byte of the zip; tables of ratings have 3 to 10


def unpack(path: Path, files: Sequence[File], directory: Path) -> None:
    """Puts `files` out of the zip into `directory`, and nothing else that is in it.

    Raises:
      UserError: it is no zip, is damaged, lacks a file, or one would be far larger than the zip.
    """
    try:
        with zipfile.ZipFile(path) as archive, disk.arriving(directory, replaces=True) as partial:
            sizes = {info.filename: info.file_size for info in archive.infolist()}
            for file in files:
                # Names of ours: none can lead out of the folder.
                name = next((name for name in file.names if name in sizes), None)
                if name is None:
                    raise UserError(f"{path}: {file.names[-1]} is not in it; download it again")
                if sizes[name] > _MOST_EXPANDED * path.stat().st_size:
                    raise UserError(
                        f"{path}: {name} would have {sizes[name]:,} bytes; is it what it should be?"
                    )
                target = partial / name
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(name) as packed, target.open("wb") as out:
                    shutil.copyfileobj(packed, out)  # never more than the size that it says
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise UserError(f"{path}: damaged ({first_line(error)}); download it again") from error
