"""Do the tests see a fault? Faults are planted one at a time, and the tests next to them are run.

    pip install cosmic-ray
    python benchmarks/mutation.py --sample=30 --out=runs/mutation.json
    python benchmarks/mutation.py --only=rl,losses

Of each part a random sample of Cosmic Ray's mutants (another operator, number, condition, loop
without a turn), the same for a seed. It prints killed/total of each part and the place of every
survivor. It changes files of this checkout and puts them back: have no uncommitted work in it.
"""

import argparse
import ast
import importlib
import json
import multiprocessing
import os
import random
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from cosmic_ray import plugins
from cosmic_ray.ast import ast_nodes, get_ast_from_path
from cosmic_ray.mutating import use_mutation
from cosmic_ray.work_item import MutationSpec

PACKAGE = "mmsrec_jax"
_IMPORTED = ("flax.nnx", "grain", "optax", "orbax.checkpoint", "pyarrow.parquet", "transformers")
PARTS = {  # part -> (files and folders of the package, what pytest runs, the fast first)
    "rl": (["rl"], ["tests/rl/test_policy_loss.py", "tests/rl/rewards", "tests/rl/test_grpo.py"]),
    "inference": (
        ["inference"],
        ["tests/inference/test_trie.py", "tests/inference/test_yes_no.py",
         "tests/inference/test_texts.py", "tests/inference/test_sampler.py",
         "tests/inference/test_beam.py", "tests/inference"],
    ),
    "inputs": (["inputs"], ["tests/inputs"]),
    "evaluation": (["evaluation"], ["tests/evaluation"]),
    "retrieval": (["retrieval"], ["tests/retrieval"]),
    "splits": (["data/splits.py"], ["tests/data/test_splits.py"]),
    "losses": (
        ["sequential/losses.py", "sequential/contrastive.py"],
        ["tests/sequential/test_losses.py", "tests/sequential/test_contrastive.py"],
    ),
    "sft": (
        ["training/sft.py", "training/pairs.py"],
        ["tests/training/test_schedules.py", "tests/training/test_pair_updates.py",
         "tests/training/test_sft.py", "tests/training/test_metering.py",
         "tests/configs/test_configs.py"],
    ),
}  # fmt: skip
# Of `|`, which is most often a type here; settings have ranges of their own in tests/configs.
_PASSED_OVER = ("BitOr", "RemoveDecorator", "ExceptionReplacer")
_CALLS_PASSED_OVER = ("setting", "lru_cache")


def files(paths: Sequence[str]) -> list[Path]:
    """The modules of some files and folders; those of settings are left out."""
    found: list[Path] = []
    for path in paths:
        whole = Path(PACKAGE) / path
        found += sorted(whole.rglob("*.py")) if whole.is_dir() else [whole]
    return [path for path in found if path.name not in ("settings.py", "__init__.py")]


def mutants(path: Path) -> Iterator[MutationSpec]:
    """Every mutant of a module, but those that change no result: of a setting's numbers, of what
    is raised or asserted, of the mark of keyword arguments, which reads as a product."""
    tree, text = get_ast_from_path(path), path.read_text()
    lines, passed_over = text.splitlines(), _passed_over(ast.parse(text))
    for name in sorted(plugins.operator_names()):
        operator = plugins.get_operator(name)
        if operator.arguments() or any(word in name for word in _PASSED_OVER):
            continue
        made, at = operator(), -1
        for node in ast_nodes(tree):
            for start, end in made.mutation_positions(node):
                at += 1
                if start[0] in passed_over or lines[start[0] - 1].strip() == "*,":
                    continue
                yield MutationSpec(
                    module_path=str(path), operator_name=name, operator_args={}, occurrence=at,
                    start_pos=start, end_pos=end, definition_name=None,
                )  # fmt: skip


def _passed_over(module: ast.Module) -> set[int]:
    """Lines of what is raised or asserted, and of calls in `_CALLS_PASSED_OVER`."""
    found: set[int] = set()
    for node in ast.walk(module):
        name = (
            getattr(node.func, "attr", getattr(node.func, "id", ""))
            if isinstance(node, ast.Call)
            else ""
        )
        if isinstance(node, ast.Raise | ast.Assert) or name in _CALLS_PASSED_OVER:
            found.update(range(node.lineno, node.end_lineno + 1))
    return found


def fails(tests: Sequence[str], timeout: float) -> bool:
    """Whether a test fails, or all of them take longer than that. In a fork of this process, which
    has imported what takes long and nothing of the package."""
    process = multiprocessing.get_context("fork").Process(target=_test, args=(tests,))
    process.start()
    process.join(timeout)
    if process.exitcode is None:
        os.killpg(process.pid or 0, signal.SIGKILL)
        process.join()
    return process.exitcode != 0


def _test(tests: Sequence[str]) -> None:
    os.setsid()
    output = os.open(os.devnull, os.O_WRONLY)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.dont_write_bytecode = True  # two versions of a file may have one time of change
    chosen = "not parity and not processes and not robustness"
    os._exit(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-m", chosen, *tests]))


def measure(part: str, sample: int, seed: int, timeout: float) -> dict[str, Any]:
    """Kills a sample of the mutants of a part, as far as its tests do."""
    paths, tests = PARTS[part]
    every = [mutant for path in files(paths) for mutant in mutants(path)]
    drawn = random.Random(seed).sample(every, min(sample, len(every)))
    survivors, killed = [], 0
    for mutant in drawn:
        operator = plugins.get_operator(mutant.operator_name)()
        with use_mutation(mutant.module_path, operator, mutant.occurrence):
            seen = fails(tests, timeout)
        where = f"{mutant.module_path}:{mutant.start_pos[0]} {mutant.operator_name}"
        killed += seen
        survivors += [] if seen else [where]
        print(f"{'killed' if seen else 'SURVIVED'}  {where}", flush=True)
    return {"mutants": len(every), "total": len(drawn), "killed": killed, "survivors": survivors}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default=",".join(PARTS), help="Parts, separated by commas.")
    parser.add_argument("--sample", type=int, default=30, help="Mutants of each part.")
    parser.add_argument("--seed", type=int, default=0, help="Of the sample.")
    parser.add_argument("--timeout", type=float, default=900, help="Seconds for one mutant.")
    parser.add_argument("--out", type=Path, help="JSON of everything.")
    given = parser.parse_args()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # read when jax is imported
    os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    for name in _IMPORTED:
        importlib.import_module(name)
    report = {}
    for part in given.only.split(","):
        report[part] = found = measure(part, given.sample, given.seed, given.timeout)
        print(f"{part}: {found['killed']} of {found['total']} killed, of {found['mutants']} in all")
        if given.out:
            given.out.parent.mkdir(parents=True, exist_ok=True)
            given.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
