"""What users state: kept through every filter, stored and read back, and read as published."""

import dataclasses
import gzip
from pathlib import Path

import numpy as np
import published_files as made
import pytest
from test_filters import random_histories

from mmsrec_jax.data import build, filters, store, user_attributes
from mmsrec_jax.data.build import DataSettings
from mmsrec_jax.data.inspection import numbers, samples
from mmsrec_jax.data.inspection.items import ItemTexts
from mmsrec_jax.data.records import Histories
from mmsrec_jax.data.user_attributes import UserAttributes
from mmsrec_jax.runtime.errors import UserError
from mmsrec_jax.runtime.settings import as_dict, from_config

HOSTILE = 'a\nb\t"c", d\u202e<|im_end|>é 𝄞'


def attributes_of(users, seed: int) -> UserAttributes:
    """Of each user the id and a random text; a third states nothing of the second field."""
    rng = np.random.default_rng(seed)
    texts = [None if rng.random() < 0.3 else f"{HOSTILE}{rng.integers(4)}" for _ in users]
    return UserAttributes.of({"user": [str(user) for user in users], "motto": texts})


def by_user(histories: Histories) -> dict[str, dict[str, str]]:
    assert histories.stated is not None
    return {user: histories.stated.stated(u) for u, user in enumerate(histories.users.tolist())}


@pytest.mark.parametrize("seed", range(6))
def test_whatever_is_left_of_the_data_users_keep_what_they_state(seed, tmp_path):
    plain = random_histories(seed)
    histories = dataclasses.replace(plain, stated=attributes_of(plain.users, seed))
    expected, count = by_user(histories), len(histories)
    keep = np.random.default_rng(seed).random(len(histories.items)) < 0.1
    for found in (
        histories.select(keep),
        filters.k_core(histories, users=6, items=4),
        filters.subset_users(histories, 7, seed=seed),
        filters.reindex(filters.break_ties(histories, seed))[0],
        histories.by_position(),
    ):
        told = by_user(found)
        assert told and told == {user: expected[user] for user in found.users.tolist()}
        assert all(told[user]["user"] == user for user in told)
        count = min(count, len(found))
    assert count < len(histories)  # users were dropped
    user_attributes.write(tmp_path, histories.users, histories.stated)
    drawn = np.random.default_rng(seed).permutation(histories.users)
    again = user_attributes.read(tmp_path, drawn)
    assert again.fields == ("user", "motto")
    assert [again.stated(u) for u in range(len(drawn))] == [expected[user] for user in drawn]
    with pytest.raises(UserError, match="no user 'nobody'; delete .* and run"):
        user_attributes.read(tmp_path, np.array(["nobody"]))
    with pytest.raises(ValueError, match=r"attributes of 30 users for 31"):
        dataclasses.replace(
            plain,
            users=np.append(plain.users, "x"),
            offsets=np.append(plain.offsets, plain.offsets[-1]),
            stated=histories.stated,
        )


def shop(root: Path, users: str | bytes | None, name: str = "shop.user") -> DataSettings:
    """u0 to u3 have three interactions each, u4 has one; users: content of the file."""
    root.mkdir()
    rows = [f"u{u}\ti{i}\t{i}\n" for u in range(4) for i in range(3)]
    head = "user_id:token\titem_id:token\ttimestamp:float\n"
    (root / "shop.inter").write_text(head + "".join(rows) + "u4\ti1\t5\n")
    if users is not None:
        data = users.encode() if isinstance(users, str) else users
        (root / name).write_bytes(data)
    return DataSettings(
        root=str(root), user_core=2, item_core=1, text_fields=(), user_fields=("age", "gender")
    )


HEAD = "user_id:token\tage:token\tgender:token\tzip_code:token\n"
USERS = f"{HEAD}u9\t1\tF\t\nu3\t 35 \t\t\nu0\t18\tM\t1\nu1\t\t\t2\n"


def test_columns_of_user_files_are_joined_to_the_users_that_are_left(tmp_path):
    settings = shop(tmp_path / "shop", gzip.compress(USERS.encode()), "shop.user.gz")
    build.check(settings)
    prepared = build.read(settings)
    assert by_user(prepared.dataset.histories) == {
        "u0": {"age": "18", "gender": "M"}, "u1": {}, "u2": {}, "u3": {"age": "35"},
    }  # fmt: skip
    notes = prepared.report.notes
    assert notes["users without a row in shop.user.gz: nothing is known of them"] == 1
    assert notes["rows of shop.user.gz of users that are not in the data, unused"] == 1
    texts = ItemTexts(prepared.items.without_images(), prepared.dataset.catalog.has_image)
    tables = numbers.tables(prepared, texts, None, prompt_fields=(), text_tokens=1)
    stated = next(table for table in tables if table.title == "what users state")
    assert stated.json() == {
        "age": {"users": 2, "share": 0.5, "different values": 2},
        "gender": {"users": 1, "share": 0.25, "different values": 1},
        "nothing": {"users": 2, "share": 0.5, "different values": None},
    }
    shown = samples.of_user(prepared, "u0")
    assert "u0: 3 interactions, age 18, gender M" in shown.text()
    assert shown.json()["stated"] == {"age": "18", "gender": "M"}
    assert "stated" not in samples.of_user(prepared, "u1").json()


def test_step_data_neither_reads_nor_stores_them(tmp_path):
    """So that its store, its record and what is made of it are those of a run without them."""
    asking = shop(tmp_path / "shop", USERS)
    silent = dataclasses.replace(asking, user_fields=())
    assert as_dict(asking) == as_dict(silent)
    assert build.source_files(asking) == build.source_files(silent)
    found = []
    for settings in (asking, silent):
        directory = tmp_path / str(len(found))
        directory.mkdir()
        build.build(settings, directory)
        found.append(build.fingerprint(directory))
        assert build.open_built(settings, directory).histories.stated is None
    assert found[0] == found[1]
    histories = build.read(asking).dataset.histories
    written = store.write(tmp_path / "store", build.read(asking).items, histories)
    assert written.fingerprint == found[0]
    files = build.user_files(asking)
    assert list(files) == ["shop.user"]
    (tmp_path / "shop" / "shop.user").write_text(USERS + "u2\t9\t\t\n")
    assert build.user_files(asking) != files


@pytest.mark.parametrize(
    ("users", "fields", "message"),
    [
        (None, ("age",), "neither shop.user nor shop.user.gz is here, to take config.data.user_f"),
        (USERS, ("age", "income"), "no column income; it has user_id, age, gender, zip_code"),
        (USERS, ("user_id",), "config.data.user_fields: an id says nothing of a user"),
        (f"{USERS}u0\t1\tM\t\n", ("age",), "shop.user:6: user_id 'u0' occurs a second time"),
        (USERS.replace("M", ""), ("gender",), "none of the 4 users states 'gender' in shop.user"),
        (f"{USERS}u2\t1\n", ("age",), "shop.user:6: 2 columns, the header has 4"),
        (HEAD.encode() + b"u0\t\xff\t\t\n", ("age",), "shop.user:2: not UTF-8"),
    ],
)
def test_what_is_wrong_with_a_user_file_is_one_line(tmp_path, users, fields, message):
    settings = dataclasses.replace(shop(tmp_path / "shop", users), user_fields=fields)
    with pytest.raises(UserError, match=message) as error:
        build.check(settings)
        build.read(settings)
    assert "\n" not in str(error.value)


def test_a_generated_shop_states_nothing():
    config = as_dict(DataSettings()) | {"source": "toyshop", "user_fields": ("age",)}
    config |= {"download_page": "", "download": False, "beam_options": ""}
    config |= {"toyshop": as_dict(DataSettings().toyshop)}
    with pytest.raises(UserError, match="user_fields=.* reads no files and drops nothing"):
        from_config(DataSettings, config, "config.data")


def published(root: Path, source: str, *fields: str) -> dict[str, dict[str, str]]:
    settings = DataSettings(
        source=source, root=str(root), user_core=1, item_core=1, user_fields=fields
    )
    build.check(settings)
    return by_user(build.read(settings).dataset.histories)


def test_movielens_codes_are_written_out(tmp_path):
    made.movielens_1m(tmp_path)
    fields = ("gender", "age", "occupation", "zip_code")
    assert published(tmp_path, "movielens/1m", *fields) == {
        "1": {
            "gender": "F", "age": "Under 18", "occupation": "K-12 student", "zip_code": "48067",
        },
        "6040": {
            "gender": "M", "age": "56+", "occupation": "other or not specified",
            "zip_code": "98107-2117",
        },
    }  # fmt: skip
    path, good = tmp_path / "users.dat", (tmp_path / "users.dat").read_bytes()
    for bad, message in (
        (b"1::F::26::10::48067\n", "users.dat:1: age '26' is none of 1, 18, 25, 35, 45, 50, 56"),
        (b"1::F::1::21::48067\n", "users.dat:1: occupation '21' is none of 0, 1, "),
        (b"0::F::1::10::48067\n", "users.dat:1: user '0' is not a whole number"),
        (good + b"6040::M::1::10::x\n", "users.dat:3: user '6040' occurs a second time; keep one"),
        (b"1::F::1::10\n", "users.dat:1: 4 columns and not 5"),
    ):
        path.write_bytes(bad)
        with pytest.raises(UserError, match=message):
            published(tmp_path, "movielens/1m", "age")
    path.unlink()
    with pytest.raises(UserError, match=r"users.dat\[.gz\] is not here; .* or leave config.data.u"):
        published(tmp_path, "movielens/1m", "age")
    with pytest.raises(UserError, match="movielens/1m does not state 'name' of users; it states"):
        published(tmp_path, "movielens/1m", "name")


def test_other_publishers_state_as_published(tmp_path):
    made.movielens_100k(tmp_path)
    found = published(tmp_path, "movielens/100k", "age", "gender", "occupation", "zip_code")
    assert found == {
        "196": {"age": "49", "gender": "M", "occupation": "writer", "zip_code": "55105"},
        "186": {"age": "39", "gender": "F", "occupation": "exécutive", "zip_code": "T8H1N"},
    }
    made.hm(tmp_path / "hm")
    fields = ("age", "club_member_status", "fashion_news_frequency")
    assert list(published(tmp_path / "hm", "hm/all", *fields).values()) == [
        {"age": "49", "club_member_status": "ACTIVE", "fashion_news_frequency": "NONE"},
    ]
    text = (tmp_path / "hm" / "customers.csv").read_text()
    (tmp_path / "hm" / "customers.csv").write_text(text.replace("NONE,49,", "None,49.0,"))
    assert list(published(tmp_path / "hm", "hm/all", "age", fields[2]).values()) == [
        {"age": "49", "fashion_news_frequency": "NONE"}
    ]
    made.movielens_small(tmp_path / "small")
    with pytest.raises(UserError, match="movielens/latest-small does not state 'age' of"):
        published(tmp_path / "small", "movielens/latest-small", "age")
