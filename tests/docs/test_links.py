"""What README and docs/ point at exists: links, anchors, files, functions, config fields, flags."""

import importlib
import re
from pathlib import Path

import pytest

from configs import base

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("examples/*.md")])
FOLDERS = ("launch", "configs", "mmsrec_jax", "tests", "benchmarks", "docs", "examples")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)|<(?:img|a) [^>]*(?:src|href)=\"([^\"]+)\"")
FILE = re.compile(rf"(?<![\w/.-])((?:{'|'.join(FOLDERS)})/[\w./-]*\w)(?:::(\w+))?")
PYTHON = re.compile(r"python[\d.]* ((?:launch|benchmarks|docs/figures|examples)/\w+\.py)(.*)")
FIELD = re.compile(r"(?<![\w/])config((?:\.[a-z_0-9]+)+)")


@pytest.fixture(params=PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def page(request):
    return request.param


def anchors(page):
    """The anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"^( {4}|```).*$", "", page.read_text(), flags=re.M)
    found, counts = set(), {}
    for heading in re.findall(r"^#+ +(.+?) *$", text, flags=re.M):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
        slug = re.sub(r"[^\w\- ]", "", words.lower()).replace(" ", "-")
        again = counts.get(slug, 0)
        counts[slug] = again + 1
        found.add(f"{slug}-{again}" if again else slug)
    return found


def commands(page):
    """(script, arguments) of every command line, its continuation lines included."""
    text = re.sub(r"\\\n\s*", " ", page.read_text())
    for script, arguments in PYTHON.findall(text):
        yield script, arguments.partition("#")[0].partition("`")[0]


def test_links_and_anchors_resolve(page):
    for link in filter(None, (found for pair in LINK.findall(page.read_text()) for found in pair)):
        if link.startswith(("http://", "https://", "mailto:")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


def test_files_and_what_they_should_define_exist(page):
    if page.name == "CHANGELOG.md":
        pytest.skip("names former files")
    for name, symbol in FILE.findall(page.read_text()):
        path = ROOT / name
        if "NAME" in name or "FOLDER" in name:  # for the reader to fill in
            continue
        assert path.exists(), name
        if symbol:
            defined = rf"^\s*(?:def|class) {symbol}\b|^{symbol}\b.* = "
            assert re.search(defined, path.read_text(), flags=re.M), f"{name}::{symbol}"


def test_config_fields_exist(page):
    if page.name in ("CHANGELOG.md", "CONTRIBUTING.md"):  # former names; names of what to add
        pytest.skip("names former fields, or fields to add")
    for dotted in FIELD.findall(page.read_text()):
        names = dotted.strip(".").removeprefix("mllm_srec.").split(".")  # it may have any field
        if names in (["json"], ["py"]):
            continue
        value = base.get_config()
        for name in names:
            assert hasattr(value, name), f"config{dotted}"
            value = getattr(value, name)


def test_flags_of_commands_exist(page):
    for script, arguments in commands(page):
        source = (ROOT / script).read_text()
        for flag in re.findall(r"(?<!\S)--([a-z_]+)", arguments.replace("--config.", "--config ")):
            assert re.search(rf'\(\s*"(?:--)?{flag}"', source), f"{script} has no flag --{flag}"


def test_configs_of_commands_exist(page):
    for _, arguments in commands(page):
        for name, variant in re.findall(r"--config=configs/(\w+)\.py(?::([\w=$.]+))?", arguments):
            if "$" in variant or "..." in variant:
                continue
            module = importlib.import_module(f"configs.{name}")
            module.get_config(variant) if variant else module.get_config()


def test_readme_fits_one_screen_or_two():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 130
