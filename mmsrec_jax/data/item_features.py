"""Item features for content-aware sequential models: a float matrix with one row per item."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mmsrec_jax.data.records import Catalog
from mmsrec_jax.runtime import reading
from mmsrec_jax.runtime.errors import UserError, first_line


def check(paths: Mapping[str, str], *, can_make: bool = False) -> None:
    """Stops early, with what to do, when a file is not given or not there (UserError).

    can_make: an MLLM is at hand that makes those which are not given.
    """
    for name, path in paths.items():
        if not path and can_make:
            continue
        if not path:
            raise UserError(
                f"features.{name} is not set: give a .npy file with one row per catalog item, or "
                "a model that makes it (config.model.path)"
            )
        if not Path(path).is_file():
            raise UserError(f"features.{name}={path}: no such file; give a .npy, one row per item")


def read(paths: Mapping[str, str], num_items: int) -> dict[str, np.ndarray]:
    """float32[items, width] by name, from `.npy` files.

    Row i belongs to item i of the prepared catalog: the items of NAME.item in their order, without
    those that filtering dropped. `data.store.open("RUN/data/store")[0].ids` lists their ids.

    Raises:
      UserError: names the file (and the row, counted from 0) that is missing, no matrix of numbers,
        of another number of rows, or not finite.
    """
    check(paths)
    return {name: _read(name, path, num_items) for name, path in paths.items()}


def write(path: Path, rows: np.ndarray) -> None:
    """Writes `.npy` under a temporary name, then renames."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        np.save(file, rows)
    partial.replace(path)


def standardized(rows: np.ndarray) -> np.ndarray:
    """Columns with mean 0 and deviation 1: float32[items, width] to the same.

    A row of zeros says that an item lacks the feature: it does not count, and stays (*ours*).
    Hidden states of language models have a few columns that are much larger than the others.
    """
    known: np.ndarray = (rows != 0).any(1)
    if not known.any():
        return rows
    mean, deviation = rows[known].mean(0, np.float64), rows[known].std(0, np.float64)
    scaled = (rows - mean) / np.where(deviation > 1e-6 * np.abs(mean), deviation, np.inf)
    return np.where(known[:, None], scaled, 0).astype(np.float32)


def categories(catalog: Catalog, separator: str | None) -> np.ndarray:
    """Which categories each item has, float32[items, C] of 0 and 1; C = 0 when none has any.

    separator: between the categories of one item; None, every text is one category. In alphabetical
    order.
    """
    found = []
    for item in catalog:
        text = (item.category or "").strip()
        parts = [text] if separator is None else text.split(separator)
        found.append({part.strip() for part in parts} - {""})
    index = {name: i for i, name in enumerate(sorted(set().union(*found)))}
    labels = np.zeros((len(found), len(index)), np.float32)
    for i, names in enumerate(found):
        labels[i, [index[name] for name in names]] = 1
    return labels


def _read(name: str, path: str, num_items: int) -> np.ndarray:
    try:
        with reading.open_regular(Path(path)) as file:
            found = np.lib.format.read_array(file, allow_pickle=False)
    except UserError as error:
        raise UserError(f"features.{name}={error}") from None
    except Exception as error:  # a damaged header leads to whatever numpy makes of its parts
        raise UserError(
            f"features.{name}={path}: cannot be read as .npy ({first_line(error)}); write it "
            "with numpy.save"
        ) from None
    if not isinstance(found, np.ndarray) or found.dtype.kind not in "fiub" or found.ndim != 2:
        raise UserError(f"features.{name}={path}: not a matrix of numbers [items, width]")
    if len(found) != num_items:
        raise UserError(
            f"features.{name}={path}: {len(found)} rows, but the catalog has {num_items} items; "
            "write one row per item, in the order of the prepared catalog"
        )
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite: refused below
        found = found.astype(np.float32)
    bad = np.flatnonzero(~np.isfinite(found).all(1))
    if len(bad):
        raise UserError(
            f"features.{name}={path}: row {bad[0]} is not finite (NaN or infinite), as are "
            f"{len(bad) - 1} others; replace them"
        )
    return found
