"""What training needs on TPU pods, from programs compiled for them: the table of docs/pods.md.

    pip install "jax[tpu]"              # the compiler; no TPU is needed
    python benchmarks/pods.py --quick   # every case, half a minute each; goes on where it stopped
    python benchmarks/pods.py           # those again as training compiles them, a minute each
    python benchmarks/pods.py --only='7b.*v5e-64'
    python benchmarks/pods.py --only=none   # only the table, of what has been compiled

Every case is a run of launch/compile.py on configs/beauty.py with the mesh and sizes below; the
table gives its flags. A case that is done (its JSON is in --out) is skipped. Nothing is computed:
this says what fits and what the roofline allows, not how fast it is.
"""

import dataclasses
import json
import math
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from absl import app, flags

from mmsrec_jax.hf import presets
from mmsrec_jax.planning.report import utilization
from mmsrec_jax.runtime.files import write_json

ROOT = Path(__file__).resolve().parents[1]
_ONLY = flags.DEFINE_string("only", "", "Cases whose name this regular expression finds.")
_QUICK = flags.DEFINE_bool("quick", False, "See launch/compile.py.")
_OUT = flags.DEFINE_string("out", "runs/pods", "Folder of the JSON files.")
_DOCS = flags.DEFINE_string("docs", "docs/pods.md", "File whose table is replaced.")
_BEGIN, _END = "<!-- benchmarks/pods.py -->", "<!-- end -->"
GIB = 2**30

# v5p is named by cores, two a chip.
MACHINES = {
    "v5e-16": "v5e:4x4", "v5e-64": "v5e:8x8", "v5e-256": "v5e:16x16",
    "v5p-64": "v5p:2x4x4", "v5p-128": "v5p:4x4x4", "v5p-512": "v5p:4x8x8",
    "v6e-64": "v6e:8x8",
}  # fmt: skip
MODELS = ("qwen2.5-vl-7b", "qwen2.5-vl-3b", "qwen2.5-vl-32b", "qwen3-vl-8b")
TRAININGS = {"sft-lora": "sft", "sft-full": "sft", "grpo": "grpo,rollout"}
# What a chip of each kind is given, so that arithmetic outweighs the network.
ROWS = {"v5e": 1, "v5p": 2, "v6e": 3}
# Rollouts hold the decoder gathered over FSDP: over so many chips it is divided instead.
TENSOR = {
    "v5e": {"3b": 2, "7b": 4, "8b": 4, "32b": 8},
    "v5p": {"3b": 1, "7b": 2, "8b": 2, "32b": 4},
    "v6e": {"3b": 1, "7b": 2, "8b": 2, "32b": 4},
}
FIRST = (
    "7b.sft-lora.v5e-64", "7b.grpo.v5e-64", "7b.sft-full.v5p-64", "7b.sft-lora.v6e-64",
    "7b.sft-full.v5e-64", "7b.sft-lora.v5p-64", "7b.sft-full.v6e-64", "7b.grpo.v5p-64",
    "7b.grpo.v6e-64", "3b.sft-lora.v5e-16", "3b.sft-full.v5e-16", "3b.grpo.v5e-16",
    "32b.sft-lora.v5p-128", "32b.sft-full.v5p-128", "32b.grpo.v5p-128",
)  # fmt: skip


# Cases that do not fit with the optimizer on the chips.
OFFLOADED = ("qwen2.5-vl-7b.sft-full.v5e-16",)


@dataclasses.dataclass(frozen=True)
class Case:
    model: str
    training: str
    machine: str

    @property
    def name(self) -> str:
        return f"{self.model}.{self.training}.{self.machine}"

    @property
    def chip(self) -> str:
        return self.machine.partition("-")[0]

    @property
    def chips(self) -> int:
        return math.prod(map(int, MACHINES[self.machine].partition(":")[2].split("x")))

    def mesh(self) -> dict[str, int]:
        """Weights are divided over all chips, as far as their widths are multiples; the tower of
        Qwen3-VL (1152) is of at most 128. Where weights have gradients, shards of the decoder
        are whole tiles of 16 rows: others the compiler sums up on every chip."""
        tensor = 1
        if self.training == "grpo":
            tensor = TENSOR[self.chip][self.model.rpartition("-")[2]]
        most = 128 if self.model.startswith("qwen3") else self.chips
        if self.training == "sft-full":
            most = min(most, math.gcd(presets.config(self.model).text.hidden // 16, 256))
        fsdp = min(self.chips // tensor, most)
        return {"data": self.chips // fsdp // tensor, "fsdp": fsdp, "tensor": tensor}

    def remat(self) -> str:
        """Keeping the matmuls' outputs saves a quarter of the arithmetic where there is room."""
        small = "32b" in self.model and self.chip != "v5p"
        return "dots" if self.training == "sft-lora" and not small else "full"

    def flags(self) -> list[str]:
        """Of launch/compile.py."""
        rows = ROWS[self.chip] * self.chips
        if self.training == "sft-lora" and self.chip == "v6e":
            rows = 2 * self.chips  # three have no room for what `dots` keeps
        found = [f"--config.mesh.{axis}={size}" for axis, size in self.mesh().items()]
        if self.training == "grpo":
            shards = self.mesh()["data"] * self.mesh()["fsdp"]
            rows = max(rows // (2 if rows > 128 else 1) // shards, 1) * shards
            found += [f"--config.summarizer.batch_size={rows}"]
            found += [f"--config.summarizer.micro_batch={8 * rows}"]
            found += ["--config.summarizer.gather_weights=True"]
        else:
            found += [f"--config.sft.batch_size={rows}"]
            found += [f"--config.sft.trainable={self.training.removeprefix('sft-')}"]
            found += [f"--config.model.remat={self.remat()}"]
            if self.name in OFFLOADED:
                found += ["--config.sft.offload_optimizer=True"]
        return found

    def command(self, out: Path) -> list[str]:
        return [
            sys.executable, "launch/compile.py", "--config=configs/beauty.py",
            f"--model={self.model}", f"--topology={MACHINES[self.machine]}",
            f"--steps={TRAININGS[self.training]}", *self.flags(), f"--quick={_QUICK.value}",
            f"--out={out}",
        ]  # fmt: skip


def cases() -> Iterator[Case]:
    """All of them, the most telling first."""
    every = [Case(m, t, p) for m in MODELS for t in TRAININGS for p in MACHINES]
    order = {name: place for place, name in enumerate(FIRST)}
    return iter(sorted(every, key=lambda case: order.get(case.name.partition("-vl-")[2], 99)))


def compile_missing(folder: Path) -> None:
    missing = [
        case for case in cases() if re.search(_ONLY.value, case.name) and not _done(case, folder)
    ]
    start = time.monotonic()
    for done, case in enumerate(missing):
        spent = time.monotonic() - start
        left = f", {spent / done * (len(missing) - done) / 60:.0f} min left" if done else ""
        print(f"{done}/{len(missing)}{left}: {case.name}", flush=True)
        partial = folder / f"{case.name}.partial"
        finished = subprocess.run(case.command(partial), cwd=ROOT)
        wanted = set(TRAININGS[case.training].split(","))
        if not partial.exists() or set(json.loads(partial.read_text())["steps"]) != wanted:
            sys.exit(f"{case.name}: launch/compile.py failed ({finished.returncode}), see above")
        found = json.loads(partial.read_text()) | {"flags": case.flags()}
        write_json(folder / f"{case.name}.json", found)
        partial.unlink()


def _done(case: Case, folder: Path) -> bool:
    """Compiled before with these flags, at least as thoroughly."""
    path = folder / f"{case.name}.json"
    if not path.exists():
        return False
    found = json.loads(path.read_text())
    return found["flags"] == case.flags() and (_QUICK.value or not found["quick"])


def table(folder: Path) -> list[str]:
    """Markdown of everything that has been compiled."""
    lines = [
        "| model | training | machine | flags (`--config.`) | step | HBM GiB (of) | ms of compute, "
        "memory, network | bound by | MFU at most | compiled |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for case in cases():
        path = folder / f"{case.name}.json"
        if not path.exists():
            continue
        report = json.loads(path.read_text())
        for name, step in report["steps"].items():
            lines.append(_line(case, name, step, report))
    return lines


def _line(case: Case, name: str, step: dict, report: dict) -> str:
    flags_ = " ".join(flag.removeprefix("--config.") for flag in report["flags"])
    memory = f"{step['peak'] / GIB:.1f} ({report['hbm'] / GIB:.1f})"
    cells = [case.model, case.training, case.machine, f"`{flags_}`", name, memory]
    compiled = "quickly" if report["quick"] else ""
    if "seconds" not in step:
        return "| " + " | ".join([*cells, "", "does not fit", "", compiled]) + " |"
    seconds = step["seconds"]
    times = ", ".join(f"{1e3 * seconds[kind]:.0f}" for kind in ("compute", "memory", "ici"))
    bound = step["bound"] if step["fits"] else "does not fit"
    cells += [times, bound, f"{utilization(step):.0%}", compiled]
    return "| " + " | ".join(cells) + " |"


def main(argv):
    del argv
    folder = (ROOT / _OUT.value).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    compile_missing(folder)
    lines = "\n".join(table(folder))
    print(lines)
    page = ROOT / _DOCS.value
    text = page.read_text()
    begin, end = text.index(_BEGIN) + len(_BEGIN), text.index(_END)
    page.write_text(f"{text[:begin]}\n{lines}\n{text[end:]}")


if __name__ == "__main__":
    app.run(main)
