"""A prepared data set on disk: two TFDS data sets in array_record files and a manifest.

    directory/manifest.json      counts, file sizes, a hash of the content
    directory/index.parquet      item ids and which have an image, in order
    directory/items/1.0.0/       `tfds.data_source("items", data_dir=directory)` reads it too
    directory/histories/1.0.0/

Nothing here imports TensorFlow.
"""

import contextlib
import hashlib
import io
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2

from mmsrec_jax.data import images
from mmsrec_jax.data.records import Catalog, Histories, Item
from mmsrec_jax.runtime import disk
from mmsrec_jax.runtime.errors import UserError
from mmsrec_jax.runtime.progress import track

FORMAT = 1
_MANIFEST = "manifest.json"
_VERIFY_CHUNK = 256
_MANIFEST_FIELDS = {
    "fingerprint": str, "items": int, "images": int, "users": int, "interactions": int,
    "ratings": bool, "clock": bool, "files": dict,
}  # fmt: skip


@dataclass(frozen=True)
class Written:
    """What `write` put on disk.

    text: field -> items that have it. corrupt_images: (name, reason), stored without image.
    """

    items: int
    images: int
    categories: int
    text: dict[str, int]
    attributes: dict[str, int]
    corrupt_images: list[tuple[str, str]]
    fingerprint: str


class _Builder(tfds.core.ShardBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Writes a stream of examples in the order given, as one file, in bounded memory.

    The builders of TFDS that can shuffle hold a gigabyte, and need TensorFlow for what is larger.
    """

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, examples: Iterable[dict], **kwargs: Any):
        self._examples = examples
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict(self.features())
        return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

    def _shard_iterators_per_split(
        self, dl_manager: Any
    ) -> dict[str, list[Callable[[], Iterator[tuple[int, dict]]]]]:
        return {"train": [self._generate_examples]}

    def _generate_examples(self) -> Iterator[tuple[int, dict]]:
        yield from enumerate(self._examples)


class _ItemsBuilder(_Builder, skip_registration=True):  # type: ignore[call-arg]
    name = "items"

    @staticmethod
    def features() -> dict:
        text = tfds.features.Text
        pairs = {"name": text(), "value": text()}
        return {
            "id": text(),
            "text": tfds.features.Sequence(pairs),
            "attributes": tfds.features.Sequence(pairs),
            "category": text(),
            # The encoded file; empty = none. `features.Image` has no missing value.
            "image": tfds.features.Scalar(np.object_),
        }


class _HistoriesBuilder(_Builder, skip_registration=True):  # type: ignore[call-arg]
    name = "histories"

    @staticmethod
    def features() -> dict:
        def array(dtype: npt.DTypeLike) -> tfds.features.Tensor:
            # As bytes: tf.train.Example keeps floats in 32 bits, too few for Unix seconds.
            return tfds.features.Tensor(shape=(None,), dtype=dtype, encoding="bytes")

        return {
            "user": tfds.features.Text(),
            "items": array(np.int32),
            "timestamps": array(np.float64),
            "ratings": array(np.float32),
        }


class _StoredItems:
    """`self[i] -> Item`, the files opened once in each process that reads."""

    def __init__(self, directory: Path):
        self._directory = directory
        self._opened: tuple[int | None, Any] = (None, None)  # process, data source

    def __getstate__(self) -> dict:
        return {"_directory": self._directory, "_opened": (None, None)}

    def __getitem__(self, i: int) -> Item:
        pid, source = self._opened
        if pid != os.getpid():
            source = _data_source(self._directory, "items")
            self._opened = (os.getpid(), source)
        with disk.readable(self._directory / "items", "copy the store again or build it again"):
            example = source[int(i)]
        return Item(
            id=example["id"].decode(),
            text=_from_pairs(example["text"]),
            image=example["image"] or None,
            category=example["category"].decode() or None,
            attributes=_from_pairs(example["attributes"]),
        )


def write(
    directory: str | Path,
    items: Iterable[Item],
    histories: Histories,
    *,
    image_name: Callable[[str], str] = str,
) -> Written:
    """Writes a store, replacing the one in `directory`; never leaves half of one there.

    What users state of themselves is left out (`data.user_attributes`).
    One process writes, also where many will read. Every image is decoded once; a corrupt one is
    counted and its item stored without it.
    `image_name`: item id -> what to call its image in the list of corrupt ones.

    Raises:
      UserError: `directory` holds something else; duplicate item ids; no interactions.
    """
    if not len(histories):
        raise UserError("no interactions to store: the filters left nothing; loosen them")
    directory = Path(directory).resolve()
    if directory.exists() and any(directory.iterdir()) and not (directory / _MANIFEST).exists():
        raise UserError(f"{directory}: not empty and not a store; choose another directory")
    for partial in disk.left_behind(directory):  # of writers that were killed
        shutil.rmtree(partial, ignore_errors=True)
    with disk.arriving(directory, replaces=True) as partial:
        return _write_into(partial, items, histories, image_name)


def open(directory: str | Path) -> tuple[Catalog, Histories]:
    """The catalog, read lazily, and the histories, in memory.

    Raises:
      UserError: the store is missing, of another format, or a file of it is missing or cut short.
    """
    directory = Path(directory).resolve()
    manifest = _checked_manifest(directory)
    remedy = "copy the store again or build it again"
    path = directory / "index.parquet"
    index = disk.read_parquet(path, ("id", "has_image"), remedy)
    if len(index) != manifest["items"]:
        raise UserError(f"{path}: {len(index)} items and not {manifest['items']}; {remedy}")
    catalog = Catalog(
        _StoredItems(directory),
        index["id"].to_numpy(zero_copy_only=False),
        index["has_image"].to_numpy(zero_copy_only=False),
    )
    with disk.readable(directory / "histories", remedy):
        histories = _read_histories(directory, manifest)
        if len(histories.items) != manifest["interactions"]:
            raise ValueError(f"not {manifest['interactions']} interactions")
        _check(index["id"].to_pylist(), histories)
    return catalog, histories


def fingerprint(directory: str | Path) -> str:
    """Hash of the items, images and histories in the store: equal content, equal hash."""
    return _checked_manifest(Path(directory).resolve())["fingerprint"]


def _write_into(
    directory: Path,
    items: Iterable[Item],
    histories: Histories,
    image_name: Callable[[str], str],
) -> Written:
    digest = hashlib.sha256(f"mmsrec_jax store {FORMAT}".encode())
    ids: list[str] = []
    has_image: list[bool] = []
    corrupt: list[tuple[str, str]] = []
    text: Counter[str] = Counter()
    attributes: Counter[str] = Counter()
    categories = 0

    def item_examples() -> Iterator[dict]:
        nonlocal categories
        for item, reason in _verified(items):
            image = item.image or b""
            if reason is not None:
                corrupt.append((image_name(item.id), reason))
                image = b""
            ids.append(item.id)
            has_image.append(bool(image))
            categories += item.category is not None
            text.update(item.text.keys())
            attributes.update(item.attributes.keys())
            words = [item.id, list(item.text.items()), item.category, list(item.attributes.items())]
            digest.update(json.dumps(words).encode())
            digest.update(hashlib.sha256(image).digest())
            yield {
                "id": item.id,
                "text": _to_pairs(item.text),
                "attributes": _to_pairs(item.attributes),
                "category": item.category or "",
                "image": image,
            }

    _prepare(_ItemsBuilder, directory, item_examples())
    _check(ids, histories)
    told = track(_history_examples(histories), "write histories", len(histories), "users")
    _prepare(_HistoriesBuilder, directory, told)
    digest.update(json.dumps([histories.users.tolist(), histories.clock]).encode())
    for name in ("offsets", "items", "timestamps", "ratings"):
        value = getattr(histories, name)
        digest.update(b"none" if value is None else value.tobytes())
    index = pa.table({"id": ids, "has_image": has_image})
    pq.write_table(index, directory / "index.parquet")
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "fingerprint": digest.hexdigest(),
        "items": len(ids),
        "images": sum(has_image),
        "users": len(histories),
        "interactions": len(histories.items),
        "ratings": histories.ratings is not None,
        "clock": histories.clock,
        "files": {path.relative_to(directory).as_posix(): path.stat().st_size for path in files},
    }
    (directory / _MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    return Written(
        items=len(ids),
        images=sum(has_image),
        categories=categories,
        text=dict(text),
        attributes=dict(attributes),
        corrupt_images=corrupt,
        fingerprint=manifest["fingerprint"],
    )


def _verified(items: Iterable[Item]) -> Iterator[tuple[Item, str | None]]:
    """Each item with the reason why its image is corrupt, None when it is sound or absent."""

    def fault(item: Item) -> str | None:
        try:
            if item.image is not None:
                images.decode(item.image)
        except images.ImageError as error:
            return str(error)
        return None

    items = iter(items)
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # decoders release the GIL
        while chunk := list(islice(items, _VERIFY_CHUNK)):
            yield from zip(chunk, pool.map(fault, chunk), strict=True)


def _history_examples(histories: Histories) -> Iterator[dict]:
    ratings = histories.ratings
    for u, user in enumerate(histories.users.tolist()):
        rows = slice(histories.offsets[u], histories.offsets[u + 1])
        yield {
            "user": user,
            "items": histories.items[rows],
            "timestamps": histories.timestamps[rows],
            "ratings": np.zeros(0, np.float32) if ratings is None else ratings[rows],
        }


def _check(ids: list[str], histories: Histories) -> None:
    if len(set(ids)) < len(ids):
        name, count = Counter(ids).most_common(1)[0]
        raise UserError(f"item id {name!r} occurs {count} times; ids must be unique")
    if not 0 <= histories.items.min() <= histories.items.max() < len(ids):
        raise ValueError(f"histories refer to items outside 0..{len(ids) - 1}")


def _prepare(builder: type[_Builder], directory: Path, examples: Iterable[dict]) -> None:
    tfds.disable_progress_bar()
    local = tfds.download.DownloadConfig(try_download_gcs=False)
    with contextlib.redirect_stdout(io.StringIO()):  # it announces a download
        builder(
            examples=examples, data_dir=str(directory), file_format="array_record"
        ).download_and_prepare(download_config=local)


def _checked_manifest(directory: Path) -> dict:
    remedy = "build it again"
    if not directory.is_dir():
        if disk.left_behind(directory):
            raise UserError(f"{directory}: writing it was interrupted; {remedy}")
        raise UserError(f"{directory}: no prepared data set here; {remedy} or correct the path")
    path = directory / _MANIFEST
    if not path.exists():
        raise UserError(f"{directory}: no {_MANIFEST}, not a complete store; {remedy}")
    manifest = disk.read_json(path, remedy)
    if (found_format := manifest.get("format")) != FORMAT:
        raise UserError(
            f"{directory}: store format {found_format!r}, this version reads {FORMAT}; {remedy}"
        )
    for name, kind in _MANIFEST_FIELDS.items():
        if type(manifest.get(name)) is not kind:
            raise UserError(f"{path}: damaged ({name} is no {kind.__name__}); {remedy}")
    for name, size in manifest["files"].items():
        path = directory / name
        found = path.stat().st_size if path.exists() else None
        if found != size:
            state = "missing" if found is None else f"{found} bytes instead of {size}"
            raise UserError(f"{path}: {state}; copy the store again or {remedy}")
    return manifest


def _data_source(directory: Path, name: str) -> Any:
    builder = tfds.builder_from_directory(str(directory / name / str(_Builder.VERSION)))
    return builder.as_data_source(split="train")


def _read_histories(directory: Path, manifest: dict) -> Histories:
    # Parsed here and not by TFDS: eight times as fast, which counts where all users are read.
    records = _data_source(directory, "histories").data_source
    raw = records.__getitems__(range(manifest["users"]))
    examples = [tf_example_pb2.Example.FromString(record).features.feature for record in raw]

    def column(name: str) -> list[bytes]:
        return [example[name].bytes_list.value[0] for example in examples]

    def joined(name: str, dtype: npt.DTypeLike) -> np.ndarray:
        return np.frombuffer(b"".join(column(name)), dtype)

    item_bytes = [len(value) for value in column("items")]
    return Histories(
        users=np.array([user.decode() for user in column("user")]),
        offsets=np.concatenate([[0], np.cumsum(item_bytes, dtype=np.int64) // 4]),
        items=joined("items", np.int32),
        timestamps=joined("timestamps", np.float64),
        ratings=joined("ratings", np.float32) if manifest["ratings"] else None,
        clock=manifest["clock"],
    )


def _to_pairs(mapping: dict[str, str]) -> list[dict[str, str]]:
    return [{"name": name, "value": value} for name, value in mapping.items()]


def _from_pairs(pairs: dict[str, list[bytes]]) -> dict[str, str]:
    return {n.decode(): v.decode() for n, v in zip(pairs["name"], pairs["value"], strict=True)}
