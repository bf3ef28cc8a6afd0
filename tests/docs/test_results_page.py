"""docs/results.md: no section with numbers is missing, and no number is stale."""

import re
import subprocess

import pytest
from test_links import ROOT, anchors, commands

PAGE = ROOT / "docs" / "results.md"
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
# Pages whose numbers are defaults, the papers' or limits, and no measurements of ours.
NOT_MEASURED = ("configuration", "paper-to-code", "rewards", "architecture", "faq", "results")
# Sections of other pages whose tables have such numbers and no measurement.
DEFINITIONS = {("evaluation.md", "protocols")}
TOOL = re.compile(r"((?:launch|benchmarks)/[\w/]+\.py)|\bmake ([a-z][a-z-]+)\b")
MEASURED = re.compile(r"(?<![\w.])\d{0,3}\.\d+(?![\w.])|(?<![\w.,])\d{1,3}(?:,\d{3})+(?!\w)")


def sections(page):
    """(anchor, text) of every section of a page."""
    parts = re.split(r"^#+ +(.+?) *$", page.read_text(), flags=re.M)
    for title, text in zip(parts[1::2], parts[2::2], strict=True):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title).replace("`", "")
        yield re.sub(r"[^\w\- ]", "", words.lower()).replace(" ", "-"), text


def tools(text):
    """Scripts and targets of make that a text names."""
    named = {script or f"make {target}" for script, target in TOOL.findall(text)}
    for target, recipe in re.findall(r"^([a-z-]+):.*\n((?:\t.*\n)+)", makefile(), flags=re.M):
        if f"make {target}" in named:
            named |= {script for script, _ in TOOL.findall(recipe) if script}
    return named


def makefile():
    return (ROOT / "Makefile").read_text()


def rows():
    """(page, anchor, the tools it says) of every row of the table."""
    for line in PAGE.read_text().splitlines():
        if line.startswith("| ["):
            link, said, _ = line.split(" | ")
            target, _, anchor = re.search(r"\]\(([^)]+)\)", link)[1].partition("#")
            yield (PAGE.parent / target).resolve(), anchor, tools(said)


def test_every_section_with_measured_numbers_has_a_row():
    listed = {(page, anchor) for page, anchor, _ in rows()}
    missing = []
    for page in PAGES:
        if page.stem in NOT_MEASURED:
            continue
        for anchor, text in sections(page):
            tables = [line for line in text.splitlines() if line.startswith("|")]
            counts = any(MEASURED.search(line) for line in tables) or "    python bench" in text
            defines = (page.name, anchor) in DEFINITIONS
            if counts and not defines and (page, anchor) not in listed:
                missing.append(f"{page.name}#{anchor}")
    assert not missing and len(listed) > 25


def test_every_section_names_what_its_row_says():
    for page, anchor, said in rows():
        (text,) = [text for name, text in sections(page) if name == anchor]
        assert anchor in anchors(page) and said and said <= tools(text), anchor


def test_a_section_that_is_missing_would_be_seen(monkeypatch):
    full = list(rows())
    monkeypatch.setitem(globals(), "rows", lambda: full[5:])
    with pytest.raises(AssertionError, match="toyshop"):
        test_every_section_with_measured_numbers_has_a_row()


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=str
)
def test_scripts_flags_and_targets_that_are_named_exist(page):
    """Those within sentences too; tests/docs/test_links.py has the commands that begin a line."""
    text = re.sub(r"\\\n\s*", " ", page.read_text())
    for script, arguments in re.findall(r"`((?:launch|benchmarks)/[\w/]+\.py)([^`]*)`", text):
        source = (ROOT / script).read_text()
        for flag in re.findall(r"(?<!\S)--([a-z_]+)", arguments.replace("--config.", "--config ")):
            assert re.search(rf'"(?:--)?{flag}"', source), f"{script} has no flag --{flag}"
    for target in re.findall(r"(?:^ {4}|`)make ([a-z][a-z-]*)", text, flags=re.M):
        assert re.search(rf"^{target}:", makefile(), flags=re.M), f"make {target}"


def test_make_results_runs_the_block_of_the_page():
    said = subprocess.run(
        ["make", "--dry-run", "--old-file=.venv/.installed-torch", "results"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    (read,) = re.findall(r"sed -n '[^']*' docs/results.md", said)
    block = subprocess.run(["sh", "-c", read], cwd=ROOT, capture_output=True, text=True).stdout
    assert subprocess.run(["sh", "-n"], input=block, text=True).returncode == 0
    lines = block.splitlines()
    assert len(lines) > 15 and all(re.search(r"\bpython (launch|benchmarks)/", x) for x in lines)
    assert len(lines) == len(list(commands(PAGE)))


def table(page, anchor):
    """First cell -> the others of the first table of a section, without marks."""
    (text,) = [text for name, text in sections(page) if name == anchor]
    cells = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    return {row[0].strip(" *"): [cell.strip(" *") for cell in row[1:]] for row in cells}


def test_numbers_that_stand_in_two_places_are_the_same():
    readme, evaluation = (ROOT / "README.md").read_text(), ROOT / "docs" / "evaluation.md"
    flat = " ".join(readme.split())
    shop = table(evaluation, "rows-on-a-shop-that-nothing-was-chosen-on")
    assert f"Molar has {shop['molar'][0]} there and HM4SR {shop['hm4sr'][0]}" in flat
    assert f"of Bayes {shop['bayes_learned_groups'][1]}" in flat
    beauty = table(evaluation, "sequential-models-on-amazon-beauty")
    assert f"NDCG@10 {beauty['SASRec, full softmax (`beauty.py:sasrec`)'][1]}" in flat
