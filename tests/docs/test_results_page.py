"""docs/results.md: no section with numbers is missing, and no number is stale."""

import csv
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
THREE = re.compile(r"(?<![\w./:])\d?\.\d{3,}(?!\w)")  # decimals
TOOL = re.compile(r"((?:launch|benchmarks)/[\w/]+\.py)|\bmake ([a-z][a-z-]+)\b")
# Numbers of README's sentences that neither docs/evaluation.md nor the figure's table has.
PRINTED_BY = {
    'launch/train.py --config=configs/quickstart.py --config.seed=3 --config.seeds="(3, 4, 5)" '
    "--config.use.plain_sft=False": (
        ".898 .107 .146 .082 .066 .100 .0758 .0472 .029 .0267 .049 .040"
    ).split(),
}
ROUNDED = {".028": ".0281", ".030": ".0303"}  # in docs/evaluation.md with one digit more
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


def lines():
    """(page, anchor, what makes it, what it needs) of every row of the table."""
    for line in PAGE.read_text().splitlines():
        if line.startswith("| ["):
            link, said, needs = line.strip(" |").split(" | ")
            target, _, anchor = re.search(r"\]\(([^)]+)\)", link)[1].partition("#")
            yield (PAGE.parent / target).resolve(), anchor, said, needs


def rows():
    """(page, anchor, the tools it says) of every row of the table."""
    for page, anchor, said, _ in lines():
        yield page, anchor, tools(said)


def section(page, anchor):
    (text,) = [text for name, text in sections(page) if name == anchor]
    return text


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
        assert anchor in anchors(page) and said and said <= tools(section(page, anchor)), anchor


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


def block():
    """Scripts, workdirs and comparisons of the commands that make results runs."""
    text = section(PAGE, "on-a-cpu")
    commands_of_it = "\n".join(line for line in text.splitlines() if line.startswith("    "))
    return tools(commands_of_it), workdirs(commands_of_it), comparisons(commands_of_it)


def workdirs(text):
    return set(re.findall(r"--workdir=([\w./$-]+)", text))


def comparisons(text):
    whole = re.sub(r"\\\n\s*", " ", text)
    found = re.findall(r"python launch/evaluate\.py (--compare [^#;\n]*)", whole)
    return {" ".join(line.split()) for line in found}


def test_what_needs_a_cpu_alone_is_run_by_make_results_or_by_itself():
    scripts, folders, compared = block()
    reasons = re.findall(r"^- (.*)$", section(PAGE, "on-a-cpu"), flags=re.M)
    alone = 0
    for page, anchor, said, needs in lines():
        named = tools(said)
        if needs == "a CPU, by itself":
            alone += 1
            (reason,) = (text for text in reasons if said in text)
            assert len(reason) > len(said) + 30
        elif needs in ("a CPU", "a CPU, torch"):
            assert {name for name in named if name.endswith(".py")} <= scripts, said
            text = said if "--workdir" in said else section(page, anchor)
            assert workdirs(text) <= folders and comparisons(text) <= compared, anchor
    assert alone == len(reasons) == 5


def table(page, anchor):
    """First cell -> the others of the first table of a section, without marks."""
    first = re.search(r"^(?:\|.*\n)+", section(page, anchor), flags=re.M)[0]
    cells = [line.strip("|").split("|") for line in first.splitlines()]
    return {row[0].strip(" *"): [cell.strip(" *") for cell in row[1:]] for row in cells}


def told(cell):
    """ ".078 [.060, .096]" as README says it."""
    return re.sub(r" \[(\S+), (\S+)\]", r" (\1 to \2)", cell)


def rounded(cell):
    """The same with three decimals."""
    return re.sub(r"\d*\.\d+", lambda found: f"{float(found[0]):.3f}".lstrip("0"), cell)


def test_what_the_readme_says_of_a_row_is_what_the_row_says():
    readme, evaluation = (ROOT / "README.md").read_text(), ROOT / "docs" / "evaluation.md"
    flat = " ".join(readme.split())
    shop = table(evaluation, "rows-on-a-shop-that-nothing-was-chosen-on")
    assert f"Molar has {shop['molar'][0]} there and HM4SR {shop['hm4sr'][0]}" in flat
    below = [shop[name][2].split()[0] for name in ("molar", "hm4sr")]
    assert f"{below[0]} and {below[1]} below" in flat
    assert f"of Bayes {shop['bayes_learned_groups'][1]}" in flat
    shops = section(evaluation, "mllm-srec-on-three-other-shops")
    own = re.findall(r"mllm_srec\*\* \(cached\) \| (\S+) \| (\S+) \| (.+?) \| (.+?) \|", shops)
    hits, ndcg, above_hits, above_ndcg = zip(*own, strict=True)
    assert f"has {hits[0]}, {hits[1]} and {hits[2]} on" in flat
    first, second, third = map(told, above_hits)
    assert f"{first}, {second} and {third} above SASRec" in flat
    assert f"{ndcg[0]}, {ndcg[1]} and {ndcg[2]} in the whole catalog" in flat
    least, *_, most = sorted(rounded(cell.split()[0]) for cell in above_ndcg)
    assert f"{least} to {most} above" in flat
    beauty = table(evaluation, "sequential-models-on-amazon-beauty")
    assert f"NDCG@10 {beauty['SASRec, full softmax (`beauty.py:sasrec`)'][1]}" in flat
    parts = table(evaluation, "without-one-of-its-parts")
    (plain,) = (cells for name, cells in parts.items() if "`plain`" in name)
    assert f"titles and texts have [{plain[0]} on the first shop]" in flat
    assert "**leaving out rewards or similar users makes no difference there**" in flat
    for name in ("no rewards", "no similar users"):
        for cell in parts[name][1::2]:
            low, high = map(float, re.search(r"\[(\S+), (\S+)\]", cell).groups())
            assert low < 0 < high
    with (ROOT / "docs" / "figures" / "quickstart.csv").open(newline="") as file:
        figure = {row["system"]: row["hr@5"] for row in csv.DictReader(file)}
    muon = next(line for line in evaluation.read_text().splitlines() if "| Muon | 16,000" in line)
    assert f"| {figure['mmsrarec']} | {figure['bayes_optimal']} |" in muon
    assert parts["all of it"][0] == figure["mmsrarec"]
    own = f"{figure['keyword_logit']} and .0268 for all of it"
    assert own in " ".join(evaluation.read_text().split())


def test_every_number_of_the_readme_stands_in_a_second_place_or_names_its_command():
    readme = (ROOT / "README.md").read_text()
    flat = " ".join(line for line in readme.splitlines() if not line.startswith(("    ", "|")))
    others = (ROOT / "docs" / "evaluation.md", ROOT / "docs" / "figures" / "quickstart.csv")
    known = {number for page in others for number in THREE.findall(page.read_text())}
    listed = set().union(*PRINTED_BY.values())
    numbers = set(THREE.findall(flat))
    assert numbers - known <= listed | ROUNDED.keys(), "stale, or not in the list"
    assert listed | ROUNDED.keys() <= numbers, "not in the README any more"
    assert all(f"`{command}`" in flat for command in PRINTED_BY)
    for short, long in ROUNDED.items():
        assert long in known and rounded(long) == short
