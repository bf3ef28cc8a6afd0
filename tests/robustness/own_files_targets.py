"""Files that people make themselves, and what users state, for `test_fuzz_readers`."""

import json
import tempfile
from pathlib import Path

import numpy as np
import published_files
from fuzzing import Target, either, json_lines
from mutate import damaged_bytes

from mmsrec_jax.data import atomic, from_csv, user_attributes
from mmsrec_jax.data.fetching import listed
from mmsrec_jax.data.from_csv import Csv
from mmsrec_jax.data.published import catalog
from mmsrec_jax.data.published import read as published
from mmsrec_jax.data.user_attributes import UserAttributes

_COLUMNS = {"user_id": "customer", "item_id": "sku", "timestamp": "date"}
_USERS = np.array(["u0", "u1", "u2"])


def _make_csv(folder: Path) -> None:
    rows = "".join(f"c{i % 3};a-{i % 4};2024-03-{i + 1:02} 18:05;{i},5\n" for i in range(9))
    (folder / "orders.csv").write_text("\ufeffcustomer;sku;date;note\n" + rows)
    (folder / "items.csv").write_text('sku,title\na-0,"mug, red"\na-1,"a ""b"""\na-2,é\na-3,x\n')


def _read_csv(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as made:
        root = Path(made) / "shop"
        root.mkdir()
        written = from_csv.convert(
            root,
            Csv(folder / "orders.csv", _COLUMNS),
            Csv(folder / "items.csv", {"item_id": "sku"}),
        ).written
        if written[f"{root}/shop.inter"]["interactions"]:
            items, histories, _ = atomic.read(root)  # what it writes must be readable
            assert len(items) and len(histories)


def _make_urls(folder: Path) -> None:
    rows = [(f"i{n}", f"https://example.org/{n}.jpg?é") for n in range(4)]
    (folder / "urls.tsv").write_text("".join(f"{item}\t{url}\r\n" for item, url in rows))
    lines = (json.dumps({"item_id": item, "url": url}) for item, url in rows)
    (folder / "urls.jsonl").write_text("\n".join(lines) + "\n")


def _make_users(folder: Path) -> None:
    shop = folder / "shop"
    shop.mkdir()
    rows = "u0\t31\tF\nu1\t\tM\nu9\t55\t\n"
    (shop / "shop.user").write_text("user_id:token\tage:float\tgender:token\n" + rows)


def _read_users(folder: Path) -> None:
    stated = atomic.read_users(folder / "shop", ("age", "gender"), _USERS).attributes
    assert len(stated) == len(_USERS)


def _make_stored(folder: Path) -> None:
    stated = UserAttributes.of({"age": ["31", None, "55"], "user": ["", "b", "c"]})
    user_attributes.write(folder, _USERS, stated)


def _read_published(folder: Path) -> None:
    users = np.array(["1", "6040"])
    stated = published.read_users(catalog.find("movielens/1m"), folder, ("age", "gender"), users)
    assert len(stated.attributes) == len(users)


TARGETS = {
    "csv": Target(_make_csv, _read_csv, {".csv": damaged_bytes}, 100),
    "urls": Target(
        _make_urls,
        lambda folder: list(listed.read(folder / "urls.tsv")),
        {".tsv": damaged_bytes},
        300,
    ),
    "urls_json": Target(
        _make_urls,
        lambda folder: list(listed.read(folder / "urls.jsonl")),
        {".jsonl": either(json_lines, damaged_bytes)},
        300,
    ),
    "users": Target(_make_users, _read_users, {".user": damaged_bytes}, 100),
    "users_stored": Target(
        _make_stored,
        lambda folder: user_attributes.read(folder, _USERS),
        {".parquet": damaged_bytes},
        100,
    ),
    "users_movielens": Target(
        published_files.movielens_1m, _read_published, {"users.dat": damaged_bytes}, 100
    ),
}
