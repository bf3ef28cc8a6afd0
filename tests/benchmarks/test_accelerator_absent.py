"""What measure.py needs of the package can be imported where input and config packages are missing.

In a process of its own: other tests have imported them.
"""

import subprocess
import sys

from benchmarks.accelerator import process

PROGRAM = """
import importlib, sys

class Hidden:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        missing = ("grain", "ml_collections", "tensorboardX", "tensorflow_datasets", "array_record")
        found = name.partition(".")[0] not in missing
        return self.finder.find_spec(name, path, target) if found else None

sys.meta_path[:] = [Hidden(finder) for finder in sys.meta_path]
from benchmarks.accelerator import absent
assert absent.stand_in() == ["grain", "ml_collections", "tensorboardX"]
for name in sys.argv[1:]:
    importlib.import_module(name)
import grain
try:
    grain.ReadOptions(num_threads=2)
except ImportError as error:
    print(error)
"""
NEEDED = (
    "training.sft", "training.checkpoints", "rl.grpo", "rl.rewards", "inference.scoring",
    "sequential.train", "evaluation.ranking", "hf.loading", "hf.exporting", "hf.tokenizer",
    "inputs.taste_texts", "data.toyshop",
)  # fmt: skip


def test_the_package_imports_without_them():
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, *(f"mmsrec_jax.{name}" for name in NEEDED)],
        cwd=process.ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == "grain is not installed, and grain.ReadOptions is needed"
