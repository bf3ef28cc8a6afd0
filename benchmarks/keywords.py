"""How right the keywords of a run are: beside the attributes of its items.

    python benchmarks/keywords.py runs/ablations/whole runs/ablations/no-rewards

For runs of MMSRARec on items whose attributes are one word each, such as those of the toyshop.
Prints a line of JSON for each folder: the share of items whose keywords are their attributes, and
how many words an item are wrong, missing and repeated.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmsrec_jax.data import store
from mmsrec_jax.inference.text_store import TextStore


def measure(workdir: Path) -> dict[str, float]:
    catalog, _ = store.open(workdir / "data" / "store")
    exact = wrong = missing = repeated = 0
    for row in TextStore(workdir / "summaries" / "summaries.jsonl", ("item",)):
        said = [*row["image"], *row["text"]]
        true = set(catalog[row["item"]].attributes.values())
        exact += sorted(said) == sorted(true)
        wrong += len(set(said) - true)
        missing += len(true - set(said))
        repeated += len(said) - len(set(said))
    count = len(catalog)
    words = {"wrong": wrong, "missing": missing, "repeated": repeated}
    each = {f"{name}_an_item": round(number / count, 4) for name, number in words.items()}
    return {"items": count, "exact": round(exact / count, 4), **each}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("workdirs", type=Path, nargs="+", help="of runs with keywords")
    for workdir in parser.parse_args().workdirs:
        print(json.dumps({"run": str(workdir), **measure(workdir)}))


if __name__ == "__main__":
    main()
