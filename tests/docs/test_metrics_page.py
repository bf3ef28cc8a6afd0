"""docs/metrics.md explains no metric that the code does not log; runs check the other direction."""

from pathlib import Path

from logged_metrics import explained

PACKAGE = Path(__file__).resolve().parents[2] / "mmsrec_jax"


def test_every_explained_name_is_in_the_code():
    source = "\n".join(path.read_text() for path in PACKAGE.rglob("*.py"))
    for name in explained():
        last = name.rpartition("/")[2].removesuffix("_per_second")
        written = (f'"{name}"', f'"{last}"', f" {last}=", f'"work/{last}"')
        assert any(form in source for form in written), name
