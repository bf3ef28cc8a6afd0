"""From a config to a prepared data set: read or generate, filter, split, store, report."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from absl import logging
from ml_collections import ConfigDict

from mmsrec_jax.data import atomic, filters, splits, store, toyshop
from mmsrec_jax.data.records import Catalog, Histories, Item, Split
from mmsrec_jax.data.report import Report, describe
from mmsrec_jax.runtime.errors import UserError

_STORE, _WORLD, _REPORT = "store", "world.npz", "report.json"


def check(config: ConfigDict) -> None:
    """Stops early, with what to do, when the raw files are not there.

    Raises:
      UserError: no folder is given, or it does not exist.
    """
    if config.source != "atomic":
        return
    if not config.root:
        raise UserError(
            "config.data.root is not set: give the folder of NAME.inter, NAME.item and images/ "
            f"with --config.data.root=DIR. {config.root_help}".strip()
        )
    if not Path(config.root).is_dir():
        raise UserError(
            f"config.data.root={config.root}: no such folder. {config.root_help}".strip()
        )


def build(config: ConfigDict, directory: Path) -> None:
    """Prepares `config` (the section `data`) in `directory` and logs what was read and dropped.

    Raises:
      UserError: bad input, see `atomic.read` and `splits`; or nothing is left after filtering.
    """
    items: list[Item] | atomic.AtomicItems
    image_name: Callable[[str], str] = str
    if config.source == "toyshop":
        items, histories, world = toyshop.generate(**config.toyshop)
        world.save(directory / _WORLD)
        report = Report(source="toyshop, generated")
        report.read = describe(histories, len(items))
    elif config.source == "atomic":
        items, histories, report = _read_atomic(config)
        image_name = items.image_name
    else:
        raise UserError(f"config.data.source={config.source!r} is neither 'toyshop' nor 'atomic'")
    written = store.write(directory / _STORE, items, histories, image_name=image_name)
    catalog, histories = store.open(directory / _STORE)
    report.finish(catalog, histories, written)
    report.split(split(config, histories))
    report.save(directory / _REPORT)
    for line in report.table().splitlines():
        logging.info("%s", line)


def open_built(config: ConfigDict, directory: Path) -> tuple[Catalog, Histories, Split]:
    """What `build` prepared."""
    catalog, histories = store.open(directory / _STORE)
    return catalog, histories, split(config, histories)


def fingerprint(directory: Path) -> str:
    """Hash of the content that `build` prepared."""
    return store.fingerprint(directory / _STORE)


def open_world(directory: Path) -> toyshop.World | None:
    """The generating model of a toyshop, None for real data."""
    path = directory / _WORLD
    return toyshop.World.load(path) if path.exists() else None


def split(config: ConfigDict, histories: Histories) -> Split:
    """The split that `config.split` names."""
    if config.split == "leave_one_out":
        return splits.leave_one_out(histories)
    if config.split == "global_time":
        return splits.global_time(
            histories,
            validation_quantile=config.validation_quantile,
            test_quantile=config.test_quantile,
        )
    raise UserError(
        f"config.data.split={config.split!r} is neither 'leave_one_out' nor 'global_time'"
    )


def source_files(config: ConfigDict) -> dict[str, list[int]]:
    """Size and time of change of the raw files: the data is built again when one changes."""
    if config.source != "atomic":
        return {}
    root = Path(config.root or ".")
    paths = [path for pattern in ("*.inter*", "*.item*") for path in sorted(root.glob(pattern))]
    return {path.name: [path.stat().st_size, path.stat().st_mtime_ns] for path in paths}


def _read_atomic(config: ConfigDict) -> tuple[atomic.AtomicItems, Histories, Report]:
    items, histories, report = atomic.read(
        config.root,
        rating_threshold=config.rating_threshold,
        category_field=config.category_field,
        attribute_fields=config.attribute_fields,
        text_fields=config.text_fields,
        images_root=config.images_root,
    )
    histories = report.step("same item again", histories, filters.first_of_repeats(histories))
    if config.only_items_with_image:
        kept = filters.only_items(histories, items.has_image)
        histories = report.step("items without image", histories, kept)
    if config.max_users:
        kept = filters.subset_users(histories, config.max_users, config.seed)
        histories = report.step(f"all but {config.max_users:,} users", histories, kept)
    core = filters.k_core(histories, users=config.user_core, items=config.item_core)
    histories = report.step(
        f"core of {config.user_core} a user, {config.item_core} an item", histories, core
    )
    if not len(histories.items):
        raise UserError(
            f"{config.root}: no interactions are left after filtering; lower config.data.user_core "
            "and config.data.item_core"
        )
    histories = filters.break_ties(histories, config.seed)
    histories, kept_items = filters.reindex(histories)
    return items.select(np.asarray(kept_items)), histories, report
