"""TFDS data sets of the publishers' files, in array_record and without TensorFlow.

    import mmsrec_jax.data.published  # registers them
    files = tfds.download.DownloadConfig(manual_dir="DIR")
    data = tfds.data_source(
        "amazon_reviews_2014/Beauty", data_dir="tfds",
        download_and_prepare_kwargs={"download_config": files},
    )
    data["interactions"][0], data["items"][0]

A config is a data set of `catalog`; TFDS has a `movielens` of its own, so ours is
`grouplens_movielens`. The splits are `interactions`, or those of a published benchmark, and
`items`. They stand in the order of the files. All splits of a TFDS data set have the same features:
those of the other kind are empty.

A split is written as it is read, and takes no more memory when it is larger. (The shuffling
builders of TFDS need TensorFlow for splits of more than 1 GB.)
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from mmsrec_jax.data.images import LARGEST_FILE
from mmsrec_jax.data.published import catalog
from mmsrec_jax.data.published.archive import unpack
from mmsrec_jax.data.published.files import File
from mmsrec_jax.data.published.rows import Notes
from mmsrec_jax.data.published.source import Source
from mmsrec_jax.runtime import reading

_Examples = Callable[[], Iterator[tuple[int, dict[str, Any]]]]
_NO_TIME = -1
_INTERACTION = {"user_id": "", "rating": np.nan, "timestamp_ms": _NO_TIME, "history": []}
_ITEM: dict[str, Any] = {"text": [], "image": b"", "image_url": ""}


class _PublishedBuilder(tfds.core.ShardBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """What the data sets of all publishers have in common."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {"1.0.0": "First version."}
    PUBLISHER: ClassVar[str]

    def __init__(self, *, file_format: str = "array_record", **kwargs: Any):
        super().__init__(file_format=file_format, **kwargs)

    @property
    def source(self) -> Source:
        """The data set of this builder's config."""
        return catalog.find(f"{self.PUBLISHER}/{self.builder_config.name}")

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text
        # As bytes: tf.train.Example keeps floats in 32 bits and has one list of each kind.
        features = {
            "user_id": text(),
            "item_id": text(),
            "rating": tfds.features.Scalar(np.float32),  # NaN where there is none
            "timestamp_ms": tfds.features.Scalar(np.int64),  # since 1970, -1 where there is none
            "history": tfds.features.Sequence(text()),  # item ids, of the *_w_his configs
            "text": tfds.features.Sequence({"name": text(), "value": text()}),
            "image": tfds.features.Scalar(np.object_),  # the encoded file; empty is none
            "image_url": text(),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"{self.__doc__} Published at {self.source.page}",
            homepage=self.source.page,
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,
        )

    def _shard_iterators_per_split(
        self, dl_manager: tfds.download.DownloadManager
    ) -> Mapping[str, Sequence[_Examples]]:
        source = self.source
        folder = _Folder(source, dl_manager)
        splits: dict[str, Sequence[_Examples]] = {}
        for split, file in source.interactions.items():
            splits[split] = [_interactions(source, folder.path(file))]
        if source.item_files:
            paths = [folder.path(file) for file in source.item_files]
            splits["items"] = [_items(source, paths, folder.images())]
        return splits


class _Folder:
    """Where the files of a source are: in the manual folder, else downloaded."""

    def __init__(self, source: Source, dl_manager: tfds.download.DownloadManager):
        self._source, self._downloads = source, dl_manager
        try:
            self._root = Path(dl_manager.manual_dir)
        except AssertionError:  # there is none, or it is empty: all is downloaded
            self._root = Path("manual_dir")
        self._unpacked: Path | None = None
        archive = source.archive
        if archive is not None and all(file.locate(self._root) is None for file in source.files):
            self._unpacked = Path(dl_manager.download_dir) / "unpacked" / source.name
            unpack(self._available(archive), source.files, self._unpacked)

    def path(self, file: File) -> Path:
        """The file, checked."""
        if self._unpacked is not None:
            return file.required(self._unpacked, self._source.page)
        return self._available(file)

    def images(self) -> dict[str, Path]:
        """item id -> image file in the manual folder."""
        return self._source.images(self._root) if self._root.is_dir() else {}

    def _available(self, file: File) -> Path:
        path = file.locate(self._root)
        if path is None and file.url:
            path = Path(self._downloads.download(file.url))
        if path is None:
            path = file.required(self._root, self._source.page)
        file.check_digest(path, self._source.page)
        return path


def _interactions(source: Source, path: Path) -> _Examples:
    def examples() -> Iterator[tuple[int, dict[str, Any]]]:
        notes: Notes = Counter()
        count = 0
        for rows in source.rows(path, notes=notes):
            users, items = rows.users.to_pylist(), rows.items.to_pylist()
            histories = None if rows.histories is None else rows.histories.to_pylist()
            for i, (user, item) in enumerate(zip(users, items, strict=True)):
                example = {**_ITEM, **_INTERACTION, "user_id": user, "item_id": item}
                if rows.ratings is not None:
                    example["rating"] = rows.ratings[i]
                if rows.times is not None:
                    example["timestamp_ms"] = rows.times[i]
                if histories is not None:
                    example["history"] = histories[i].split()
                yield count + i, example
            count += len(rows)
        _log(source, notes)

    return examples


def _items(source: Source, paths: Sequence[Path], images: Mapping[str, Path]) -> _Examples:
    def examples() -> Iterator[tuple[int, dict[str, Any]]]:
        notes: Notes = Counter()
        for i, item in enumerate(source.items(paths, None, notes)):
            image = images.get(item.id)
            yield (
                i,
                {
                    **_INTERACTION,
                    "item_id": item.id,
                    "text": [{"name": name, "value": value} for name, value in item.text.items()],
                    "image": _content(image) if image else b"",
                    "image_url": item.image_url,
                },
            )
        _log(source, notes)

    return examples


def _log(source: Source, notes: Notes) -> None:
    for what, count in notes.items():
        logging.info("%s: %s %s", source.name, f"{count:,}", what)


def _content(path: Path) -> bytes:
    return reading.read_bytes(path, most=LARGEST_FILE, within=path.parent)


def _configs(publisher: str) -> list[tfds.core.BuilderConfig]:
    names = catalog.PUBLISHERS[publisher].CONFIGS
    return [tfds.core.BuilderConfig(name=name, version="1.0.0") for name in names]


def _instructions(publisher: str) -> str:
    page = catalog.PUBLISHERS[publisher].PAGE
    return (
        f"Put the files of {page} into manual_dir; images into manual_dir/images/ (docs/data.md)."
    )


class AmazonReviews2014(_PublishedBuilder):
    """Amazon reviews of 2014."""

    name = PUBLISHER = "amazon_reviews_2014"
    BUILDER_CONFIGS = _configs(PUBLISHER)
    MANUAL_DOWNLOAD_INSTRUCTIONS = _instructions(PUBLISHER)


class AmazonReviews2018(_PublishedBuilder):
    """Amazon reviews of 2018."""

    name = PUBLISHER = "amazon_reviews_2018"
    BUILDER_CONFIGS = _configs(PUBLISHER)
    MANUAL_DOWNLOAD_INSTRUCTIONS = _instructions(PUBLISHER)


class AmazonReviews2023(_PublishedBuilder):
    """Amazon reviews of 2023."""

    name = PUBLISHER = "amazon_reviews_2023"
    BUILDER_CONFIGS = _configs(PUBLISHER)
    MANUAL_DOWNLOAD_INSTRUCTIONS = _instructions(PUBLISHER)


class Microlens(_PublishedBuilder):
    """MicroLens, short videos with titles and covers."""

    name = PUBLISHER = "microlens"
    BUILDER_CONFIGS = _configs(PUBLISHER)
    MANUAL_DOWNLOAD_INSTRUCTIONS = _instructions(PUBLISHER)


class GrouplensMovielens(_PublishedBuilder):
    """MovieLens, ratings of films."""

    name, PUBLISHER = "grouplens_movielens", "movielens"
    BUILDER_CONFIGS = _configs(PUBLISHER)
    MANUAL_DOWNLOAD_INSTRUCTIONS = _instructions(PUBLISHER)


class Pixelrec(_PublishedBuilder):
    """PixelRec, covers of videos with Chinese titles."""

    name = PUBLISHER = "pixelrec"
    BUILDER_CONFIGS = _configs(PUBLISHER)
    MANUAL_DOWNLOAD_INSTRUCTIONS = _instructions(PUBLISHER)


class Hm(_PublishedBuilder):
    """H&M Personalized Fashion Recommendations."""

    name = PUBLISHER = "hm"
    BUILDER_CONFIGS = _configs(PUBLISHER)
    MANUAL_DOWNLOAD_INSTRUCTIONS = _instructions(PUBLISHER)
