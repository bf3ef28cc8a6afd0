"""The layout stays: which folder may import which, how long files and functions are, which words.

Every violation is one line that says where it is and what to do.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
# An import never goes up this list; the package itself, the public face, stands above it.
FOLDERS = (
    "runtime", "models", "hf", "data", "prompts", "inputs", "inference", "training", "evaluation",
    "sequential", "retrieval", "rl", "planning", "pages", "methods", "serving", "api",
)  # fmt: skip
NARROWER = {"models": {"runtime"}}  # of what the list allows, what a folder may import
JAX_FREE = ("data", "prompts", "inputs")  # imported by input workers, which see numpy only
NEEDS_JAX = {"mmsrec_jax.inputs.sharded"}  # of these, what only the main process imports

MAX_FILE_LINES = 600
MAX_FUNCTION_LINES = 80
LONG_FUNCTIONS: set[str] = set()  # path:function, each with the reason why it cannot be shorter

# The words that the field has others for.
WORDS = {
    "catalogue": "catalog",
    "optimiser": "optimizer",
    "neighbour": "neighbor",
    "summarise": "summarize",
    "verdict": "yes/no label or yes-no margin",
    "trunk": "shared prefix",
    "rescoring": "score_rollouts",
    "attainable": "Bayes-optimal",
    "scoreboard": "leaderboard",
}


def _files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


CODE = _files("mmsrec_jax", "configs", "launch", "benchmarks", "examples", "tests")


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, module) of every import, of those inside functions too; `from a import b` as a.b."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{_name(path)}:{node.lineno}: write the whole module name"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def _wrong_import(folder: str, module: str) -> str:
    """What to do about an import of `module` by a file of `folder`; nothing if it is in order."""
    top, _, rest = module.partition(".")
    if top in ("configs", "launch", "examples", "benchmarks", "tests"):
        return f"the package does not import {top}/; pass what it needs as an argument"
    target = rest.partition(".")[0]
    if top != "mmsrec_jax" or target == folder:
        return ""
    if target not in FOLDERS:
        return f"mmsrec_jax.{target} is the public face; import from the folder it takes it from"
    if FOLDERS.index(target) > FOLDERS.index(folder) or target not in NARROWER.get(folder, FOLDERS):
        return f"{folder}/ stands below {target}/; move the shared part down or pass it in"
    return ""


def test_imports_never_go_up():
    wrong = []
    for path in _files("mmsrec_jax"):
        folder = path.relative_to(ROOT / "mmsrec_jax").parts[0]
        if folder.endswith(".py"):
            continue
        assert folder in FOLDERS, f"mmsrec_jax/{folder}/: give it a place in FOLDERS here"
        for line, module in _imports(path):
            if problem := _wrong_import(folder, module):
                wrong.append(f"{_name(path)}:{line}: imports {module}, but {problem}")
    assert not wrong, "\n".join(wrong)


def test_the_rule_sees_upward_imports():
    assert "stands below" in _wrong_import("models", "mmsrec_jax.inference.sampler.Sampling")
    assert "stands below" in _wrong_import("models", "mmsrec_jax.hf.loading")
    assert "public face" in _wrong_import("methods", "mmsrec_jax.load")
    assert "as an argument" in _wrong_import("methods", "configs.base")
    assert not _wrong_import("inputs", "mmsrec_jax.data.records.Catalog")
    assert not _wrong_import("models", "jax.numpy")


def test_input_workers_import_no_jax():
    modules = []
    for path in _files(*(f"mmsrec_jax/{folder}" for folder in JAX_FREE)):
        module = _name(path).removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        modules += [module] if module not in NEEDS_JAX else []
    program = (
        "import importlib, sys\n"
        "sys.modules['jax'] = None\n"  # as in workers, see runtime/input_workers.py
        "for name in sys.argv[1:]:\n"
        "    try:\n"
        "        importlib.import_module(name)\n"
        "    except ImportError as error:\n"
        "        sys.exit(f'{name} imports jax, directly or not, which input workers must not: '"
        "'import it inside the function that needs it ({error})')\n"
        "sys.exit('jaxlib is loaded' if 'jaxlib' in sys.modules else 0)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program, *modules], cwd=ROOT, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr.splitlines()[-1]


def test_files_and_functions_are_short():
    wrong = []
    for path in CODE:
        text = path.read_text()
        if (lines := text.count("\n")) > MAX_FILE_LINES:
            wrong.append(f"{_name(path)}: {lines} lines; split it by its ideas")
        for node in ast.walk(ast.parse(text)):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            lines = _code_lines(node)
            if lines > MAX_FUNCTION_LINES and f"{_name(path)}:{node.name}" not in LONG_FUNCTIONS:
                wrong.append(
                    f"{_name(path)}:{node.lineno}: {node.name} has {lines} lines; take parts out"
                )
    assert not wrong, "\n".join(wrong)


def _code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """From `def` to the end, without the docstring."""
    first = function.body[0]
    documented = ast.get_docstring(function) is not None
    text = first.end_lineno - first.lineno + 1 if documented else 0
    return function.end_lineno - function.lineno + 1 - text


def test_every_module_says_what_it_is():
    wrong = [
        f"{_name(path)}: say in a docstring what this module is"
        for path in _files("mmsrec_jax", "configs", "launch", "benchmarks", "examples")
        if not (ast.get_docstring(ast.parse(path.read_text())) or "").strip()
    ]
    assert not wrong, "\n".join(wrong)


def test_the_words_of_the_field():
    wrong = []
    for path in CODE:
        if path == Path(__file__):
            continue
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            for word in _words(line) & WORDS.keys():
                wrong.append(f"{_name(path)}:{number}: say {WORDS[word]!r}, not {word!r}")
    assert not wrong, "\n".join(wrong)


def _words(line: str) -> set[str]:
    """Words in lower case, singular; names are taken apart at underscores and capitals."""
    found = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", line)
    return {word.lower() for word in found} | {word.lower().removesuffix("s") for word in found}


def test_words_are_found_in_names():
    assert _words("_VERDICTS = TrunkParts(catalogue_size)") >= {"verdict", "trunk", "catalogue"}
