"""Tables and figures of the documentation say what their source says."""

import csv
import re
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[2]


def test_the_table_of_the_readme_is_that_of_the_figure():
    with (ROOT / "docs/figures/quickstart.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    lines = (ROOT / "README.md").read_text().splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("| random | popularity"))
    names, values = (
        [cell.strip(" *") for cell in lines[i].strip("|").split("|")] for i in (at, at + 2)
    )
    measured = {row["label"]: row["hr@5"] for row in rows}
    assert dict(zip(names, values, strict=True)) == measured


def test_the_figures_are_drawn(tmp_path):
    subprocess.run(
        [sys.executable, "docs/figures/make_figures.py", f"--out={tmp_path}"], cwd=ROOT, check=True
    )
    for name in ("pipeline.svg", "quickstart.svg"):
        drawn, kept = (
            ElementTree.parse(folder / name) for folder in (tmp_path, ROOT / "docs/figures")
        )
        groups = [len(list(tree.iter("{http://www.w3.org/2000/svg}g"))) for tree in (drawn, kept)]
        assert groups[0] == groups[1] > 20


def test_the_short_table_of_pods_is_that_of_the_csv(tmp_path):
    for name in ("pods.csv", "pods.md"):
        shutil.copy(ROOT / "docs" / name, tmp_path)
    page = (tmp_path / "pods.md").read_text()
    emptied = re.sub(r"(pods.py -->\n).*?(<!-- end)", r"\1\2", page, flags=re.S)
    (tmp_path / "pods.md").write_text(emptied)
    subprocess.run(
        [
            sys.executable, "benchmarks/pods.py", "--only=none", f"--out={tmp_path / 'compiled'}",
            f"--csv={tmp_path / 'pods.csv'}", f"--docs={tmp_path / 'pods.md'}",
        ],
        cwd=ROOT, check=True, capture_output=True,
    )  # fmt: skip
    assert emptied != page == (tmp_path / "pods.md").read_text()
    assert (tmp_path / "pods.csv").read_text() == (ROOT / "docs/pods.csv").read_text()
