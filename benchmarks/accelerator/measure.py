"""Correctness and speed of this package on one accelerator, beside torch where there is a peer.

    python benchmarks/accelerator/measure.py --out=DIR               # on a GPU, under 9 minutes
    python benchmarks/accelerator/measure.py --out=DIR --tiny        # the same code on a CPU
    python benchmarks/accelerator/measure.py --out=DIR --parts=attention --again=attention

Each part (benchmarks/accelerator/parts) runs in a process of its own. Every measured row is written
at once to DIR/accelerator.json and DIR/accelerator.md: what was measured stays when the machine is
taken away. The same command continues: parts that are done are skipped, others go on after their
last row, those that failed come last. A part that does not fit into the minutes left is left for
the next call. It needs jax, flax, optax, orbax and, for the peers, torch and transformers.
"""

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.accelerator import markdown, process
from benchmarks.accelerator.record import OtherMachine, Record, say

PACKAGE = "benchmarks.accelerator.parts"
PARTS = [  # those whose results matter most come first
    "environment",
    "correct_attention",
    "attention",
    "sft",
    "ranking",
    "rollouts",
    "preferences",
    "correct_training",
    "correct_models",
    "correct_sampler",
    "profile",
    "sequential",
]
SHORTEST = 20.0  # seconds below which no part is begun or continued
PATIENCE = 1.5  # times its expected seconds, after which a part counts as hung


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the record")
    parser.add_argument("--tiny", action="store_true", help="small sizes, for a CPU")
    parser.add_argument(
        "--minutes", type=float, default=8.5, help="for all parts of this call (default: 8.5)"
    )
    parser.add_argument("--parts", default="", help=f"some of {','.join(PARTS)} (default: all)")
    parser.add_argument("--again", default="", help="parts whose rows are dropped and made anew")
    asked = parser.parse_args(argv)
    for flag in ("parts", "again"):
        names = [name for name in getattr(asked, flag).split(",") if name]
        if unknown := [name for name in names if name not in PARTS]:
            parser.error(f"--{flag}: no part {unknown[0]}; there are {', '.join(PARTS)}")
        setattr(asked, flag, names)
    return asked


def measure(asked: argparse.Namespace, record: Record, package: str, deadline: float) -> None:
    """Runs what is not done yet, in order, failed parts last."""
    for name in asked.again:
        record.forget(name)
    wanted = asked.parts or PARTS
    waiting = [name for name in wanted if record.state(name) != "done"]
    for name in [name for name in wanted if name not in waiting]:
        say(f"{name}: done before, {len(record.done(name))} rows")
    for name in sorted(waiting, key=lambda name: record.state(name) == "failed"):
        title, expected = process.title_and_seconds(package, name)
        left = deadline - time.monotonic()
        needed = max(expected - record.seconds(name), SHORTEST)
        if not asked.tiny and needed > left:
            say(f"{name}: left for the next call, {needed:.0f} s expected and {left:.0f} s left")
            continue
        if left < 1:
            say(f"{name}: left for the next call, the time is over")
            continue
        patience = left if asked.tiny else min(left, PATIENCE * expected + SHORTEST)
        run_part(asked, record, name, package, title, patience, overall=patience >= left)


def run_part(
    asked: argparse.Namespace,
    record: Record,
    name: str,
    package: str,
    title: str,
    seconds: float,
    overall: bool,
) -> None:
    """One part, its rows and its table.

    overall: the seconds are all that are left, so a part that takes longer is not a hung one.
    """
    say(f"\n{name}: {title}, at most {seconds:.0f} s")
    record.begin(name, title)

    def report(case: str, row: Mapping[str, Any]) -> None:
        record.add(name, case, row)
        say(f"  {time.strftime('%H:%M:%S')} {case}: {markdown.row(row)}")

    start = time.monotonic()
    ended = process.run(
        name, package=package, tiny=asked.tiny, out=asked.out, done=record.done(name),
        seconds=seconds, report=report,
    )  # fmt: skip
    spent = time.monotonic() - start
    late = ended.state == "failed" and spent >= seconds
    record.end(name, "unfinished" if late and overall else ended.state, spent, ended.reason)
    say("\n" + markdown.part(name, record.parts[name]))


def main(argv: Sequence[str], package: str = PACKAGE) -> int:
    """The exit status: 0 when all that was asked for is done, 1 otherwise."""
    asked = arguments(argv)
    deadline = time.monotonic() + 60 * asked.minutes
    asked.out.mkdir(parents=True, exist_ok=True)
    try:
        environment = process.environment() | {"tiny": asked.tiny}
        if environment["platform"] == "cpu" and not asked.tiny:
            sys.exit("error: JAX finds no accelerator here; --tiny runs everything on the CPU")
        record = Record(asked.out, environment)
    except (OtherMachine, RuntimeError) as error:
        sys.exit(f"error: {error}")
    say(f"{markdown.row(environment)}")
    record.write()
    measure(asked, record, package, deadline)
    wanted = asked.parts or PARTS
    undone = [name for name in wanted if record.state(name) != "done"]
    rows = sum(len(record.done(name)) for name in wanted)
    say(f"{rows} rows in {record.json} and {record.markdown}")
    if undone:
        say(f"not done: {', '.join(undone)}; the same command continues")
    return 1 if undone else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
