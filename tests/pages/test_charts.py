"""Charts and markup: what is drawn is what was logged, what is text stays text."""

import json

import numpy as np
from html_check import Page

from mmsrec_jax.pages import charts, curves, document
from mmsrec_jax.pages.charts import Line
from mmsrec_jax.pages.markup import Html, element, joined


def test_text_is_escaped_and_markup_is_not():
    made = element("p", "<b>", Html("<i></i>"), None, ["&", 3], class_="a\"'", hidden=True, id=None)
    assert made == '<p class="a&quot;&#x27;" hidden>&lt;b&gt;<i></i>&amp;3</p>'
    assert joined("\u202e\x00\ud800") == "\\u202e\\u0000\\ud800"
    assert isinstance(joined(made), Html) and not isinstance(made.upper(), Html)


def test_thinning_keeps_ends_and_extremes():
    x = np.arange(100_000.0)
    y = np.sin(x / 3000) + np.random.default_rng(0).normal(0, 0.1, len(x))
    y[[31_234, 77_777]] = -40.0, 50.0
    kept_x, kept_y = charts.thinned(x, y)
    assert len(kept_x) <= charts.MOST_POINTS and (np.diff(kept_x) > 0).all()
    assert kept_x[0] == 0 and kept_x[-1] == x[-1] and {31_234, 77_777} <= set(kept_x.tolist())
    np.testing.assert_array_equal(y[kept_x.astype(int)], kept_y)
    few = charts.thinned(x[:200], y[:200])
    np.testing.assert_array_equal(few, (x[:200], y[:200]))


def test_a_line_is_drawn_where_its_values_are():
    x, y = np.array([0.0, 5.0, 10.0, 12.0]), np.array([1.0, np.nan, 3.0, np.inf])
    found = Page(
        document.document(
            "t",
            None,
            [
                document.Section(
                    "a",
                    "A",
                    element(
                        "div",
                        charts.line_chart(
                            "loss", [Line("a", x, y), Line("v", x, x, marked=True, color=9)]
                        ),
                    ),
                )
            ],
        )
    )
    assert found.problems == []
    path = next(given["d"] for tag, given in found.seen if tag == "path")
    (x0, y0), (x1, y1) = ([float(v) for v in point.split()] for point in path[1:].split("L"))
    grid = [
        (given, float(given["y1"])) for tag, given in found.seen if given.get("class") == "grid"
    ]
    assert x0 == 46.0 and x1 > x0 and y1 < y0 and len(grid) >= 3
    assert sum(tag == "circle" for tag, _ in found.seen) == 4
    label = next(given["aria-label"] for tag, given in found.seen if tag == "svg")
    assert label == "loss. a: 1 to 3; v: 0 to 12"


def test_ticks_are_round_numbers_within_the_range():
    assert charts.ticks(0.0, 1.0) == [0.0, 0.2, 0.4, 0.6000000000000001, 0.8, 1.0]
    for low, high in ((-3.7, 12.2), (1e-9, 2e-9), (1e6, 5e7)):
        found = charts.ticks(low, high)
        assert 2 <= len(found) <= 7 and low <= found[0] and found[-1] <= high
    told = [charts.short(v) for v in (0, 0.00012345, 12.345, 1234.6, 56_789, 2.5e9, 1e-12)]
    assert told == ["0", "0.000123", "12.3", "1,235", "56.8k", "2.5G", "1e-12"]


def test_long_logs_are_sampled_but_every_validation_is_read(tmp_path):
    lines = [{"step": n, "loss": float(n), "time/compilations": 1.0} for n in range(1, 50_001)]
    lines[7]["validation/ndcg@10"] = 0.5
    bad = 'no json\n[1]\n{"step": 3, "loss": "x"}\n'
    text = bad + "\n".join(map(json.dumps, lines)) + "\n"
    (tmp_path / "metrics.jsonl").write_text(text)
    found = curves.read(tmp_path / "metrics.jsonl")
    assert set(found) == {"loss", "validation/ndcg@10"}
    steps, values = found["loss"]
    assert len(steps) <= 2_002 and steps[-1] == 50_000 and (steps == values).all()
    np.testing.assert_array_equal(found["validation/ndcg@10"], [[8], [0.5]])
    assert curves.read(tmp_path / "none") == {}


def test_lines_of_other_scale_or_sign_are_drawn_apart():
    steps = np.arange(3.0)
    sizes = {"a": 1.0, "b": 100.0, "c": 2.0, "d": -1.5}
    lines = [Line(name, steps, np.full(3, size)) for name, size in sizes.items()]
    groups = [[line.name for line in group] for group in curves.by_scale(lines)]
    assert groups == [["a", "c"], ["b"], ["d"]]
    many = [Line(str(n), steps, np.ones(3)) for n in range(20)]
    assert max(map(len, curves.by_scale(many))) <= charts.COLORS


def test_what_is_0_throughout_is_named_and_not_drawn():
    steps = np.arange(4.0)
    found = curves.charts_of_step({"loss": (steps, steps), "loss/listwise": (steps, 0 * steps)})
    assert "0 throughout: loss/listwise." in found and found.count("<svg") == 1


def test_metrics_that_are_not_drawn_are_named_and_are_none_of_the_first():
    steps = np.arange(3.0)
    series = {f"extra/m{n}": (steps, steps + n) for n in range(70)}
    series |= {"loss": (steps, 1 / (1 + steps)), "still": (steps, np.zeros(3))}
    text = curves.charts_of_step(series)
    found = Page(document.document("t", [], [document.Section("s", "s", text)], None))
    assert "in metrics.jsonl and not drawn: extra/m59, extra/m60" in found.words
    assert found.problems == [] and "Loss" in found.words and "0 throughout: still." in found.words


def test_many_metrics_that_are_0_throughout_are_counted():
    steps = np.arange(3.0)
    text = curves.charts_of_step({f"{n}{'x' * 500}": (steps, 0 * steps) for n in range(200)})
    found = Page(document.document("t", [], [document.Section("s", "s", text)], None))
    assert "and 140 more." in found.words and len(text) < 10_000
