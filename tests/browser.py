"""Pages in a real browser, at the width of a phone and of a desk, light and dark.

Tests that need one are skipped where there is no Chromium (Debian: apt install chromium), and fail
there when NEEDS_BROWSER is set, as in the GitHub workflow. With SHOTS=FOLDER they keep pictures of
what they saw.
"""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

PROGRAM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
WIDTHS, THEMES, HEIGHT = (320, 1280), ("light", "dark"), 2000


def is_skipped(program: str, environment: Mapping[str, str]) -> bool:
    """Whether pages are not looked at."""
    return not program and not environment.get("NEEDS_BROWSER")


needed = pytest.mark.skipif(
    is_skipped(PROGRAM, os.environ), reason="no Chromium on this machine: pages are not looked at"
)
# Frames of several widths and themes, and what the browser made of the page in each. A frame
# prefers the theme that the element around it has.
FRAME = """<!DOCTYPE html><meta charset="utf-8"><meta name="color-scheme" content="light dark">
<style>body { margin: 0; display: grid; grid-template-columns: 320px 1280px; gap: 10px }
iframe { border: 0; height: %dpx }</style>
<body><pre id="found" style="display: none"></pre><script>
console.log("frames are here");
const asked = %s, found = [];
let left = asked.length;

function channels(color) {
  const [r, g, b, a = 1] = color.match(/[\\d.]+/g).map(Number);
  return {light: [r, g, b].map((c) => c / 255).map(
    (c) => c <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4
  ).reduce((sum, c, i) => sum + c * [.2126, .7152, .0722][i], 0), a};
}
function behind(view, element) {
  for (let each = element; each; each = each.parentElement) {
    const found = channels(view.getComputedStyle(each).backgroundColor);
    if (found.a === 1) return found.light;
    if (found.a > 0) return NaN;
  }
  return NaN;
}
function contrast(view, element, color) {
  const pair = [channels(color).light, behind(view, element)].sort((a, b) => b - a);
  return (pair[0] + .05) / (pair[1] + .05);
}
// The words, or lines of a chart, that are hardest to tell from what is behind them.
function faint(view) {
  const page = view.document, worst = {};
  const note = (kind, ratio, what) => {
    if (!(kind in worst) || !(ratio >= worst[kind].ratio)) worst[kind] = {ratio, what};
  };
  const texts = page.createTreeWalker(page.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const text = texts.currentNode.data.trim(), element = texts.currentNode.parentElement;
    if (!text || !element.getClientRects().length || element.closest(".skip")) continue;
    const style = view.getComputedStyle(element);
    const color = element.ownerSVGElement ? style.fill : style.color;
    const size = parseFloat(style.fontSize), bold = style.fontWeight >= 700;
    const kind = size >= 24 || (bold && size >= 18.66) ? "large" : "text";
    note(kind, contrast(view, element, color), text.slice(0, 60));
  }
  for (const line of page.querySelectorAll("svg .line, svg .dot")) {
    const style = view.getComputedStyle(line);
    const color = line.matches(".dot") ? style.fill : style.stroke;
    note("line", contrast(view, line.ownerSVGElement, color), line.getAttribute("class"));
  }
  return worst;
}
function marks(view, kind, sign) {
  const marked = [...view.document.querySelectorAll(kind)];
  return marked.filter((e) => view.getComputedStyle(e, "::before").content.includes(sign)).length;
}
for (const {address, name, width, theme} of asked) {
  const frame = document.createElement("iframe");
  frame.style = `width: ${width}px; color-scheme: ${theme}`;
  frame.onload = () => {
    const view = frame.contentWindow, page = frame.contentDocument;
    for (const folded of page.querySelectorAll("details")) folded.open = true;
    found.push({
      name, width, theme, scroll: page.documentElement.scrollWidth, title: page.title,
      is_dark: view.matchMedia("(prefers-color-scheme: dark)").matches,
      background: behind(view, page.body), faint: faint(view),
      up: marks(view, ".up", "\\u25B2"), down: marks(view, ".down", "\\u25BC"),
      scripts: page.scripts.length, broken: [...page.images].filter((i) => !i.naturalWidth).length,
      images: page.images.length, height: page.documentElement.scrollHeight,
      narrow: [...page.querySelectorAll("nav a, button")].filter((a) => a.offsetHeight < 24).length,
    });
    if (--left === 0) document.getElementById("found").textContent = JSON.stringify(found);
  };
  frame.src = address;
  document.body.append(frame);
}
</script>"""
# WCAG 2.2 AA, 1.4.3 and 1.4.11.
CONTRAST = {"text": 4.5, "large": 3.0, "line": 3.0}


def look(pages: Sequence[Path], folder: Path) -> dict[str, list[dict]]:
    """What the browser found in each frame, by the name of the page: nothing on the console, no
    script, no broken picture, no sideways scrolling, nothing too small for a thumb, the theme that
    was asked for, nothing too faint to read. folder: for its own files."""
    assert PROGRAM, "NEEDS_BROWSER is set and there is no Chromium; apt install chromium"
    shown, said = _open(pages, folder)
    assert len(said) == 1 and "frames are here" in said[0], said
    found = json.loads(re.search(r'<pre id="found"[^>]*>(.*?)</pre>', shown)[1])
    assert len(found) == len(pages) * len(WIDTHS) * len(THEMES)
    for frame in found:
        assert frame["scroll"] <= frame["width"], frame
        assert frame["scripts"] == frame["broken"] == frame["narrow"] == 0, frame
        assert frame["is_dark"] == (frame["theme"] == "dark"), frame
        assert frame["background"] < 0.02 if frame["is_dark"] else frame["background"] > 0.9, frame
        for kind, least in frame["faint"].items():
            assert least["ratio"] and least["ratio"] >= CONTRAST[kind], (frame, kind)
    if shots := os.environ.get("SHOTS"):
        for page in pages:
            _open([page], folder, Path(shots).resolve() / f"{page.stem}.png")
    return {page.name: [frame for frame in found if frame["name"] == page.name] for page in pages}


def _open(pages: Sequence[Path], folder: Path, shot: Path | None = None) -> tuple[str, list[str]]:
    """The document of frames after all have loaded, and the lines on the console. shot: where a
    picture of it goes."""
    asked = [
        {"address": page.as_uri(), "name": page.name, "width": width, "theme": theme}
        for page in pages
        for theme in THEMES
        for width in WIDTHS
    ]
    (folder / "frames.html").write_text(FRAME % (HEIGHT, json.dumps(asked)))
    picture = []
    if shot is not None:
        shot.parent.mkdir(parents=True, exist_ok=True)
        size = f"{sum(WIDTHS) + 10},{(HEIGHT + 10) * len(THEMES)}"
        picture = [f"--screenshot={shot}", f"--window-size={size}"]
    shown = subprocess.run(
        [
            PROGRAM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
            "--allow-file-access-from-files", "--enable-logging=stderr",
            f"--user-data-dir={folder / 'browser'}", "--virtual-time-budget=10000",
            "--dump-dom", *picture, (folder / "frames.html").as_uri(),
        ],
        capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    return shown.stdout, [line for line in shown.stderr.splitlines() if "CONSOLE" in line]
