"""RecBole atomic files: `<name>.inter[.gz]`, `<name>.item[.gz]` and `images/<item_id>.<suffix>`.

Tab-separated UTF-8 with a header of `name:type`, type one of token, token_seq, float, float_seq.
"""

import gzip
import io
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from mmsrec_jax.data import filters
from mmsrec_jax.data.records import Histories, Item, are_positions
from mmsrec_jax.data.report import Report, describe
from mmsrec_jax.runtime.errors import UserError

_TYPES = ("token", "token_seq", "float", "float_seq")
_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")  # in order of preference
_BLOCK = 1 << 23  # bytes; also the longest row


class AtomicItems:
    """The items in file order, images read from disk one by one as they are asked for."""

    def __init__(
        self,
        ids: list[str],
        text: dict[str, list[str]],
        category: list[str] | None,
        attributes: dict[str, list[str]],
        images: dict[str, Path],
    ):
        self.ids = ids
        self._text = text
        self._category = category
        self._attributes = attributes
        self._images = images

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, i: int) -> Item:
        id = self.ids[i]
        path = self._images.get(id)
        return Item(
            id=id,
            text={name: column[i] for name, column in self._text.items() if column[i]},
            image=None if path is None else path.read_bytes(),
            category=(self._category[i] or None) if self._category else None,
            attributes={name: column[i] for name, column in self._attributes.items() if column[i]},
        )

    def __iter__(self) -> Iterator[Item]:
        return (self[i] for i in range(len(self)))

    @property
    def has_image(self) -> np.ndarray:
        """bool[N]: a file exists, sound or not."""
        return np.array([id in self._images for id in self.ids], dtype=bool)

    def image_name(self, id: str) -> str:
        """The image file of an item, for messages."""
        return str(self._images[id])

    def select(self, kept: np.ndarray) -> "AtomicItems":
        """The items at the indices `kept`, in that order."""

        def take(column: list[str]) -> list[str]:
            return [column[i] for i in kept.tolist()]

        return AtomicItems(
            take(self.ids),
            {name: take(column) for name, column in self._text.items()},
            take(self._category) if self._category else None,
            {name: take(column) for name, column in self._attributes.items()},
            self._images,
        )


def read(
    root: str | Path,
    *,
    rating_threshold: float | None = None,
    category_field: str | None = None,
    attribute_fields: Sequence[str] = (),
    text_fields: Sequence[str] | None = None,
    images_root: str | Path | None = None,
) -> tuple[AtomicItems, Histories, Report]:
    """Reads the data set in the folder `root`, whose files are called as the folder.

    Without a timestamp column the order of the file is the order in time. Without an `.item` file
    items are bare ids, as are items that only the interactions name (counted in the report).

    Args:
      rating_threshold: keep interactions rated so or higher; None keeps all.
      category_field, attribute_fields: columns of `.item` that become category and attributes.
      text_fields: columns that become text, in this order; None takes all the others.
      images_root: folder of the images; None means `root/images`, which may be absent.

    Raises:
      UserError: anything wrong with a file, naming file, line and what was expected.
    """
    root = Path(root).resolve()
    if not root.is_dir():
        raise UserError(f"{root}: no such folder of atomic files")
    report = Report(source=str(root))
    inter_path = _find(root, "inter")
    if inter_path is None:
        raise UserError(f"{root}: neither {root.name}.inter nor {root.name}.inter.gz is here")
    inter = _Table(inter_path, required=("user_id", "item_id"))
    item_path = _find(root, "item")
    if item_path is None:
        ids, columns, ordered_text = [], {}, []
        named = [category_field, *attribute_fields, *(text_fields or ())]
        if any(named):
            raise UserError(f"{root}: no {root.name}.item to take the fields {named} from")
    else:
        table = _Table(item_path, required=("item_id",))
        ids = table.unique_ids("item_id")
        special = {"item_id", category_field, *attribute_fields}
        if text_fields is None:
            ordered_text = [name for name in table.names if name not in special]
        else:
            ordered_text = list(text_fields)
        wanted = [*ordered_text, *attribute_fields, *([category_field] if category_field else [])]
        columns = {name: table.strings(name) for name in wanted}
    items, histories = _histories(inter, ids, report)
    bare = len(items) - len(ids)
    columns = {name: column + [""] * bare for name, column in columns.items()}
    images = _image_files(root / "images" if images_root is None else Path(images_root))
    if images_root is not None and not images:
        raise UserError(f"{images_root}: no images <item_id>.jpg, .jpeg, .png or .webp here")
    report.note("image files of no item, unused", len(images.keys() - set(items)))
    catalog = AtomicItems(
        items,
        {name: columns[name] for name in ordered_text},
        columns[category_field] if category_field else None,
        {name: columns[name] for name in attribute_fields},
        images,
    )
    report.read = describe(histories, len(items))
    if rating_threshold is not None:
        kept = filters.at_least(histories, rating_threshold)
        histories = report.step(f"rated below {rating_threshold:g}", histories, kept)
    return catalog, histories, report


def _histories(inter: "_Table", ids: list[str], report: Report) -> tuple[list[str], Histories]:
    """All item ids (those of `.item` first) and the interactions in terms of them."""
    users, user_of_row = inter.codes("user_id")
    seen, seen_of_row = inter.codes("item_id")
    index = {id: i for i, id in enumerate(ids)}
    bare = [id for id in seen if id not in index]
    if ids:
        report.note("interacted items without a row in .item, kept as bare ids", len(bare))
    index |= {id: len(ids) + i for i, id in enumerate(bare)}
    items = np.array([index[id] for id in seen])[seen_of_row]
    has_times = "timestamp" in inter.names
    times = inter.floats("timestamp") if has_times else np.zeros(len(items))
    ratings = inter.floats("rating") if "rating" in inter.names else None
    histories = Histories.from_rows(users, user_of_row, items, times, ratings, clock=has_times)
    if not has_times:
        report.note("interactions without timestamp: file order is taken as time", len(items))
        positions = np.arange(len(items)) - np.repeat(histories.offsets[:-1], histories.lengths)
        histories = replace(histories, timestamps=positions)
    elif are_positions(histories):
        report.note("timestamps are positions in the history, not times", len(items))
        histories = replace(histories, clock=False)
    return ids + bare, histories


def _find(root: Path, suffix: str) -> Path | None:
    paths = (root / f"{root.name}.{suffix}", root / f"{root.name}.{suffix}.gz")
    return next((path for path in paths if path.is_file()), None)


def _image_files(folder: Path) -> dict[str, Path]:
    """item id -> file."""
    if not folder.is_dir():
        return {}
    found: dict[str, Path] = {}
    for entry in sorted(os.listdir(folder)):
        stem, suffix = os.path.splitext(entry)
        if suffix.lower() not in _IMAGE_SUFFIXES:
            continue
        rank = _IMAGE_SUFFIXES.index(suffix.lower())
        if stem not in found or rank < _IMAGE_SUFFIXES.index(found[stem].suffix.lower()):
            found[stem] = folder / entry
    return found


class _Table:
    """The columns of one file as strings; numbers and ids are checked when asked for."""

    def __init__(self, path: Path, required: Sequence[str]):
        self._path = path
        self.names = _header(path)
        self._require(required)
        options = {
            "read_options": pa.csv.ReadOptions(
                column_names=self.names, skip_rows=1, block_size=_BLOCK
            ),
            "parse_options": pa.csv.ParseOptions(delimiter="\t", quote_char=False),
            "convert_options": pa.csv.ConvertOptions(
                column_types=dict.fromkeys(self.names, pa.string()), strings_can_be_null=False
            ),
        }
        try:
            with pa.input_stream(str(path)) as stream:
                self._table = pa.csv.read_csv(stream, **options)
        except (pa.ArrowInvalid, OSError, EOFError) as error:
            for _ in _lines(path, len(self.names)):  # raises where the damage is
                pass
            raise UserError(f"{path}: {' '.join(str(error).split())}") from error
        if not self._table.num_rows:
            raise UserError(f"{path}: a header but no rows")

    def _require(self, names: Sequence[str]) -> None:
        missing = [name for name in names if name not in self.names]
        if missing:
            raise UserError(
                f"{self._path}: no column {', '.join(missing)}; it has {', '.join(self.names)}"
            )

    def strings(self, name: str) -> list[str]:
        self._require([name])
        return self._table[name].to_pylist()

    def codes(self, name: str) -> tuple[list[str], np.ndarray]:
        """The distinct values in order of appearance, and int32[rows] indices into them."""
        encoded = self._table[name].combine_chunks().dictionary_encode()
        values = encoded.dictionary.to_pylist()
        if "" in values:
            self._blame(name, lambda cell: cell == "", "is empty")
        return values, encoded.indices.to_numpy()

    def unique_ids(self, name: str) -> list[str]:
        values, codes = self.codes(name)
        if len(values) < len(codes):
            is_new = np.diff(np.maximum.accumulate(codes), prepend=-1) > 0  # codes count upwards
            row = int(np.argmin(is_new))
            self._blame_row(row, f"{name} {values[codes[row]]!r} occurs a second time")
        return values

    def floats(self, name: str) -> np.ndarray:
        """float64[rows], all finite."""
        try:
            values = pc.cast(self._table[name], pa.float64()).to_numpy()
        except pa.ArrowInvalid:
            values = None
        if values is None or not np.isfinite(values).all():
            self._blame(name, lambda cell: not _is_number(cell), "is not a number")
        return values

    def _blame(self, name: str, is_bad: Callable[[str], bool], problem: str) -> None:
        cells = self.strings(name)
        row = next(row for row, cell in enumerate(cells) if is_bad(cell))
        self._blame_row(row, f"{name} {cells[row]!r} {problem}")

    def _blame_row(self, row: int, problem: str) -> None:
        for number, (line, _) in enumerate(_lines(self._path, len(self.names))):
            if number == row:
                raise UserError(f"{self._path}:{line}: {problem}")


def _header(path: Path) -> list[str]:
    try:
        with _open_bytes(path) as stream:
            raw = stream.readline()
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read: {error}") from error
    if not raw.strip():
        raise UserError(f"{path}: empty; expected a header such as user_id:token<tab>item_id:token")
    names = []
    for cell in _text(raw.removeprefix(b"\xef\xbb\xbf"), path, 1).split("\t"):
        name, _, type = cell.rpartition(":")
        if not name or type not in _TYPES:
            raise UserError(
                f"{path}:1: column {cell!r} is not name:type with a type of {', '.join(_TYPES)}"
            )
        if name in names:
            raise UserError(f"{path}:1: column {name!r} occurs twice")
        names.append(name)
    return names


def _lines(path: Path, columns: int) -> Iterator[tuple[int, list[str]]]:
    """(line number, cells) of every data row; the slow reader, to find what is wrong where."""
    try:
        with _open_bytes(path) as stream:
            for number, raw in enumerate(stream, start=1):
                cells = _text(raw, path, number).split("\t")
                if number == 1 or cells == [""]:
                    continue
                if len(cells) != columns:
                    raise UserError(
                        f"{path}:{number}: {len(cells)} columns, the header has {columns}"
                    )
                yield number, cells
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: damaged, unpack or copy it again: {error}") from error


def _open_bytes(path: Path) -> gzip.GzipFile | io.BufferedReader:
    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")


def _text(raw: bytes, path: Path, line: int) -> str:
    try:
        text = raw.decode().rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}:{line}: not UTF-8 at byte {error.start} of the line; convert the file"
        ) from None
    if "\r" in text:
        raise UserError(f"{path}:{line}: a carriage return inside the line; remove it")
    return text


def _is_number(cell: str) -> bool:
    try:
        return bool(np.isfinite(float(cell)))
    except ValueError:
        return False
