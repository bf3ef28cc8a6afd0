"""From settings to a prepared data set: read or generate, filter, split, store, report."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from mmsrec_jax.data import atomic, filters, splits, store, toyshop
from mmsrec_jax.data.column_items import ColumnItems
from mmsrec_jax.data.partitioned import pipeline
from mmsrec_jax.data.partitioned import read as partitioned_read
from mmsrec_jax.data.published import catalog as published
from mmsrec_jax.data.published import download
from mmsrec_jax.data.published import read as published_read
from mmsrec_jax.data.published.source import Source
from mmsrec_jax.data.records import Catalog, Dataset, Histories, Item, Split
from mmsrec_jax.data.report import Report, describe
from mmsrec_jax.data.toyshop import ToyshopSettings
from mmsrec_jax.data.user_attributes import Joined
from mmsrec_jax.runtime import digests, disk
from mmsrec_jax.runtime.buckets.given import local
from mmsrec_jax.runtime.buckets.objects import is_url
from mmsrec_jax.runtime.errors import UserError
from mmsrec_jax.runtime.progress import track
from mmsrec_jax.runtime.settings import Section, from_record, group, seed_setting, setting

_STORE, _WORLD, _REPORT = "store", "world.npz", "report.json"
_OF_FILES = (  # settings that a generated shop would pass over
    "root", "images_root", "text_fields", "category_field", "attribute_fields",
    "rating_threshold", "only_items_with_image", "max_users", "user_fields",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class DataSettings(Section):
    """Which interactions and items, how they are filtered, and how they are split."""

    source: str = setting(
        "atomic",
        "`atomic`: RecBole files in `root`; `toyshop`: generated; or a published data set whose "
        "files are in `root`, such as `amazon_reviews_2014/Beauty` (docs/data.md).",
    )
    root: str = setting(
        "",
        "Folder of NAME.inter[.gz], NAME.item and images/<item_id>.jpg, or of published files; or "
        "`gs://BUCKET/FOLDER`.",
    )
    download_page: str = setting(
        "", "Web page of the raw data; the error names it when `root` is missing.", recorded=False
    )
    download: bool = setting(
        False,
        "Fetch the files of a published data set that are not in `root`, where the publisher "
        "offers them without a login: Amazon, MovieLens.",
        recorded=False,
    )
    images_root: str | None = setting(None, "Folder of the images. None is images/ in `root`.")
    text_fields: tuple[str, ...] | None = setting(
        None, "Columns of .item that are text. None is all that have no other use."
    )
    category_field: str | None = setting(None, "Column of .item with the category.")
    attribute_fields: tuple[str, ...] = setting((), "Columns of .item that are attributes.")
    user_fields: tuple[str, ...] = setting(
        (),
        "What users state of themselves, such as ('age', 'gender'): columns of .user, or fields of "
        "a published data set. The profile of MLLM-SRec reads them (ours), in step `users`. Empty: "
        "nothing personal is read.",
        recorded=False,  # in the step that reads them: the others do not depend on it
    )
    rating_threshold: float | None = setting(
        None,
        "Interactions with a lower rating are dropped. None keeps all.",
        low=-1_000_000_000,
        high=1_000_000_000,
    )
    user_core: int = setting(
        5, "Fewest interactions of a user, after filtering.", low=0, high=1_000_000
    )
    item_core: int = setting(
        5, "Fewest interactions of an item, after filtering.", low=0, high=1_000_000
    )
    only_items_with_image: bool = setting(False, "Drop the items without an image file.")
    max_users: int = setting(
        0, "Size of a random subset of the users. 0 is all.", low=0, high=1_000_000_000
    )
    beam_options: str = setting(
        "",
        "Options of Apache Beam with commas between, such as `runner=DirectRunner`: it reads and "
        "filters a published data set that does not fit into memory (docs/data.md). Empty: in "
        "memory. The data are the same.",
        recorded=False,
    )
    split: str = setting(
        "leave_one_out",
        "The last interaction of each user is its test target, or two moments cut all users.",
        choices=("leave_one_out", "global_time"),
    )
    validation_quantile: float = setting(
        0.8, "Quantile of the timestamps where validation begins (global_time).", above=0, below=1
    )
    test_quantile: float = setting(
        0.9, "Quantile of the timestamps where test begins (global_time).", above=0, below=1
    )
    split_target: str = setting(
        "first",
        "Which of a user's interactions in validation and in test is the target (global_time). "
        "first: who came after the cut has none; last: they have one (docs/evaluation.md).",
        choices=("first", "last"),
    )
    seed: int = seed_setting("Of the subset of users and of the order of equal timestamps.")
    toyshop: ToyshopSettings = group(ToyshopSettings)

    def check(self, name: str) -> None:
        if self.validation_quantile >= self.test_quantile:
            raise UserError(
                f"{name}.validation_quantile={self.validation_quantile:g}: must be below "
                f"test_quantile={self.test_quantile:g}"
            )
        if self.split_target != "first" and self.split != "global_time":
            raise UserError(
                f"{name}.split_target={self.split_target!r}: {name}.split={self.split!r} has one "
                f"target a user; leave it out, or set {name}.split=global_time"
            )
        if self.source not in ("atomic", "toyshop"):
            published.find(self.source, f"{name}.source")
        if self.beam_options and self.source in ("atomic", "toyshop"):
            raise UserError(
                f"{name}.beam_options={self.beam_options!r}: Beam reads published data sets, and "
                f"{name}.source={self.source!r} is none; leave it out"
            )
        if self.download and self.source in ("atomic", "toyshop"):
            raise UserError(
                f"{name}.download=True: {name}.source={self.source!r} has no publisher; leave it "
                f"out, or name a published data set as {name}.source"
            )
        if self.beam_options and self.max_users:
            raise UserError(
                f"{name}.max_users={self.max_users}: users are drawn from all, which Beam does not "
                f"hold in memory; leave it or {name}.beam_options out"
            )
        if self.source != "toyshop":
            return
        for field in _OF_FILES:
            if (value := getattr(self, field)) != getattr(DataSettings, field):
                raise UserError(
                    f"{name}.{field}={value!r}: {name}.source='toyshop' reads no files and drops "
                    f"nothing; leave it out, or set {name}.source=atomic"
                )


def check(settings: DataSettings) -> None:
    """Stops early, with what to do, when the raw files are not there.

    Raises:
      UserError: no folder is given, it does not exist, or a published file, or that of users, is
        not in it and is not downloaded (`settings.download`).
    """
    if settings.source == "toyshop":
        return
    source = _published(settings)
    files = f"the files of {source.name}" if source else "NAME.inter, NAME.item and images/"
    address = source.page if source else settings.download_page
    page = f"; the raw data: {address}" if address else ""
    if source and source.is_offered:
        page += "; --config.data.download=True fetches them"
    if not settings.root:
        raise UserError(
            f"config.data.root is not set: give the folder of {files} with "
            f"--config.data.root=DIR{page}"
        )
    if settings.beam_options:  # before a bucket is copied
        pipeline.Runner(settings.beam_options, settings.root)
    if settings.download and source:
        _download(settings, source)
    if not local(settings.root).is_dir():
        raise UserError(
            f"config.data.root={settings.root}: no such folder; it should be that of {files}{page}"
        )
    root, fields = local(settings.root), settings.user_fields
    if source:
        with_items = _reads_items(settings)
        published_read.check(source, root, with_items=with_items, user_fields=fields)
    elif fields:
        atomic.user_file(root)


def _download(settings: DataSettings, source: Source) -> None:
    """Fetches into `settings.root`, made when absent, the files that `build` will read."""
    from mmsrec_jax.runtime import processes  # imports jax, which input workers must not

    if is_url(settings.root):
        raise UserError(
            f"config.data.download=True: config.data.root={settings.root} is in a bucket; give a "
            "folder of this machine, and copy it to the bucket when the files are there"
        )
    root = Path(settings.root)
    files = source.files if _reads_items(settings) else tuple(source.interactions.values())
    if settings.user_fields and source.users:
        files = (*files, source.users.file)

    def fetch() -> None:
        root.mkdir(parents=True, exist_ok=True)
        download.fetch(source, root, files)

    processes.from_main(fetch)
    fetch()  # on machines that do not see the disk of the main one


def build(settings: DataSettings, directory: Path) -> None:
    """Prepares the data set in `directory` and logs what was read and dropped.

    Raises:
      UserError: bad input, see `atomic.read` and `splits`; or nothing is left after filtering.
    """
    items: list[Item] | ColumnItems
    image_name: Callable[[str], str] = str
    if settings.source == "toyshop":
        items, histories, world, report = _generate(settings)
        world.save(directory / _WORLD)
    else:
        items, histories, report = _read_files(settings)
        image_name = items.image_name
    told = track(items, "write items", len(items), "items")
    written = store.write(directory / _STORE, told, histories, image_name=image_name)
    catalog, histories = store.open(directory / _STORE)
    report.finish(catalog, histories, written)
    report.split(split(settings, histories))
    report.save(directory / _REPORT)
    for line in report.table().splitlines():
        logging.info("%s", line)


class Prepared(NamedTuple):
    """What `build` would store, in memory and not on disk, and what users state. Pictures are read
    when they are asked for, and a corrupt one is found then."""

    dataset: Dataset
    items: list[Item] | ColumnItems
    report: Report


def read(settings: DataSettings) -> Prepared:
    """The data set that the settings name, read or generated, filtered and split.

    Raises:
      UserError: as `build`.
    """
    if settings.source == "toyshop":
        generated, histories, _, report = _generate(settings)
        dataset = Dataset(Catalog.from_items(generated), histories, split(settings, histories))
        return Prepared(dataset, generated, report)
    items, histories, report = _read_files(settings)
    if settings.user_fields:
        stated, notes = read_users(settings, histories.users)
        histories = dataclasses.replace(histories, stated=stated)
        for what, count in notes.items():
            report.note(what, count)
    catalog = Catalog(items, np.asarray(items.ids), items.has_image)
    return Prepared(Dataset(catalog, histories, split(settings, histories)), items, report)


def _generate(settings: DataSettings) -> tuple[list[Item], Histories, toyshop.World, Report]:
    items, histories, world = toyshop.generate(settings.toyshop)
    report = Report(source="toyshop, generated")
    report.read = describe(histories, len(items))
    return items, histories, world, report


def open_built(settings: DataSettings, directory: Path) -> Dataset:
    """What `build` prepared."""
    catalog, histories = store.open(directory / _STORE)
    return Dataset(catalog, histories, split(settings, histories))


def settings_of_run(folder: Path) -> DataSettings:
    """Those with which the run in `folder` prepared its data. Raises UserError when it has not."""
    from mmsrec_jax.runtime import workdir  # imports jax, which input workers must not

    return from_record(DataSettings, workdir.finished(folder, "data")["data"], "config.data")


def open_run(folder: Path) -> Dataset:
    """What the step `data` of the run in `folder` stored; raises as `settings_of_run`."""
    return open_built(settings_of_run(folder), folder / "data")


def fingerprint(directory: Path) -> str:
    """Hash of the content that `build` prepared."""
    return store.fingerprint(directory / _STORE)


def coverage(directory: Path) -> dict[str, int]:
    """How many items have what (`report.Report.coverage`), as `build` found it."""
    path = directory / _REPORT
    remedy = f"delete {directory} and run launch/train.py, which makes it"
    found = disk.read_json(path, remedy).get("coverage")
    if not isinstance(found, dict):
        raise UserError(f"{path}: damaged (no coverage); {remedy}")
    return found


def open_world(directory: Path) -> toyshop.World | None:
    """The generating model of a toyshop, None for real data."""
    path = directory / _WORLD
    return toyshop.World.load(path) if path.exists() else None


def split(settings: DataSettings, histories: Histories) -> Split:
    """The split that `settings.split` names."""
    if settings.split == "leave_one_out":
        return splits.leave_one_out(histories)
    return splits.global_time(
        histories,
        validation_quantile=settings.validation_quantile,
        test_quantile=settings.test_quantile,
        target=settings.split_target,
    )


def source_files(settings: DataSettings) -> dict[str, Any]:
    """Digests of the raw files and of the folder of images (`runtime.digests`): the data is built
    again when one changes."""
    if settings.source == "toyshop":
        return {}
    root, source = local(settings.root or "."), _published(settings)
    images_root = local(settings.images_root or root / "images")
    if source is None:
        paths = [path for pattern in ("*.inter*", "*.item*") for path in root.glob(pattern)]
        found: dict[str, Any] = {"images": digests.of_folder(images_root)}
    else:
        files = source.files if _reads_items(settings) else source.interactions.values()
        paths = [path for file in files if (path := file.locate(root))]
        folders = [images_root] if settings.images_root else source.image_folders(root)
        found = {"images": {folder.name: digests.of_folder(folder) for folder in folders}}
    return digests.of_inputs(filter(Path.is_file, paths), root) | found


def read_users(settings: DataSettings, users: np.ndarray) -> Joined:
    """What users str[U] state of themselves: `settings.user_fields`, one or more.

    Raises:
      UserError: as `atomic.read_users`.
    """
    source, root, fields = _published(settings), local(settings.root or "."), settings.user_fields
    if source is None:
        return atomic.read_users(root, fields, users)
    return published_read.read_users(source, root, fields, users)


def user_files(settings: DataSettings) -> dict[str, Any]:
    """As `source_files`, of what `read_users` reads."""
    source, root = _published(settings), local(settings.root or ".")
    if source is None:
        path: Path | None = atomic.user_file(root)
    else:
        path = source.users.file.locate(root) if source.users else None
    return {} if path is None else {path.name: digests.of_input(path)}


def _published(settings: DataSettings) -> Source | None:
    """The published data set that is read; None for atomic files."""
    return None if settings.source == "atomic" else published.find(settings.source)


def _reads_items(settings: DataSettings) -> bool:
    fields = (settings.category_field, *settings.attribute_fields)
    return settings.text_fields != () or any(fields)


def _read_files(settings: DataSettings) -> tuple[ColumnItems, Histories, Report]:
    read = _read_in_partitions if settings.beam_options else _read_in_memory
    items, histories, report = read(settings)
    if not len(histories.items):
        took = "; ".join(f"{step.why}: {step.interactions:,}" for step in report.dropped)
        raise UserError(
            f"{settings.root}: no interactions are left after filtering ({took}); lower "
            "config.data.rating_threshold, config.data.user_core or config.data.item_core"
        )
    histories = filters.break_ties(histories, settings.seed)
    histories, kept_items = filters.reindex(histories)
    return items.select(np.asarray(kept_items)), histories, report


def _read_in_memory(settings: DataSettings) -> tuple[ColumnItems, Histories, Report]:
    """What the filters leave, and at least the items of that."""
    source = _published(settings)
    read = atomic.read if source is None else functools.partial(published_read.read, source)
    items, histories, report = read(
        local(settings.root),
        rating_threshold=settings.rating_threshold,
        category_field=settings.category_field,
        attribute_fields=settings.attribute_fields,
        text_fields=settings.text_fields,
        images_root=None if settings.images_root is None else local(settings.images_root),
    )
    kept = filters.first_of_repeats(histories)
    histories = report.step(filters.REPEATS, histories, kept)
    if settings.only_items_with_image:
        kept = filters.only_items(histories, items.has_image)
        histories = report.step(filters.WITHOUT_IMAGE, histories, kept)
    if settings.max_users:
        kept = filters.subset_users(histories, settings.max_users, settings.seed)
        histories = report.step(f"all but {settings.max_users:,} users", histories, kept)
    core = filters.k_core(histories, users=settings.user_core, items=settings.item_core)
    why = filters.core_of(settings.user_core, settings.item_core)
    return items, report.step(why, histories, core), report


def _read_in_partitions(settings: DataSettings) -> tuple[ColumnItems, Histories, Report]:
    """The same by Apache Beam, whatever the size."""
    source = published.find(settings.source)
    fields = published_read.Fields.of(
        source, settings.category_field, settings.attribute_fields, settings.text_fields
    )
    return partitioned_read.read(
        source,
        settings.root,
        settings.beam_options,
        fields=fields,
        images_root=None if settings.images_root is None else local(settings.images_root),
        rating_threshold=settings.rating_threshold,
        only_items_with_image=settings.only_items_with_image,
        user_core=settings.user_core,
        item_core=settings.item_core,
    )
