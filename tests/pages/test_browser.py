"""Every page that is a file, but that of `launch/recommend.py`, in a real browser."""

import browser
import page_run
import pytest

from configs import base
from mmsrec_jax.evaluation.comparison import compare
from mmsrec_jax.methods import data_commands, page
from mmsrec_jax.pages import compare_page, sweep_page


def page_of_data(folder):
    config = base.get_config("sasrec")
    config.data.source = "toyshop"
    config.data.toyshop.update(num_users=60, num_items=40, num_groups=3)
    look = data_commands.Look(config)
    look.write_page(folder / "data.html", look.stats(tokenizer="", users=3, seed=0), "the command")
    return folder / "data.html"


@browser.needed
def test_pages_are_sound_on_a_phone_and_a_desk_light_and_dark(tmp_path):
    run = page_run.PageRun(tmp_path / "shop", page_run.config())
    run.run()
    out, sweep = tmp_path / "comparison", tmp_path / "sweep"
    compare.run([run.folder], baseline="sasrec", cutoffs=(5, 10), resamples=50, out=out)
    rows, about = page_run.points({(0.1, 0.2): "", (-0.1, 0.2): "", (-0.2, -0.1): ""})
    found = browser.look(
        [
            page.write(run.folder),
            compare_page.write(out, [run.folder]),
            sweep_page.write(sweep, about, rows),
            page_of_data(tmp_path),
        ],
        tmp_path,
    )
    titles = {name: frames[0]["title"] for name, frames in found.items()}
    assert titles == {
        "report.html": "shop: mmsrarec", "comparison.html": "Comparison",
        "sweep.html": "Sweep dims", "data.html": "Data",
    }  # fmt: skip
    assert all((frame["up"], frame["down"]) == (2, 2) for frame in found["sweep.html"])
    for name in ("report.html", "comparison.html", "sweep.html"):
        assert all(frame["up"] and frame["down"] for frame in found[name]), name
        assert all(set(frame["faint"]) == {"text", "large", "line"} for frame in found[name]), name
    for name in ("report.html", "data.html"):
        assert all(frame["images"] > 5 for frame in found[name])


def test_a_browser_that_has_to_be_there_is_missed(monkeypatch, tmp_path):
    assert browser.is_skipped("", {}) and not browser.is_skipped("chromium", {})
    assert not browser.is_skipped("", {"NEEDS_BROWSER": "1"})
    monkeypatch.setattr(browser, "PROGRAM", "")
    with pytest.raises(AssertionError, match="NEEDS_BROWSER is set and there is no Chromium"):
        browser.look([], tmp_path)
