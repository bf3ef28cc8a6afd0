"""Pages in a real browser, at the width of a phone and of a desk.

Tests that need one are skipped where there is no Chromium (Debian: apt install chromium).
"""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

PROGRAM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
WIDTHS = (320, 1280)
needed = pytest.mark.skipif(
    not PROGRAM, reason="no Chromium on this machine: pages are not looked at"
)
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
      narrow: [...page.querySelectorAll("nav a, button")].filter((a) => a.offsetHeight < 24).length,
    });
    if (--left === 0) document.getElementById("found").textContent = JSON.stringify(found);
  };
  frame.src = "%s";
  document.body.append(frame);
}
</script>"""


def look(page: Path, folder: Path) -> list[dict]:
    """What the browser found at each width: nothing on the console, no script, no broken picture,
    no sideways scrolling, nothing too small for a thumb. folder: for its own files."""
    (folder / "frame.html").write_text(FRAME % (json.dumps(WIDTHS), page.as_uri()))
    shown = subprocess.run(
        [
            PROGRAM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
            "--allow-file-access-from-files", "--enable-logging=stderr",
            f"--user-data-dir={folder / 'browser'}", "--virtual-time-budget=10000",
            "--dump-dom", (folder / "frame.html").as_uri(),
        ],
        capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    said = [line for line in shown.stderr.splitlines() if "CONSOLE" in line]
    assert len(said) == 1 and "frame is here" in said[0], said
    found = json.loads(re.search(r'<pre id="found">(.*?)</pre>', shown.stdout)[1])
    assert sorted(frame["width"] for frame in found) == list(WIDTHS)
    for frame in found:
        assert frame["scroll"] <= frame["width"], frame
        assert frame["scripts"] == frame["broken"] == frame["narrow"] == 0, frame
    return found
