"""A data set before training: numbers by hand, planted faults by line, leaks by brute force."""

import dataclasses
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from image_server import PICTURE, jpeg

from mmsrec_jax.data import build, splits
from mmsrec_jax.data.build import DataSettings
from mmsrec_jax.data.inspection import leaks, numbers, problems, samples
from mmsrec_jax.data.inspection.findings import Findings
from mmsrec_jax.data.inspection.items import ItemTexts
from mmsrec_jax.data.inspection.tables import Table
from mmsrec_jax.data.records import Histories, Split
from mmsrec_jax.pages import data_page
from mmsrec_jax.runtime.errors import UserError

DAY = 86_400
HOSTILE = '<script>alert(1)</script>"><img src=http://evil.example/x onerror=alert(2)>\u202e'


def write_shop(
    root: Path,
    rows: list[tuple[str, str, float]],
    items: dict[str, str],
    images: dict[str, bytes] | None = None,
) -> DataSettings:
    """rows: (user, item, time); items: id -> title."""
    (root / "images").mkdir(parents=True)
    lines = [f"{user}\t{item}\t{time}\n" for user, item, time in rows]
    head = "user_id:token\titem_id:token\ttimestamp:float\n\n"  # an empty line: rows are not lines
    (root / f"{root.name}.inter").write_text(head + "".join(lines))
    table = "".join(f"{id}\t{title}\n" for id, title in items.items())
    (root / f"{root.name}.item").write_text("item_id:token\ttitle:token_seq\n" + table)
    for name, data in (images or {}).items():
        (root / "images" / name).write_bytes(data)
    return DataSettings(root=str(root), user_core=1, item_core=1)


def sound_rows(users: int = 3, length: int = 4) -> list[tuple[str, str, float]]:
    """u0 has i0, i1, ...; u1 has i1, i2, ...; a day between choices."""
    start = 1_600_000_000
    return [
        (f"u{u}", f"i{u + k}", start + DAY * k) for u in range(users) for k in range(length)
    ]  # fmt: skip


ITEMS = {f"i{i}": f"lamp number {i}" for i in range(6)}


def look(settings: DataSettings):
    prepared = build.read(settings)
    items = prepared.items.without_images()
    return prepared, ItemTexts(items, prepared.dataset.catalog.has_image)


def check(settings: DataSettings) -> Findings:
    return problems.check(settings, *look(settings))


def test_a_sound_shop_has_no_problems(tmp_path):
    images = {f"i{i}.jpg": jpeg(seed=i) for i in range(6)}
    found = check(write_shop(tmp_path / "shop", sound_rows(), ITEMS, images))
    assert not found.problems and not found.notes


@pytest.mark.parametrize(
    ("change", "where", "what"),
    [
        (lambda rows: [(u, i, t * 1000) for u, i, t in rows], ":6", "is no number of seconds"),
        (lambda rows: [*rows, ("u0", "i5", 99e8)], ":15", "timestamp 9900000000 is in the future"),
        (lambda rows: [*rows, ("u0", "i5", 0)], ":15", "timestamp 0 is no time"),
        (lambda rows: [*rows, ("u0 ", "i5", 16e8)], ":15", "user_id 'u0 ' has a blank"),
        (lambda rows: [*rows, ("17.0", "i5", 16e8)], ":15", "user_id '17.0' is a number with"),
        (lambda rows: [(i, u, t) for u, i, t in rows], ":3", "item 'u0' has no row in shop.item"),
    ],
)
def test_faults_of_files_are_named_with_their_line(tmp_path, change, where, what):
    found = check(write_shop(tmp_path / "shop", change(sound_rows()), ITEMS))
    assert len(found.problems) == 1, list(map(str, found.problems))
    assert found.problems[0].where.endswith(where) and what in found.problems[0].what


def test_swapped_columns_are_told_apart_from_other_ids(tmp_path):
    swapped = [(i, u, t) for u, i, t in sound_rows()]
    assert "swapped?" in check(write_shop(tmp_path / "shop", swapped, ITEMS)).problems[0].remedy
    others = [(u, f"B00{i}", t) for u, i, t in sound_rows()]
    assert "same ids?" in check(write_shop(tmp_path / "shop2", others, ITEMS)).problems[0].remedy


def test_many_faults_of_a_kind_are_few_lines(tmp_path):
    rows = [(f"{n}.0", f"i{n % 6}", 1.6e9) for n in range(40)]
    found = check(write_shop(tmp_path / "shop", rows, ITEMS)).problems
    ids = [f for f in found if "user_id" in f.what]
    assert len(ids) == 6 and "35 more ids of user_id like that" in ids[-1].what


def test_pictures_and_texts(tmp_path):
    items = ITEMS | {"i1": "A &amp; B", "i2": "", "i3": "lamp number 4"}
    images = {"i0.jpg": PICTURE[:-50], "i4.jpg": b"<html>", "i5.jpg": PICTURE, "other.jpg": PICTURE}
    found = check(write_shop(tmp_path / "shop", sound_rows(), items, images))
    assert {Path(f.where).name for f in found.problems} == {"i0.jpg", "i4.jpg"}
    notes = "\n".join(map(str, found.notes))
    assert "item 'i2': has neither text nor picture; so do 1 items" in notes
    assert "item 'i1': its text has markup such as '&amp;'" in notes
    assert "item 'i3': has the same text as another item; so do 2 items" in notes
    assert "1 image files of no item, unused" in notes
    assert "3 of 6 items have no picture, such as 'i1'; they are shown by their texts" in notes
    assert "config.data.images_root" not in notes


def test_a_folder_of_pictures_that_was_not_found_is_a_note(tmp_path):
    settings = write_shop(tmp_path / "shop", sound_rows(), ITEMS)
    assert "6 of 6 items have no picture" in (note := str(check(settings).notes[0]))
    assert "name their folder in config.data.images_root" in note
    (tmp_path / "shop" / "images").rename(tmp_path / "photos")
    for item in ITEMS:
        (tmp_path / "photos" / f"{item}.png").write_bytes(jpeg(seed=1))
    found = check(dataclasses.replace(settings, images_root=str(tmp_path / "photos")))
    assert not found.problems and not found.notes


def test_pictures_that_are_called_otherwise(tmp_path):
    found = check(write_shop(tmp_path / "shop", sound_rows(), ITEMS, {"pic_i1.jpg": PICTURE}))
    assert "none of its 1 images is called as an item" in found.problems[0].what


def test_repeated_rows_are_a_note(tmp_path):
    rows = sound_rows()
    found = check(write_shop(tmp_path / "shop", [*rows, rows[0], rows[1]], ITEMS))
    assert not found.problems
    assert any("stands above too" in f.what and f.where.endswith(":15") for f in found.notes)


def random_histories(seed: int) -> Histories:
    """Repeated items, equal times and short histories, which real ones do not all have."""
    rng = np.random.default_rng(seed)
    users = rng.integers(0, 12, 90)
    times = rng.integers(0, 40, 90) * 1000.0 + 5
    return Histories.from_rows(
        [f"u{u}" for u in range(12)], users, rng.integers(0, 15, 90), times, clock=True
    )


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", ["leave_one_out", "global_time"])
def test_leaks_as_counted_by_hand(seed, kind):
    histories = random_histories(seed)
    if kind == "leave_one_out":
        split = splits.leave_one_out(histories)
    else:
        split = splits.global_time(histories, validation_quantile=0.5, test_quantile=0.8)
    trained = [
        (histories.of(u)[p], histories.times(u)[p])
        for u in range(len(histories))
        for p in range(split.train_end[u])
    ]
    for name, part in leaks.parts(histories, split).items():
        for k, (user, position) in enumerate(getattr(split, name)):
            items, times = histories.of(user), histories.times(user)
            item, time = items[position], times[position]
            assert part.cold[k] == (item not in {i for i, _ in trained})
            assert part.in_own_input[k] == (item in items[:position])
            assert part.tied[k] == (times[position - 1] == time)
            assert part.before_training[k] == any(time < t for _, t in trained)
        if kind == "global_time":
            assert not part.before_training.any()


def test_a_split_that_leaks_is_a_problem(tmp_path, monkeypatch):
    """Training of one user reaches behind the targets of others."""
    settings = write_shop(tmp_path / "shop", sound_rows(), ITEMS)
    prepared, texts = look(settings)
    histories, split = prepared.dataset.histories, prepared.dataset.split
    wrong = Split(split.train, split.validation, split.test, "global_time", histories.lengths)
    prepared = prepared._replace(dataset=prepared.dataset._replace(split=wrong))
    found = problems.check(settings, prepared, texts).problems
    assert "user 'u0', item 'i2'" in found[0].where
    assert "the validation target is earlier than training" in found[0].what


def table(tables: list[Table], title: str) -> dict:
    return next(found.json() for found in tables if found.title == title)


def test_numbers_by_hand(tmp_path):
    rows = [*sound_rows(), ("u9", "i0", 1.6e9), ("u9", "i1", 1.6e9)]
    items = ITEMS | {"i5": ""}
    settings = write_shop(tmp_path / "shop", rows, items, {"i0.jpg": PICTURE})
    prepared, texts = look(settings)

    def words(values, add_special_tokens):
        assert not add_special_tokens
        return {"input_ids": [value.split() for value in values]}

    found = numbers.tables(prepared, texts, words, prompt_fields=("title", "no"), text_tokens=2)
    assert table(found, "read and dropped")["kept"] == {"users": 4, "items": 6, "interactions": 14}
    has = {name: row["items"] for name, row in table(found, "what items have").items()}
    assert has == {"text title": 5, "picture": 1, "no text": 1, "neither text nor picture": 1}
    lengths = table(found, "lengths")
    assert lengths["interactions of a user"]["mean"] == 3.5
    days = lengths["days of a history"]
    assert (days["min"], days["median"], days["mean"], days["max"]) == (0, 3, 2.25, 3)
    assert table(found, "users by interactions") == {
        "2": {"users": 1, "share": 0.25}, "3 to 4": {"users": 3, "share": 0.75},
    }  # fmt: skip
    time = {name: row[""] for name, row in table(found, "time").items()}
    assert time["first"] == "2020-09-13 12:26" and time["days"] == 3
    assert time["interactions at the time of another of the same user"] == 2 / 14
    assert time["users with such"] == 1 / 4
    # u0 trains on i0, i1; u1 on i1, i2; u2 on i2, i3; u9, too short to be tested, on i0, i1.
    test = table(found, "split leave_one_out")["test"]
    assert test["targets"] == 3 and test["of items no training interaction has"] == 2 / 3
    tokens = table(found, "tokens")["title (as in a prompt)"]
    assert tokens["median"] == 3 and tokens["over 2"] == 1
    assert all(Table.text(each) for each in found)


def test_histories_show_what_is_predicted(tmp_path):
    prepared, _ = look(write_shop(tmp_path / "shop", sound_rows(), ITEMS))
    found = samples.of_user(prepared, "u1")
    assert [choice.id for choice in found.choices] == ["i1", "i2", "i3", "i4"]
    assert [choice.part for choice in found.choices] == ["train", "train", "validation", "test"]
    assert found.choices[1].pause == "one day later"
    assert "2020-09-16 12:26  i4  lamp number 4  (no picture)  <- test" in found.text()
    assert len(samples.draw(prepared, 2, 0)) == 2
    with pytest.raises(UserError, match="did you mean 'u1'"):
        samples.of_user(prepared, "U1")


class _Page(HTMLParser):
    """Every tag and attribute, and the text."""

    def __init__(self, page: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.said = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.said += data


def test_the_page_holds_hostile_texts_as_text(tmp_path):
    items = {id: f"{HOSTILE} {title}" for id, title in ITEMS.items()}
    images = {f"i{i}.jpg": jpeg(seed=i) for i in range(5)} | {"i1.jpg": b"no picture"}
    settings = write_shop(tmp_path / "shop", sound_rows(), items, images)
    users = "".join(f"u{u}\tmotto {u} {HOSTILE}\n" for u in range(3))
    (tmp_path / "shop" / "shop.user").write_text(f"user_id:token\tmotto:token_seq\n{users}")
    settings = dataclasses.replace(settings, user_fields=("motto",))
    prepared, texts = look(settings)
    histories = samples.draw(prepared, 3, 0)
    assert [history.stated["motto"][:7] for history in histories] == [
        f"motto {u}" for u in range(3)
    ]
    told = {
        "tables": numbers.tables(prepared, texts, None, prompt_fields=(), text_tokens=9),
        "findings": problems.check(settings, prepared, texts),
    }
    page = data_page.page(HOSTILE, HOSTILE, prepared.dataset.catalog, histories=histories, **told)
    found = _Page(page)
    assert not {"script", "iframe", "object"} & {tag for tag, _ in found.tags}
    for tag, attributes in found.tags:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href"):
            link = attributes.get(name) or "#"
            assert link.startswith(("data:", "#")), (tag, link)
    pictures = [a for tag, a in found.tags if tag == "img"]
    assert len(pictures) == sum(c.has_image and c.id != "i1" for h in histories for c in h.choices)
    assert "<script>alert(1)</script>" in found.said and "\u202e" not in page
    assert all(f"motto {u} <script>alert(1)" in found.said for u in range(3))
    assert found.said.count("i1.jpg") == 1 and "unreadable" in found.said
    assert any(a.get("name") == "viewport" for _, a in found.tags)
