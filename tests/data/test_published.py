"""Publishers' files as they are: what is read of each, and what is refused where."""

import gzip
import os
from pathlib import Path

import numpy as np
import published_files as made
import pytest
from published_files import I1, I2, I3, U1, U2

import mmsrec_jax
from configs import microlens as microlens_config
from mmsrec_jax.data import build
from mmsrec_jax.data.build import DataSettings
from mmsrec_jax.data.published import catalog, files, microlens, read
from mmsrec_jax.data.published.image_urls import image_urls
from mmsrec_jax.runtime.errors import UserError
from mmsrec_jax.runtime.settings import from_config


@pytest.fixture
def no_digests(monkeypatch):
    """Files of these tests are not the published ones."""
    monkeypatch.setattr(microlens, "_DIGESTS", {})


def interactions(root: Path, name: str):
    """(user, item, seconds, rating) of every interaction, items, and the report's notes."""
    items, histories, report = read.read(catalog.find(name), root)
    ratings = [None] * len(histories.items) if histories.ratings is None else histories.ratings
    rows = [
        (str(histories.users[u]), items.ids[i], time, None if rating is None else float(rating))
        for u, i, time, rating in zip(
            histories.user_of_row, histories.items, histories.timestamps, ratings, strict=True
        )
    ]
    return rows, {item.id: item for item in items}, report.notes


def test_amazon_2014_reviews_and_dict_literals(tmp_path):
    made.amazon_2014(tmp_path)
    rows, items, notes = interactions(tmp_path, "amazon_reviews_2014/Beauty")
    assert rows == [
        (U1, I1, 1391040000, 5), (U1, I3, 1391040000, 3),
        (U2, I2, 1390953600, 4), (U2, I1, 1397433600, 1),
    ]  # fmt: skip
    assert items[I1].text == {
        "title": "WAWO's", "description": 'It\'s a "palette" & café',
        "categories": "Beauty, Makeup, Clothing Shoes & Jewelry",
    }  # fmt: skip
    assert items[I2].text == {"categories": "Beauty", "price": "9.50"} and items[I3].text == {}
    assert list(items) == [I1, I2, I3]
    assert notes == {
        "items described twice, the first one kept": 1,
        "interacted items that the publisher does not describe, kept as bare ids": 1,
    }
    assert dict(image_urls("amazon_reviews_2014/Beauty", tmp_path)) == {
        I1: "http://ecx.images-amazon.com/images/I/31n._SY300_.jpg"
    }


def test_amazon_ratings_have_the_user_first_in_2014_and_the_item_first_in_2018(tmp_path):
    made.amazon_2014(tmp_path)
    made.amazon_2018(tmp_path)
    rows, _, notes = interactions(tmp_path, "amazon_reviews_2014/Beauty-ratings")
    assert rows[0] == (U1, I1, 1391040000, 5) and ("#oc-R1", I3, 1390953600, 2) in rows
    assert sum(count for what, count in notes.items() if "reviewer id" in what) == 1
    rows, _, _ = interactions(tmp_path, "amazon_reviews_2018/All_Beauty-ratings")
    assert rows == [(U1, I1, 1092009600, 4), (U2, I2, 1092009601, 5)]
    (tmp_path / "ratings_Beauty.csv").unlink()
    (tmp_path / "All_Beauty.csv").rename(tmp_path / "ratings_Beauty.csv")
    with pytest.raises(UserError, match=f"ratings_Beauty.csv:1: user '{I1}' is not an Amazon rev"):
        interactions(tmp_path, "amazon_reviews_2014/Beauty-ratings")


def test_amazon_2018_metadata(tmp_path):
    made.amazon_2018(tmp_path)
    rows, items, _ = interactions(tmp_path, "amazon_reviews_2018/All_Beauty")
    assert [row[0] for row in rows] == [U1, U1, U2] and rows[2][3] == 0
    assert items[I1].text == {
        "title": "Brush & comb", "description": "A b c", "features": "soft", "brand": "Acme",
        "categories": "All Beauty",
    }  # fmt: skip
    assert items[I2].text == {"price": "$9.99 - $19.99"}  # its title is a script
    urls = dict(image_urls("amazon_reviews_2018/All_Beauty", tmp_path))
    assert urls == {I1: "https://x/large.jpg", I2: "https://x/old.jpg"}


def test_amazon_2023_joins_on_the_parent(tmp_path):
    made.amazon_2023(tmp_path)
    rows, items, notes = interactions(tmp_path, "amazon_reviews_2023/Video_Games-raw")
    assert [(row[1], row[2]) for row in rows] == [
        ("B00NOMETA0", 1.52309e9), (I3, 1588687728.923), (I3, 1588687728.923), (I1, 1588687728.923),
        (I2, 1588687728.923), (made.NO_PRICE, 1588687728.923), (I3, 1588687728.924),
    ]  # fmt: skip
    assert items[I3].text == {"title": "Joy & pad", "categories": "Video Games, PC"}
    assert items[I1].text == {"title": "Book", "price": "from 9.99"}
    assert [items[id].text for id in (I2, made.NO_PRICE)] == [{"title": "Null"}, {"title": "Text"}]
    urls = dict(image_urls("amazon_reviews_2023/Video_Games-raw", tmp_path))
    assert urls == {I3: "https://x/main.jpg", I1: "https://x/first.jpg"}


def test_amazon_2023_ratings_and_splits(tmp_path):
    made.amazon_2023(tmp_path)
    times = [1e9, 1588687728.923, 1628643414.042]
    for form in ("", "-5core-last_out_w_his"):
        rows, _, _ = interactions(tmp_path, f"amazon_reviews_2023/Video_Games{form}")
        assert [row[2] for row in rows] == times
    with pytest.raises(UserError, match="its md5 is .* and not 60fdc3e812de871c30d65722e9"):
        interactions(tmp_path, "amazon_reviews_2023/Video_Games-0core")
    path = tmp_path / "0core/rating_only/Video_Games.csv.gz"
    path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))  # of that none is known
    path.unlink()
    rows, _, _ = interactions(tmp_path, "amazon_reviews_2023/Video_Games-0core")
    assert [row[2] for row in rows] == times[1:]


def test_a_published_benchmark_has_the_histories(tmp_path):
    made.amazon_2023(tmp_path)
    source = catalog.find("amazon_reviews_2023/Video_Games-5core-last_out_w_his")
    found = {
        split: [rows.histories.to_pylist() for rows in source.rows(file.locate(tmp_path), notes={})]
        for split, file in source.interactions.items()
    }
    assert found == {"train": [[""]], "valid": [[I3]], "test": [[f"{I3} {I1}"]]}


def test_microlens(tmp_path, no_digests):
    made.microlens_50k(tmp_path / "a")
    rows, items, _ = interactions(tmp_path / "a", "microlens/50k")
    assert rows[0] == ("1", "1958", 1583378629.552, None)
    assert [item.title for item in items.values()] == ['Love, "red" # outfit 😀', "A cat", ""]
    made.microlens_100k(tmp_path / "b")
    rows, items, _ = interactions(tmp_path / "b", "microlens/100k")
    assert [items[id].title for id in "12"] == ['One, two, "three', ""]


def test_microlens_has_a_checksum(tmp_path):
    made.microlens_50k(tmp_path)
    with pytest.raises(
        UserError, match="pairs.csv: its sha256 is .* not 7ff8b91b.*github.com/west"
    ):
        interactions(tmp_path, "microlens/50k")


@pytest.mark.parametrize(
    ("name", "make", "users", "films"),
    [
        ("100k", made.movielens_100k, ["186", "196"],
         {"242": {"title": "Café", "year": "1996", "genres": "Comedy Romance"},
          "1682": {"title": "unknown"}}),
        ("1m", made.movielens_1m, ["1", "1", "6040"],
         {"661": {"title": "James", "year": "1996", "genres": "Animation Children's"},
          "1193": {"title": "Misérables, Les", "genres": "Drama"}}),
        ("20m", made.movielens_20m, ["1", "138493"],
         {"2": {"title": "Jumanji", "year": "1995", "genres": "Adventure Children Fantasy"},
          "131262": {"title": "Innocence", "year": "2014", "genres": "Adventure Fantasy Horror"}}),
        ("latest-small", made.movielens_small, ["1", "2"],
         {"31": {"title": "American President, The", "year": "1995", "genres": "Comedy Drama"}}),
    ],
)  # fmt: skip
def test_movielens(tmp_path, name, make, users, films):
    make(tmp_path)
    (tmp_path / "posters").mkdir()
    (tmp_path / "posters" / "242.jpg").write_bytes(b"poster")
    rows, items, _ = interactions(tmp_path, f"movielens/{name}")
    assert sorted(row[0] for row in rows) == users
    assert {id: item.text for id, item in items.items()} == films
    assert [id for id, item in items.items() if item.image] == ["242"] * (name == "100k")
    assert min(row[2] for row in rows) < 1e9  # seconds


def test_pixelrec_has_the_item_first_and_chinese_text(tmp_path):
    made.pixelrec(tmp_path)
    rows, items, _ = interactions(tmp_path, "pixelrec/50K")
    assert rows == [("u7", "i0", 1571000000, None), ("u7", "i5", 1571000001, None)]
    assert items["i0"].text == {"title": "标题, 一"}
    assert items["i5"].text == {"title": "二", "tag": "生活", "description": "行 二"}


def test_hm_keeps_leading_zeros_and_finds_images_in_folders(tmp_path):
    made.hm(tmp_path)
    made.write(tmp_path / "images/010/0108775015.jpg", "picture")
    rows, items, _ = interactions(tmp_path, "hm/all")
    assert [row[1:3] for row in rows] == [("0108775015", 1537401600), ("0663713001", 1537401600)]
    item = items["0108775015"]
    assert (item.title, item.text["description"], item.image) == (
        "Strap top", "Top, narrow", b"picture",
    )  # fmt: skip
    assert "description" not in items["0663713001"].text
    path = tmp_path / "transactions_train.csv"
    path.write_text(path.read_text().replace(",0108", ",108"))
    with pytest.raises(UserError, match=r"csv:2: item '108775015' is not ten digits.*leading zero"):
        interactions(tmp_path, "hm/all")


def test_layouts_of_peers(tmp_path):
    made.lc_rec(tmp_path)
    made.mllm_msr(tmp_path)
    rows, items, notes = interactions(tmp_path, "lc_rec/Games")
    assert [row[:3] for row in rows] == [("0", "3", 0), ("0", "1", 1), ("1", "1", 0)]
    assert items["1"].text == {"title": "Pad", "brand": "Acme"}
    assert notes["interactions without timestamp: file order is taken as time"] == 3
    rows, items, _ = interactions(tmp_path, "mllm_msr/Games")
    assert rows[1] == ("0", "5", 1588687728.924, None) and items["5"].title == "two cells"


def _swapped(text: str, first: str, second: str) -> str:
    """Names of two columns exchanged; or, of files without names, the first two columns, where
    `first` is what separates them."""
    if second:
        return text.replace(first, "\0").replace(second, first).replace("\0", second)
    rows = (line.split(first) for line in text.splitlines())
    return "".join(first.join([b, a, *rest]) + "\n" for a, b, *rest in rows)


_NO_REVIEWER = "user '[B7]0*[0-9A-Z]*' is not an Amazon reviewer id"
# A data set, its fixture and file; what is exchanged and what is then said; an item, and how it
# reads after a table program.
COLUMNS = {
    "2014 reviews": ("amazon_reviews_2014/Beauty", made.amazon_2014, "reviews_Beauty_5.json.gz",
                     ("reviewerID", "asin"), _NO_REVIEWER, f'"{I1}"', '"7.8e+9"'),
    "2014 ratings": ("amazon_reviews_2014/Beauty-ratings", made.amazon_2014, "ratings_Beauty.csv",
                     (",", ""), _NO_REVIEWER, I1, "7806397051.0"),
    "2018 reviews": ("amazon_reviews_2018/All_Beauty", made.amazon_2018, "All_Beauty_5.json.gz",
                     ("reviewerID", "asin"), _NO_REVIEWER, f'"{I1}"', '"7806397051.0"'),
    "2018 ratings": ("amazon_reviews_2018/All_Beauty-ratings", made.amazon_2018, "All_Beauty.csv",
                     (",", ""), _NO_REVIEWER, I1, "7806397051.0"),
    "2023 reviews": ("amazon_reviews_2023/Video_Games-raw", made.amazon_2023, "Video_Games.jsonl",
                     ("user_id", "parent_asin"), _NO_REVIEWER, f'"{I3}"', '"7806397051.0"'),
    "2023 ratings": ("amazon_reviews_2023/Video_Games", made.amazon_2023,
                     "benchmark/5core/rating_only/Video_Games.csv", ("user_id", "parent_asin"),
                     _NO_REVIEWER, I3, "7806397051.0"),
    "MicroLens": ("microlens/50k", made.microlens_50k, "MicroLens-50k_pairs.csv",
                  ("user", "item"), "item '50000' is above 19,738", "19738", "19738.0"),
    "PixelRec": ("pixelrec/50K", made.pixelrec, "Pixel50K.csv", ("user_id", "item_id"),
                 "user 'i0' is not u and digits", "i0", "0.0"),
    "H&M": ("hm/all", made.hm, "transactions_train.csv", ("customer_id", "article_id"),
            "user '0108775015' is not 64 hexadecimal digits", "0108775015", "108775015.0"),
    "MovieLens 100k": ("movielens/100k", made.movielens_100k, "ml-100k/u.data", ("\t", ""),
                       "user '1682' is above 943", "1682", "1682.0"),
    "MovieLens 1m": ("movielens/1m", made.movielens_1m, "ratings.dat", ("::", ""),
                     "item '6040' is above 3,952", "1193", "1193.0"),
    "MovieLens 20m": ("movielens/20m", made.movielens_20m, "ml-20m/ratings.csv",
                      ("userId", "movieId"), "item '138493' is above 131,262", "131262", "1.3e+5"),
    # Users and items are any numbers, which names alone tell apart.
    "MLLM-MSR": ("mllm_msr/Games", made.mllm_msr, "Games_u_i_pairs.tsv", ("item_id", "timestamp"),
                 "timestamp 4 is no time", "\t4\t", "\t4.0\t"),
}  # fmt: skip


@pytest.mark.parametrize("publisher", COLUMNS)
def test_swapped_columns_and_float_ids_are_refused(tmp_path, no_digests, publisher):
    name, make, file, exchanged, message, item, as_float = COLUMNS[publisher]
    make(tmp_path)
    path = tmp_path / file
    data = path.read_bytes()
    text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
    assert interactions(tmp_path, name)[0] and item in text
    made.write(path, _swapped(text, *exchanged))
    with pytest.raises(
        UserError, match=rf"{path.name}:\d+: {message}.*are columns swapped"
    ) as error:
        interactions(tmp_path, name)
    assert "\n" not in str(error.value)
    made.write(path, text.replace(item, as_float))
    with pytest.raises(UserError, match=rf"{path.name}:\d+: item .* with a point or an exponent"):
        interactions(tmp_path, name)


REFUSED = [
    ("user,item,timestamp\n7,50000,1583378629552\n", ":2: item '50000' is above 19,738.*swapped"),
    ("item,user,timestamp\n50000,7,1583378629552\n", ":2: item '50000' is above 19,738.*swapped"),
    ("1,5,1583378629552\n", ":1: no column user, or two: the header reads '1,5,1583378629552'"),
    ("user,item,timestamp\n1,7.0,1583378629552\n", ":2: item '7.0' is a number with a point"),
    ("user,item,timestamp\n1,7,1583378629552\n1.5e+4,7,1583378629552\n", ":3: user '1.5e.4' is a"),
    ("user,item,timestamp\n1,7,1583378629\n", ":2: timestamp 1583378629 is no time .* millisec"),
    ("user,item,timestamp\n1,7,soon\n", ":2: timestamp 'soon' is not a number"),
    ("user,item,timestamp\n1,1583378629552,7\n", ":2: timestamp 7 is no time"),
    ("user,item,timestamp\n\n1,,1583378629552\n", ":3: item '' is empty"),
    ("user,item,timestamp\n1,x7,1583378629552\n", ":2: item 'x7' is not a whole number"),
    ("user,item\r,timestamp\n1,7,1583378629552\n", ":1: a carriage return inside"),
    ("user,item,timestamp\n1,7,15833786\r29552\n", ":2: a carriage return inside the line"),
    ("user,item,timestamp\n1,7\n", ":2: 2 columns and not 3"),
    ("user,item,timestamp\n1,7,1583378629552,9\n", ":2: 4 columns and not 3"),
    (b"user,item,timestamp\n1,\xff,1583378629552\n", ":2: not utf-8 at byte 2"),
    (b"user,item,timestamp\n1,7\x00,1583378629552\n", ":2: item .* holds a NUL"),
    ("user,item,timestamp\n1,7," + "0" * (1 << 20) + "\n1,7,1583378629552\n", ":2: longer than"),
    ("user,item,timestamp\n1,7,1e308\n", ":2: timestamp 1e.308 is no time"),
    ("user,item,timestamp\n", "pairs.csv: no interactions"),
    ("", "pairs.csv: no interactions"),
]  # fmt: skip


@pytest.mark.parametrize(("content", "message"), REFUSED)
def test_interactions_that_are_not_the_publishers_are_refused(
    tmp_path, no_digests, content, message
):
    made.microlens_50k(tmp_path)
    content = content.encode() if isinstance(content, str) else content
    (tmp_path / "MicroLens-50k_pairs.csv").write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        interactions(tmp_path, "microlens/50k")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"asin": 31852}, ":2: asin 31852 is not text in quotes"),
        ({"asin": "31852.0"}, ":2: item '31852.0' is a number with a point"),
        ({"unixReviewTime": "1391040000"}, ":2: unixReviewTime '1391040000' is not a number"),
        ({"unixReviewTime": 1391040000000}, ":2: timestamp 1391040000000 is no time .* seconds"),
        ({"overall": 1391040000}, ":2: rating 1.39104e.09 is not from 0 to 5"),
        ({"reviewerID": None}, ":2: no field reviewerID"),
        ({"overall": True}, ":2: overall true is not a number"),
        ({"overall": 10**400}, ":2: rating inf is not from 0 to 5"),
        ({"unixReviewTime": 2**63}, ":2: timestamp .* is no time of 1990"),
    ],
)
def test_reviews_that_are_not_the_publishers_are_refused(tmp_path, change, message):
    good = made.review_2014(U1, I1, 5.0, 1391040000)
    lines = made.json_lines(good, {**good, **change})
    made.write(tmp_path / "reviews_Beauty.json", lines)
    made.write(tmp_path / "meta_Beauty.json", made.META_2014)
    with pytest.raises(UserError, match=f"reviews_Beauty.json{message}"):
        interactions(tmp_path, "amazon_reviews_2014/Beauty-raw")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("__import__('os').abort()", "no Python literal"),
        (f"{{'asin': '{I1}', 'x': [*()]}}", "no Python literal"),
        ("[1]", "is no dict of an item"),
        ("{'asin': 31852}", "asin 31852 is no id in quotes"),
        ("(" * 100_000, "no Python literal"),
        ("-" * 100_000 + "1", "nested too deeply"),
        (f"{{'asin': {'9' * 5000}}}", "a number of thousands of digits"),
    ],
)
def test_metadata_that_is_no_dict_literal_is_refused_and_nothing_of_it_runs(
    tmp_path, line, message
):
    made.amazon_2014(tmp_path)
    (tmp_path / "meta_Beauty.json.gz").unlink()
    made.write(tmp_path / "meta_Beauty.json", f"{made.META_2014}{line}\n")
    with pytest.raises(UserError, match=f"meta_Beauty.json:5: .*{message}"):
        interactions(tmp_path, "amazon_reviews_2014/Beauty")


def test_lines_of_null_alone_are_refused(tmp_path):
    """pyarrow ends the process at them."""
    made.amazon_2014(tmp_path)
    (tmp_path / "reviews_Beauty_5.json.gz").unlink()
    for text in (
        "null\n",
        "null\nnull",
        "null\n" + made.json_lines(made.review_2014(U1, I1, 5, 1)),
    ):
        (tmp_path / "reviews_Beauty_5.json").write_text(text)
        with pytest.raises(UserError, match="5.json:1: null is no JSON object"):
            interactions(tmp_path, "amazon_reviews_2014/Beauty")


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        (f"'price': {'9' * 400}", {}),
        ("'price': 1e999", {}),
        ("'price': True", {}),
        (f"'price': 0x{'f' * 5000}, 'brand': 'a'", {"brand": "a"}),
        (f"'title': 'a&#{'9' * 5000};b &#x41;'", {"title": "a b A"}),
    ],
)
def test_values_that_mean_nothing_are_passed_over(tmp_path, fields, text):
    made.amazon_2014(tmp_path)
    made.write(tmp_path / "meta_Beauty.json.gz", f"{{'asin': '{I1}', {fields}}}\n")
    assert interactions(tmp_path, "amazon_reviews_2014/Beauty")[1][I1].text == text


@pytest.mark.parametrize("date", ["2018-02-31", "2018-9-20", " 2018-09-20", "2018-09-20 ", ""])
def test_a_date_is_one_of_the_calendar(tmp_path, date):
    made.hm(tmp_path)
    path = tmp_path / "transactions_train.csv"
    path.write_text(path.read_text().replace("2018-09-20", date, 1))
    with pytest.raises(UserError, match=f"csv:2: t_dat '{date}' is no date YYYY-MM-DD"):
        interactions(tmp_path, "hm/all")


@pytest.mark.parametrize("id", ["\u0663", "9" * 300, "", "1 "])
def test_numbers_of_lc_rec_are_short_and_plain(tmp_path, id):
    made.lc_rec(tmp_path)
    (tmp_path / "Games.inter.json").write_text(f'{{"0": ["{id}"]}}')
    with pytest.raises(UserError, match="is no whole number of at most 256 digits"):
        interactions(tmp_path, "lc_rec/Games")


def test_links_out_of_the_folder(tmp_path):
    """Of a folder too; the cache of huggingface_hub counts as one folder."""
    made.movielens_100k(tmp_path / "elsewhere")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "ml-100k").symlink_to(tmp_path / "elsewhere" / "ml-100k")
    with pytest.raises(UserError, match="u.data: leads out of the folder"):
        interactions(tmp_path / "root", "movielens/100k")
    made.movielens_100k(snapshot := tmp_path / "hub" / "snapshots" / "abc")
    (tmp_path / "hub" / "blobs").mkdir()
    (snapshot / "ml-100k" / "u.data").rename(tmp_path / "hub" / "blobs" / "1")
    (snapshot / "ml-100k" / "u.data").symlink_to("../../../blobs/1")
    assert len(interactions(snapshot, "movielens/100k")[0]) == 2


def test_something_else_in_the_place_of_the_images(tmp_path):
    for number, make in enumerate((Path.touch, lambda path: path.symlink_to("nowhere"))):
        made.hm(root := tmp_path / str(number))
        made.amazon_2014(root)
        make(root / "images")
        for name in ("hm/all", "amazon_reviews_2014/Beauty"):
            with pytest.raises(UserError, match="images: "):
                interactions(root, name)


def test_lines_of_blanks_count_as_lines_and_not_as_rows(tmp_path):
    good = made.review_2014(U1, I1, 5.0, 1391040000)
    lines = made.json_lines(good, {**good, "overall": 7.0})
    made.write(tmp_path / "reviews_Beauty.json", f" \t\r\n{lines}")
    made.write(tmp_path / "meta_Beauty.json", made.META_2014)
    with pytest.raises(UserError, match=r"reviews_Beauty\.json:3: rating 7"):
        interactions(tmp_path, "amazon_reviews_2014/Beauty-raw")


def test_a_field_that_stands_twice_is_refused_with_its_line(tmp_path):
    good = made.json_lines(made.review_2014(U1, I1, 5.0, 1391040000))
    twice = good.replace('"asin"', '"asin": "x", "asin"')
    made.write(tmp_path / "reviews_Beauty.json", f"\n{good}{twice}")
    made.write(tmp_path / "meta_Beauty.json", made.META_2014)
    with pytest.raises(UserError, match=r"reviews_Beauty\.json:3: .*'asin' stands twice"):
        interactions(tmp_path, "amazon_reviews_2014/Beauty-raw")


def test_parts_of_a_file_are_joined_whatever_their_size(tmp_path, monkeypatch, no_digests):
    rng = np.random.default_rng(0)
    users, items = rng.integers(1, 900, 3000), rng.integers(1, 700, 3000)
    times = 1_600_000_000_000 + rng.permutation(3000)
    lines = [f"{u},{i},{t}" for u, i, t in zip(users, items, times, strict=True)]
    made.microlens_50k(tmp_path)
    text = "\ufeffuser,item,timestamp\r\n" + "\r\n".join(lines)  # no end of line at the end
    made.write(tmp_path / "MicroLens-50k_pairs.csv", text)
    monkeypatch.setattr(files, "_CHUNK", 101)
    rows, _, _ = interactions(tmp_path, "microlens/50k")
    expected = sorted(zip(users.astype(str), items.astype(str), times / 1000, strict=True))
    assert sorted(row[:3] for row in rows) == expected


def test_packed_and_endless_files_are_bounded(tmp_path, monkeypatch):
    path = tmp_path / "reviews_Beauty_5.json.gz"
    path.write_bytes(gzip.compress(b"x" * (2 << 20)))
    with pytest.raises(UserError, match="gz:1: longer than 1,048,576 bytes"):
        list(files.chunks(path))
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match="damaged, download or copy it again|longer than"):
        list(files.chunks(path))
    path.write_bytes(gzip.compress(b"x\n" * 9999)[:-9])
    with pytest.raises(UserError, match="damaged, download or copy it again"):
        list(files.chunks(path))
    path.write_bytes(gzip.compress(b"{}\n" * (128 << 20 >> 2), 9))
    monkeypatch.setattr("mmsrec_jax.runtime.reading._ALWAYS_UNPACKED", 1 << 20)
    with pytest.raises(UserError, match="unpacks to more than"):
        list(files.chunks(path))
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UserError, match="is a FIFO"):
        catalog.find("amazon_reviews_2014/Beauty").interactions["interactions"].locate(tmp_path)


def test_missing_and_doubled_files_name_page_file_and_checksum(tmp_path):
    def message(name: str) -> str:
        with pytest.raises(UserError) as error:
            read.read(catalog.find(name), tmp_path)
        return str(error.value)

    found = message("amazon_reviews_2014/CDs_and_Vinyl-ratings")
    assert "ratings_CDs_and_Vinyl.csv[.gz] is not here; download it from http://snap" in found
    assert "md5:67404932efce35be194f3f1088db3971" in found
    assert "pairs.csv" in (found := message("microlens/50k")) and "sha256:7ff8b91bcc84" in found
    assert "westlake-repl/MicroLens" in found
    found = message("movielens/1m")
    assert "ml-1m.zip is not here" in found and "md5:c4d9eecfca2ab87c1945afe126590906" in found
    made.amazon_2014(tmp_path)
    (tmp_path / "meta_Beauty.json.gz").unlink()
    assert "meta_Beauty.json[.gz] is not here" in (found := message("amazon_reviews_2014/Beauty"))
    assert "config.data.text_fields='()'" in found
    bare, _, _ = read.read(catalog.find("amazon_reviews_2014/Beauty"), tmp_path, text_fields=())
    assert bare.ids == [I1, I3, I2] and bare[0].text == {}
    made.write(tmp_path / "reviews_Beauty_5.json", "")
    assert "are both here; remove one of them" in message("amazon_reviews_2014/Beauty")


def test_fields_by_argument(tmp_path):
    made.amazon_2014(tmp_path)
    source = catalog.find("amazon_reviews_2014/Beauty")
    items, histories, report = read.read(
        source, tmp_path, category_field="categories", attribute_fields=("price",),
        rating_threshold=4,
    )  # fmt: skip
    assert items[1].category == "Beauty" and items[1].attributes == {"price": "9.50"}
    assert list(items[0].text) == ["title", "description"] and len(histories.items) == 2
    assert report.dropped[0].interactions == 2
    with pytest.raises(UserError, match="has no field colour; it has title, description, brand"):
        read.read(source, tmp_path, category_field="colour")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("amazon_reviews_2014/Beautty", "Baby, .*; did you mean amazon_reviews_2014/Beauty?"),
        ("amazon_reviews_2018/Beauty", "has AMAZON_FASHION, All_Beauty, .*-raw, -ratings"),
        ("amazon_review_2014/Beauty", "PUBLISHER of amazon_reviews_2014, .*did you mean amazon"),
        ("movielens/1M", "movielens has 100k, 1m, 20m, latest-small; did you mean movielens/1m"),
        ("microlens", "microlens has 50k, 100k"),
        ("lc_rec/../x", "give the name of the data set, as in lc_rec/Games"),
    ],
)
def test_a_misspelt_source_lists_what_exists(name, message):
    with pytest.raises(UserError, match=f"source='{name}': .*{message}"):
        catalog.find(name)


def test_a_published_source_goes_through_the_data_step(tmp_path):
    raw, made_of_it = tmp_path / "raw", tmp_path / "data"
    settings = DataSettings(
        source="amazon_reviews_2014/Beauty", root=str(raw), user_core=2, item_core=1
    )
    with pytest.raises(
        UserError,
        match="raw: no such folder.* files of amazon.*https://snap.*; --config.data.downl",
    ):
        build.check(settings)
    raw.mkdir()
    with pytest.raises(UserError, match="reviews_Beauty_5.json.* is not here; download it from"):
        build.check(settings)
    made.amazon_2014(raw)
    build.check(settings)
    made_of_it.mkdir()
    build.build(settings, made_of_it)
    catalog, histories, split = build.open_built(settings, made_of_it)
    assert sorted(catalog.ids.tolist()) == sorted([I1, I2, I3]) and len(histories) == 2
    assert build.coverage(made_of_it)["text title"] == 1
    known = build.source_files(settings)
    assert sorted(known) == ["images", "meta_Beauty.json.gz", "reviews_Beauty_5.json.gz"]
    made.write(raw / f"images/{I1}.jpg", "picture")
    assert build.source_files(settings)["images"] != known["images"]
    opened = mmsrec_jax.open_dataset(raw, source=settings.source, user_core=2, item_core=1)
    assert opened.catalog.ids.tolist() == catalog.ids.tolist()
    assert opened.catalog[opened.catalog.index[I1]].image == b"picture"


def test_the_core_of_the_paper_on_the_real_microlens(shared_data):
    config = microlens_config.get_config()
    config.data.root = str(shared_data / "microlens-50k")
    catalog, histories, split = build.read(from_config(DataSettings, config.data, "data")).dataset
    assert (len(histories), len(catalog), len(histories.items)) == (25_411, 11_896, 220_472)
    assert len(split.test) == 25_411


def test_a_column_may_have_two_uses_and_an_item_two_lines(tmp_path, no_digests):
    made.microlens_50k(tmp_path)
    path = tmp_path / "MicroLens-50k_titles.csv"
    header, first, *rest = path.read_text().splitlines()
    path.write_text("\r\n".join([header, first, *rest, first]) + "\r\n")
    items, _, report = read.read(
        catalog.find("microlens/50k"), tmp_path, text_fields=("title",), category_field="title"
    )
    described = [item for item in items if item.text]
    assert described and all(item.category == item.text["title"] for item in described)
    assert len(set(items.ids)) == len(items.ids)
    assert report.notes["items described twice, the first one kept"] == 1
