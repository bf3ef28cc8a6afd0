"""docs/paper-to-code.md: a row names code and tests, or says that nothing was measured."""

import dataclasses
import re

import pytest
from test_links import FIELD, FILE, ROOT

from mmsrec_jax.methods.settings import UseSettings
from mmsrec_jax.methods.sweep import read

PAGE = (ROOT / "docs" / "paper-to-code.md").read_text()
WITHOUT_CODE = ("not measured",)
# Baselines, which no claim of a paper is about.
NO_ABLATION = {"plain_sft", "text_sft"}
OF_PAPERS = ("history", "neighbors", "ablations", "ablations_mllm_srec")  # sweeps


def rows():
    """(what, code, test, source) of every row of every table."""
    for line in PAGE.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if line.startswith("| ") and cells[0] not in ("what", "---"):
            yield tuple(cells)


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0][:40])
def test_a_row_names_code_a_test_and_an_origin(row):
    what, code, test, source = row
    assert re.search(r"\*(paper|ours)\*", source), what
    if code.startswith(WITHOUT_CODE):
        assert not test, f"{what}: nothing was built, and yet tested"
        return
    files = [name for name, _ in FILE.findall(code)]
    assert all(name.startswith(("mmsrec_jax/", "configs/")) for name in files), code
    assert files or FIELD.search(code), f"{what}: no code in {code!r}"
    found = FILE.findall(test)
    assert found, f"{what}: no test"
    for name, symbol in found:
        assert re.fullmatch(r"tests/[\w/]+/test_\w+\.py", name), name
        assert (not symbol or symbol.startswith("test_")) and (ROOT / name).is_file(), name


def test_every_short_name_of_a_field_is_whole():
    """`.rewards` behind `config.use.summaries` would escape the check that fields exist."""
    assert not re.findall(r"`\.[a-z_.]+`", PAGE)


def test_what_a_config_can_switch_off_and_every_sweep_over_a_claim_has_a_row():
    code = " ".join(row[1] for row in rows())
    fields = {field.name for field in dataclasses.fields(UseSettings)} - NO_ABLATION
    assert not [name for name in fields if f"`config.use.{name}`" not in code]
    for name in OF_PAPERS:
        assert f"`configs/sweeps/{name}.py`" in code
    for file in (ROOT / "configs" / "sweeps").glob("ablations*.py"):
        sets = {field for point in read(file).points.values() for field in point}
        named = {f"config.{field}" for field in sets if field.startswith("use.")}
        assert named and all(f"`{field}`" in code for field in named)
