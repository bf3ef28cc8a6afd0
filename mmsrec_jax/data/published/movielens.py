"""MovieLens (GroupLens): ratings of films. Configs: `100k`, `1m`, `20m`, `latest-small`.

The folder holds what the zip unpacks to; posters, which GroupLens does not have, may lie in
posters/<movie id>.jpg.
"""

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from mmsrec_jax.data.published import csv_items, csv_rows, texts
from mmsrec_jax.data.published.files import File, lines
from mmsrec_jax.data.published.rows import Ids, Layout, Notes
from mmsrec_jax.data.published.source import ItemReader, ItemRow, Source, Users, first_folder
from mmsrec_jax.data.user_attributes import UserRow
from mmsrec_jax.runtime import reading
from mmsrec_jax.runtime.errors import UserError

PUBLISHER = "movielens"
PAGE = "https://grouplens.org/datasets/movielens/"
CONFIGS = ("100k", "1m", "20m", "latest-small")

_ZIPS = "https://files.grouplens.org/datasets/movielens/"
_ZIP_DIGESTS = {
    "ml-100k.zip": "md5:0e33842e24a9c977be4e0107933c0723",
    "ml-1m.zip": "md5:c4d9eecfca2ab87c1945afe126590906",
    "ml-20m.zip": "md5:cd245b17a1ae2cc31bb14903e1204af3",
}
_IDS = Ids("^[1-9][0-9]*$", "a whole number")
# The largest ids of users and films: all that tells swapped columns. GroupLens makes latest-small
# anew from time to time; names in its header tell what is what.
_LARGEST = {"100k": (943, 1682), "1m": (6040, 3952), "20m": (138_493, 131_262)}
_PLAIN = csv_rows.Columns(
    ("user", "item", "rating", "timestamp"), "user", "item", "timestamp", "rating",
    header=False, separator="\t",
)  # fmt: skip
_COLONS = csv_rows.Columns(
    _PLAIN.names, "user", "item", "timestamp", "rating", header=False, separator="::"
)
_CSV = csv_rows.Columns(
    ("userId", "movieId", "rating", "timestamp"), "userId", "movieId", "timestamp", "rating"
)
_GENRES_OF_100K = (
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary",
    "Drama", "Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi",
    "Thriller", "War", "Western",
)  # fmt: skip
# As the README of ml-1m names the codes of users.dat.
_AGES_OF_1M = {
    "1": "Under 18", "18": "18-24", "25": "25-34", "35": "35-44", "45": "45-49", "50": "50-55",
    "56": "56+",
}  # fmt: skip
_OCCUPATIONS_OF_1M = (
    "other or not specified", "academic/educator", "artist", "clerical/admin",
    "college/grad student", "customer service", "doctor/health care", "executive/managerial",
    "farmer", "homemaker", "K-12 student", "lawyer", "programmer", "retired", "sales/marketing",
    "scientist", "self-employed", "technician/engineer", "tradesman/craftsman", "unemployed",
    "writer",
)  # fmt: skip
_USER_FIELDS = ("age", "gender", "occupation", "zip_code")
_TITLE_AND_YEAR = re.compile(r"^(.*\S)\s*\(([0-9]{4})\)$")


def source(config: str) -> Source:
    """The data set of one of `CONFIGS`."""
    ratings, movies, columns, items = _FORMS[config]
    folder = f"ml-{config}"
    archive = f"{folder}.zip"
    return Source(
        PUBLISHER, config, PAGE,
        {"interactions": File((ratings, f"{folder}/{ratings}"))},
        rows=partial(csv_rows.read, columns=columns, layout=_layout(config)),
        item_files=(File((movies, f"{folder}/{movies}")),),
        described=items,
        fields=("title", "year", "genres"),
        image_folders=first_folder("posters", "images"),
        archive=File((archive,), _ZIPS + archive, digest=_ZIP_DIGESTS.get(archive, "")),
        users=_users(config, folder),
    )  # fmt: skip


def _layout(config: str) -> Layout:
    users, films = (replace(_IDS, largest=most) for most in _LARGEST.get(config, (0, 0)))
    return Layout(users, films, ratings=(0.5, 5))


def _users(config: str, folder: str) -> Users | None:
    if config not in _USER_FORMS:
        return None
    name, rows = _USER_FORMS[config]
    return Users(File((name, f"{folder}/{name}")), _USER_FIELDS, rows)


def _of_csv(
    paths: Sequence[Path], wanted: Collection[str] | None, notes: Notes
) -> Iterator[ItemRow]:
    for where, row in csv_items.read(paths[0], ("movieId", "title", "genres")):
        yield from _film(where, row["movieId"], row["title"], row["genres"].split("|"), wanted)


def _of_1m(
    paths: Sequence[Path], wanted: Collection[str] | None, notes: Notes
) -> Iterator[ItemRow]:
    for where, cells in _cells(paths[0], "::", 3):
        id, title, genres = cells
        yield from _film(where, id, title, genres.split("|"), wanted)


def _of_100k(
    paths: Sequence[Path], wanted: Collection[str] | None, notes: Notes
) -> Iterator[ItemRow]:
    for where, cells in _cells(paths[0], "|", 24):
        flags = zip(_GENRES_OF_100K, cells[5:], strict=True)
        genres = [name for name, flag in flags if flag == "1" and name != "unknown"]
        yield from _film(where, cells[0], cells[1], genres, wanted)


def _cells(path: Path, separator: str, count: int) -> Iterator[tuple[str, list[str]]]:
    for number, line in lines(path, "latin-1"):
        cells = line.split(separator)
        if len(cells) != count:
            raise UserError(f"{path}:{number}: {len(cells)} columns and not {count}")
        yield f"{path}:{number}", cells


def _film(
    where: str, id: str, title: str, genres: Sequence[str], wanted: Collection[str] | None
) -> Iterator[ItemRow]:
    csv_items.checked_id(where, id, _IDS)
    if wanted is not None and id not in wanted:
        return
    title, year = texts.plain(title), ""
    if parts := _TITLE_AND_YEAR.match(title):
        title, year = parts.groups()
    names = " ".join(name for name in genres if name != "(no genres listed)")
    yield ItemRow(id, texts.given(title=title, year=year, genres=names))


def _users_of_1m(path: Path) -> Iterator[UserRow]:
    occupations = {str(code): name for code, name in enumerate(_OCCUPATIONS_OF_1M)}
    for where, cells in _cells(path, "::", 5):
        id, gender, age, occupation, zip_code = cells
        stated = texts.given(
            age=_named(where, "age", age, _AGES_OF_1M),
            gender=texts.plain(gender),
            occupation=_named(where, "occupation", occupation, occupations),
            zip_code=texts.plain(zip_code),
        )
        yield UserRow(where, csv_items.checked_id(where, id, _IDS, "user"), stated)


def _users_of_100k(path: Path) -> Iterator[UserRow]:
    for where, (id, *cells) in _cells(path, "|", 5):
        stated = texts.given(**dict(zip(_USER_FIELDS, map(texts.plain, cells), strict=True)))
        yield UserRow(where, csv_items.checked_id(where, id, _IDS, "user"), stated)


def _named(where: str, field: str, code: str, names: Mapping[str, str]) -> str:
    if code not in names:
        raise UserError(
            f"{where}: {field} {reading.shown(code)} is none of {', '.join(names)}; are columns "
            "swapped, or is the file another?"
        )
    return names[code]


_Form = tuple[str, str, csv_rows.Columns, ItemReader]
_FORMS: dict[str, _Form] = {  # config -> ratings, films, columns of the first, reader of the second
    "100k": ("u.data", "u.item", _PLAIN, _of_100k),
    "1m": ("ratings.dat", "movies.dat", _COLONS, _of_1m),
    "20m": ("ratings.csv", "movies.csv", _CSV, _of_csv),
    "latest-small": ("ratings.csv", "movies.csv", _CSV, _of_csv),
}
_USER_FORMS: dict[str, tuple[str, Callable[[Path], Iterator[UserRow]]]] = {  # file and its reader
    "100k": ("u.user", _users_of_100k),
    "1m": ("users.dat", _users_of_1m),
}
