"""Atomic files out of CSV files, beside what a reader of atomic files finds in them."""

import gzip
from pathlib import Path

import numpy as np
import pytest

from mmsrec_jax.data import atomic, from_csv
from mmsrec_jax.data.from_csv import Csv
from mmsrec_jax.runtime.errors import UserError

NAMES = {"user_id": "customer", "item_id": "sku", "timestamp": "date", "rating": "stars"}
ORDERS = (
    "customer,sku,date,stars,note\r\n"
    '" ann ",A 1,2024-03-31 18:05:00,4,"one,\r\ntwo"\r\n'
    "bob,B/2,2024-03-31T20:05:00+02:00,5,\r\n"
    ",B/2,2024-04-01,5,\r\n"
    "ann,B/2,1711908301.5,3.5,\r\n"
)
PRODUCTS = (
    "\N{BYTE ORDER MARK}sku;name;about;\n"
    'A 1;Tasse „rot“;"nice,\n<b>new</b> &amp;\tcheap";\n'
    "B/2;Grüne Lampe;;\n"
    "A 1;again;;\n"
)


def files(
    folder: Path, orders: str = ORDERS, products: str = PRODUCTS, names=NAMES
) -> tuple[Csv, Csv]:
    (folder / "orders.csv").write_bytes(orders.encode())
    (folder / "products.csv.gz").write_bytes(gzip.compress(products.encode()))
    named = {"item_id": "sku", "title": "name"}
    return Csv(folder / "orders.csv", names), Csv(folder / "products.csv.gz", named)


def test_a_spreadsheets_files_become_what_was_in_them(tmp_path):
    made = from_csv.convert(tmp_path / "shop", *files(tmp_path))
    items, histories, _ = atomic.read(tmp_path / "shop")
    assert items[0].text == {"title": "Tasse „rot“", "about": "nice, new & cheap"}
    assert items[1].text == {"title": "Grüne Lampe"}
    assert [item.id for item in items] == ["A 1", "B/2"]
    assert histories.users.tolist() == ["ann", "bob"]
    assert histories.items.tolist() == [0, 1, 1]
    # `date -u -d "2024-03-31 18:05" +%s`; both zones tell the same moment
    assert histories.timestamps.tolist() == [1711908300, 1711908301.5, 1711908300]
    assert np.allclose(histories.ratings, [4, 3.5, 5])
    assert made.text().splitlines() == [
        f"{tmp_path}/shop/shop.item: 2 items",
        f"{tmp_path}/shop/shop.item: 1 {from_csv._REPEATED}",
        f"{tmp_path}/shop/shop.inter: 3 interactions",
        f"{tmp_path}/shop/shop.inter: 1 {from_csv._WITHOUT_IDS}",
    ]


def test_only_columns_that_are_read_have_to_differ(tmp_path):
    """A column of the file loses its name to the one that is given it; markup is no name."""
    orders = "user_id,customer,sku,note,note,<b></b>\nwrong,u,i,a,b,c\n"
    products = "sku,name,title,<b>about</b>,<br>\ni,Mug,wrong,plain,lost\n"
    named = {"user_id": "customer", "item_id": "sku"}
    from_csv.convert(tmp_path / "shop", *files(tmp_path, orders, products, named))
    assert (tmp_path / "shop/shop.inter").read_text() == "user_id:token\titem_id:token\nu\ti\n"
    assert (tmp_path / "shop/shop.item").read_text() == (
        "item_id:token\ttitle:token_seq\tabout:token_seq\ni\tMug\tplain\n"
    )


def test_times_as_the_file_writes_them(tmp_path):
    orders = "user_id\titem_id\ttimestamp\nu\ti\t31.03.2024 18:05\n"
    (tmp_path / "orders.tsv").write_text(orders)
    given = Csv(tmp_path / "orders.tsv", {}, encoding="cp1252")
    from_csv.convert(tmp_path / "shop", given, None, time_format="%d.%m.%Y %H:%M")
    assert (tmp_path / "shop/shop.inter").read_text().endswith("\nu\ti\t1711908300\n")


@pytest.mark.parametrize(
    ("orders", "products", "problem"),
    [
        (ORDERS.replace("sku", "what"), PRODUCTS, "orders.csv:1: no column sku; .*--col"),
        (ORDERS, PRODUCTS.replace("sku", "id"), "products.csv.gz:1: no column sku.*--item_columns"),
        (ORDERS.replace("2024-04-01", "20240401"), PRODUCTS.replace("B/2", ""), None),
        (ORDERS.replace("1711908301.5", "20240401"), PRODUCTS, ":6: timestamp .*--time_format"),
        (ORDERS.replace("1711908301.5", "31.3.24"), PRODUCTS, ":6: timestamp '31.3.24' is not"),
        *(
            (ORDERS.replace("1711908301.5", time), PRODUCTS, f":6: .*'{time}' is no time of 1990")
            for time in ("20240331180500", "1711908300123", "2024", "1970-01-01")
        ),
        (f'{ORDERS}bob,A 1,2024-04-02,5,"open\r\n', PRODUCTS, ":7: .*the row after line 6"),
        (ORDERS, f'{PRODUCTS}C;"A";"B" C;\n', "gz:6: .*is a quote open"),
        (ORDERS.replace("3.5", "3,5"), PRODUCTS, "orders.csv:6: 6 columns, the header has 5"),
        (ORDERS.replace(",3.5", ",good"), PRODUCTS, "orders.csv:6: rating 'good' is not a number"),
        (ORDERS, PRODUCTS.replace("A 1;T", f"{'A' * 257};T"), "products.csv.gz:3: item_id"),
        ("", PRODUCTS, "orders.csv:1: no column customer"),
        (
            ORDERS.replace("note", "sku"),
            PRODUCTS,
            "be item_id: 'sku', 'sku'; rename .* in the file",
        ),
        (
            ORDERS,
            PRODUCTS.replace(";about;", ";a b;<i>a b</i>", 1),
            "be a b: 'a b', '<i>a b</i>'; re",
        ),
    ],
)
def test_a_refused_file_leaves_nothing(tmp_path, orders, products, problem):
    shop = tmp_path / "shop"
    if problem is None:  # a row without an item's id does not have to hold a time
        from_csv.convert(shop, *files(tmp_path, orders, products))
        return
    with pytest.raises(UserError, match=problem):
        from_csv.convert(shop, *files(tmp_path, orders, products))
    assert not shop.exists() or not list(shop.iterdir())


def test_no_file_is_replaced_and_names_are_pairs(tmp_path):
    from_csv.convert(tmp_path / "shop", *files(tmp_path))
    with pytest.raises(UserError, match="shop.inter: is there already"):
        from_csv.convert(tmp_path / "shop", *files(tmp_path))
    assert from_csv.parsed_columns(["item_id=a=b"], "--columns") == {"item_id": "a=b"}
    with pytest.raises(UserError, match="--columns: 'sku' is not OURS=THEIRS"):
        from_csv.parsed_columns(["sku"], "--columns")
    with pytest.raises(UserError, match="--columns: item_id is named twice"):
        from_csv.parsed_columns(["item_id=a", "item_id=b"], "--columns")


@pytest.mark.parametrize(
    ("header", "form", "problem"),
    [("date", "%Y", "no column of times is read"), ("timestamp", "%Y %H:%M:%M", "is not of the")],
)
def test_a_form_of_times_is_used_or_refused(tmp_path, header, form, problem):
    (tmp_path / "orders.csv").write_text(f"user_id,item_id,{header}\nu,i,2024\n")
    with pytest.raises(UserError, match=problem):
        from_csv.convert(
            tmp_path / "shop", Csv(tmp_path / "orders.csv", {}), None, time_format=form
        )
