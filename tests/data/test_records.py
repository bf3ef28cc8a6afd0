import numpy as np
import pytest

from mmsrec_jax.data.records import Catalog, Histories, Item, are_positions


def test_rows_in_any_order_are_grouped_and_sorted_stably():
    histories = Histories.from_rows(
        users=["a", "b", "none"],
        user_of_row=[1, 0, 1, 0, 1],
        items=[10, 11, 12, 13, 14],
        timestamps=[5.0, 9.0, 4.0, 1.0, 5.0],
        ratings=[1, 2, 3, 4, 5],
    )
    assert histories.of(0).tolist() == [13, 11] and histories.times(0).tolist() == [1, 9]
    assert histories.of(1).tolist() == [12, 10, 14]  # 10 before 14: the order of the file
    assert histories.of(2).tolist() == []
    assert histories.ratings.tolist() == [4, 2, 3, 1, 5]
    assert histories.of(1).base is not None  # a view, no copy


def test_select_drops_users_left_with_nothing():
    histories = Histories.from_rows(["a", "b", "c"], [0, 1, 1, 2], [3, 4, 5, 6], [0, 0, 1, 0])
    kept = histories.select(np.array([True, False, True, False]))
    assert kept.users.tolist() == ["a", "b"]
    assert [kept.of(u).tolist() for u in range(2)] == [[3], [5]]
    assert len(histories.select(np.zeros(4, bool))) == 0


@pytest.mark.parametrize("times, expected", [([0, 1, 0], True), ([0, 1, 1], False)])
def test_are_positions(times, expected):
    assert are_positions(Histories(["a", "b"], [0, 2, 3], [1, 2, 3], times)) is expected


def test_inconsistent_lengths_are_refused():
    with pytest.raises(ValueError, match="3"):
        Histories(["a"], [0, 2], [1, 2, 3], [0, 1, 2])


def test_catalog_text_and_bounds():
    catalog = Catalog.from_items(
        [Item("é", {"title": "Red shoe", "brand": "Ü"}), Item("b"), Item("c", image=b"x")]
    )
    assert catalog.text(0) == "Red shoe. Ü"
    assert catalog.text(0, ["brand", "missing"]) == "Ü"
    assert catalog.text(1) == ""
    assert catalog.image(1) is None
    assert catalog.index == {"é": 0, "b": 1, "c": 2}
    assert catalog.has_image.tolist() == [False, False, True]
    assert [item.id for item in catalog] == ["é", "b", "c"]
    with pytest.raises(IndexError):
        catalog[-1]
