"""How right the keywords of a run are: beside the attributes of its items.

    python benchmarks/keywords.py runs/ablations/whole runs/ablations/no-rewards

For runs of MMSRARec whose step `summaries` has finished, on items whose attributes are one word
each, such as those of the toyshop. Prints a line of JSON for each folder: the share of items whose
keywords are their attributes, and how many words an item are wrong, missing and repeated.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmsrec_jax.data import store
from mmsrec_jax.runtime import workdir
from mmsrec_jax.runtime.errors import UserError


def measure(
    rows: Iterable[Mapping[str, Any]], attributes: Sequence[Mapping[str, str]]
) -> dict[str, float]:
    """rows: of `summaries.jsonl`; attributes: of every item.

    Raises:
      UserError: an item has no keywords or no attributes.
    """
    if without := sum(not each for each in attributes):
        raise UserError(f"{without} of {len(attributes)} items have no attributes to compare with")
    exact = wrong = missing = repeated = count = 0
    for row in rows:
        said = [*row["image"], *row["text"]]
        true = set(attributes[row["item"]].values())
        count += 1
        exact += sorted(said) == sorted(true)
        wrong += len(set(said) - true)
        missing += len(true - set(said))
        repeated += len(said) - len(set(said))
    if count != len(attributes):
        raise UserError(f"{count} of {len(attributes)} items have keywords")
    words = {"wrong": wrong, "missing": missing, "repeated": repeated}
    each = {f"{name}_an_item": round(number / count, 4) for name, number in words.items()}
    return {"items": count, "exact": round(exact / count, 4), **each}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("workdirs", type=Path, nargs="+", help="of runs with keywords")
    for folder in parser.parse_args().workdirs:
        try:
            workdir.finished(folder, "summaries")
            catalog, _ = store.open(folder / "data" / "store")
            lines = (folder / "summaries" / "summaries.jsonl").read_text().splitlines()
            found = measure(map(json.loads, lines), [item.attributes for item in catalog])
        except UserError as error:
            sys.exit(str(error) if str(folder) in str(error) else f"{folder}: {error}")
        print(json.dumps({"run": str(folder), **found}))


if __name__ == "__main__":
    main()
