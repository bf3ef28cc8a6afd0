"""Pages in a real browser: no message on the console, no sideways scrolling on a phone.

Skipped where there is no Chromium (Debian: apt install chromium).
"""

import json
import re
import shutil
import subprocess

import page_run
import pytest

from mmsrec_jax.evaluation.comparison import compare
from mmsrec_jax.methods import page
from mmsrec_jax.pages import compare_page

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
WIDTHS = (320, 1280)
# Frames of several widths, and what the browser made of the page in each.
FRAME = """<!DOCTYPE html><meta charset="utf-8"><body><pre id="found"></pre><script>
console.log("frame is here");
const widths = %s, found = [];
let left = widths.length;
for (const width of widths) {
  const frame = document.createElement("iframe");
  frame.style = `width:${width}px;height:900px`;
  frame.onload = () => {
    const page = frame.contentDocument;
    for (const folded of page.querySelectorAll("details")) folded.open = true;
    found.push({
      width, scroll: page.documentElement.scrollWidth, title: page.title,
      scripts: page.scripts.length, broken: [...page.images].filter((i) => !i.naturalWidth).length,
      images: page.images.length, height: page.documentElement.scrollHeight,
      narrow: [...page.querySelectorAll("nav a")].filter((a) => a.offsetHeight < 24).length,
    });
    if (--left === 0) document.getElementById("found").textContent = JSON.stringify(found);
  };
  frame.src = "%s";
  document.body.append(frame);
}
</script>"""


@pytest.mark.skipif(not BROWSER, reason="no Chromium on this machine: pages are not looked at")
def test_pages_fit_a_phone_and_say_nothing_on_the_console(tmp_path):
    run = page_run.PageRun(tmp_path / "shop", page_run.config())
    run.run()
    out = tmp_path / "comparison"
    compare.run([run.folder], cutoffs=(5, 10), resamples=50, out=out)
    for path in (page.write(run.folder), compare_page.write(out, [run.folder])):
        (tmp_path / "frame.html").write_text(FRAME % (json.dumps(WIDTHS), path.as_uri()))
        shown = subprocess.run(
            [
                BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
                "--allow-file-access-from-files", "--enable-logging=stderr",
                f"--user-data-dir={tmp_path / 'browser'}", "--virtual-time-budget=10000",
                "--dump-dom", (tmp_path / "frame.html").as_uri(),
            ],
            capture_output=True, text=True, timeout=100,
        )  # fmt: skip
        said = [line for line in shown.stderr.splitlines() if "CONSOLE" in line]
        assert len(said) == 1 and "frame is here" in said[0], said
        found = json.loads(re.search(r'<pre id="found">(.*?)</pre>', shown.stdout)[1])
        assert sorted(frame["width"] for frame in found) == list(WIDTHS)
        for frame in found:
            assert frame["scroll"] <= frame["width"], frame
            assert frame["scripts"] == frame["broken"] == frame["narrow"] == 0
            assert frame["height"] > 900
    assert found[0]["title"] == "Comparison"
