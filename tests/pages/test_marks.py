"""Differences are marked where their interval excludes 0, on every page that shows some."""

import dataclasses
import json
import re

import pytest
from html_check import Page
from page_run import SYSTEMS, points

from mmsrec_jax.evaluation.comparison import compare
from mmsrec_jax.evaluation.comparison.presentation import Row
from mmsrec_jax.pages import compare_page, sweep_page

UP, NONE, DOWN = "up", "", "down"
BOUNDS = {
    (0.1, 0.2): UP, (1e-9, 0.2): UP, (-0.1, 0.2): NONE, (0.0, 0.2): NONE, (-0.2, 0.0): NONE,
    (-0.2, -0.1): DOWN, (-0.2, -1e-9): DOWN,
}  # fmt: skip


def mark(cell):
    """The mark of a difference, in a cell or wherever it stands."""
    (found,) = [span for span in cell.all("span") if re.fullmatch(r"[+-]\d\.\d{4}", span.text)]
    return " ".join(found.kinds)


def of(low, high):
    return UP if low > 0 else DOWN if high < 0 else NONE


def differences(page):
    """Every cell of a table with an interval."""
    cells = [*page.root.all("td")]
    return [cell for cell in cells if re.search(r"[+-]\d\.\d{4} to [+-]\d\.\d{4}$", cell.text)]


def test_on_the_page_of_a_run(done):
    run, _, page = done
    found = differences(page)
    seen = []
    for cell in found:
        value, low, high = map(float, re.findall(r"[+-]\d\.\d{4}", cell.text))
        assert low <= value <= high
        if 0 not in (low, high):  # rounded away
            assert mark(cell) == of(low, high), cell.text
            seen.append(mark(cell))
    assert {UP, NONE, DOWN} == set(seen) and len(seen) > len(SYSTEMS)
    (figures,) = page.root.all("div", "figures")
    (row,) = [row for row in page.cells("protocol full, best first") if row[0].text == "mmsrarec"]
    beside = list(figures.all("div", "beside"))
    assert [mark(each) for each in beside] == [mark(row[2]), mark(row[4])]
    assert [mark(row[2]), mark(row[4])] != [NONE, NONE]


@pytest.fixture
def compared(done, tmp_path):
    """A comparison of one run in which systems have the differences of `BOUNDS`."""
    run, *_ = done
    compare.run([run.folder], cutoffs=(10,), resamples=2, out=tmp_path)
    path = tmp_path / "comparison.json"
    found = json.loads(path.read_text())
    found["rows"] = [
        dataclasses.asdict(
            Row(
                protocol="full", slice="all", users=30, system=f"system{number}", seeds=1,
                metric=metric, value=0.5, sd=None, baseline="sasrec", difference=(low + high) / 2,
                low=low, high=high,
            )
        )
        for number, (low, high) in enumerate(BOUNDS)
        for metric in ("ndcg@10", "hr@10")
    ]  # fmt: skip
    path.write_text(json.dumps(found))
    return Page(compare_page.write(tmp_path, [run.folder]).read_text())


def test_on_the_page_of_a_comparison(compared):
    rows = compared.cells("30 users, protocol full, best first")[1:]
    assert [row[0].text for row in rows] == [f"system{n}" for n in range(len(BOUNDS))]
    assert [mark(row[2]) for row in rows] == [mark(row[4]) for row in rows] == [*BOUNDS.values()]


def test_on_the_page_of_a_sweep(tmp_path):
    rows, about = points(BOUNDS)
    page = Page(sweep_page.write(tmp_path, about, rows).read_text())
    assert page.problems == []
    lines = page.cells("30 users, protocol full")[1:]
    assert [line[0].text for line in lines] == [f"point{n}" for n in range(len(BOUNDS))]
    for line, kind in zip(lines, BOUNDS.values(), strict=True):
        assert [mark(cell) for cell in line if " to " in cell.text] == [kind, kind]
