"""The pages of a run and of a comparison in a real browser."""

import browser
import page_run

from mmsrec_jax.evaluation.comparison import compare
from mmsrec_jax.methods import page
from mmsrec_jax.pages import compare_page


@browser.needed
def test_pages_fit_a_phone_and_say_nothing_on_the_console(tmp_path):
    run = page_run.PageRun(tmp_path / "shop", page_run.config())
    run.run()
    out = tmp_path / "comparison"
    compare.run([run.folder], cutoffs=(5, 10), resamples=50, out=out)
    for path in (page.write(run.folder), compare_page.write(out, [run.folder])):
        found = browser.look(path, tmp_path)
        assert all(frame["height"] > 900 for frame in found)
    assert found[0]["title"] == "Comparison"
