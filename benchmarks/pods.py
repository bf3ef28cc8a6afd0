"""What training needs on TPU pods, from programs compiled for them: docs/pods.csv and docs/pods.md.

    pip install "jax[tpu]"              # the compiler; no TPU is needed
    python benchmarks/pods.py --quick   # every case, half a minute each; skips finished cases
    python benchmarks/pods.py           # the same cases as training compiles them, a minute each
    python benchmarks/pods.py --only='7b.*v5e-64'
    python benchmarks/pods.py --only=none   # compiles nothing, writes the CSV and the page again

Every case is a run of launch/compile.py on configs/beauty.py with the mesh and sizes below; the
CSV has its flags. A case whose JSON is in --out is skipped. A case without a JSON keeps the rows
that docs/pods.csv has of it. No step is executed: the numbers say what fits and what the roofline
allows, not how fast a step is.
"""

import csv
import dataclasses
import io
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
from mmsrec_jax.runtime.files import write_json, write_text

ROOT = Path(__file__).resolve().parents[1]
_ONLY = flags.DEFINE_string("only", "", "Cases whose name this regular expression finds.")
_QUICK = flags.DEFINE_bool("quick", False, "See launch/compile.py.")
_OUT = flags.DEFINE_string("out", "runs/pods", "Folder of the JSON files.")
_CSV = flags.DEFINE_string("csv", "docs/pods.csv", "Table of all cases.")
_DOCS = flags.DEFINE_string("docs", "docs/pods.md", "Page whose short table is replaced.")
_BEGIN, _END = "<!-- benchmarks/pods.py -->", "<!-- end -->"
GIB = 2**30
COLUMNS = (
    "model", "training", "machine", "flags", "step", "hbm_gib", "hbm_gib_of_device", "compute_ms",
    "memory_ms", "network_ms", "bound", "mfu_percent", "effort",
)  # fmt: skip

# v5p is named by cores, two a chip.
MACHINES = {
    "v5e-16": "v5e:4x4", "v5e-64": "v5e:8x8", "v5e-256": "v5e:16x16",
    "v5p-64": "v5p:2x4x4", "v5p-128": "v5p:4x4x4", "v5p-512": "v5p:4x8x8",
    "v6e-64": "v6e:8x8",
}  # fmt: skip
MODELS = ("qwen2.5-vl-7b", "qwen2.5-vl-3b", "qwen2.5-vl-32b", "qwen3-vl-8b")
TRAININGS = {"sft-lora": "sft", "sft-full": "sft", "grpo": "grpo,rollout"}
# Batch rows for one chip: enough for arithmetic to take longer than the network.
ROWS = {"v5e": 1, "v5p": 2, "v6e": 3}
# A rollout gathers the decoder over FSDP. The `tensor` axis divides what it gathers, by so many.
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
        """FSDP divides the weights over as many chips as their widths allow. The tower of Qwen3-VL
        (1152 wide) allows 128. In full fine-tuning a shard of the decoder is a multiple of 16 rows,
        the tile of 16-bit values; for other shards the compiler sums gradients on every chip."""
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
            rows = 2 * self.chips  # `dots` keeps too much for three rows
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
    """All of them, those of `FIRST` first."""
    every = [Case(m, t, p) for m in MODELS for t in TRAININGS for p in MACHINES]
    order = {name: rank for rank, name in enumerate(FIRST)}
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


def all_rows(folder: Path, path: Path) -> list[dict[str, str]]:
    """A row of `COLUMNS` for every case and step: from the JSON in `folder`, else from the CSV."""
    before: dict[str, list[dict[str, str]]] = {}
    if path.exists():
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                before.setdefault(_case_name(row), []).append(row)
    found = []
    for case in cases():
        compiled = folder / f"{case.name}.json"
        if not compiled.exists():
            found += before.get(case.name, [])
            continue
        report = json.loads(compiled.read_text())
        found += [_row(case, name, step, report) for name, step in report["steps"].items()]
    return found


def _row(case: Case, name: str, step: dict, report: dict) -> dict[str, str]:
    row = dict.fromkeys(COLUMNS, "") | {
        "model": case.model,
        "training": case.training,
        "machine": case.machine,
        "flags": " ".join(flag.removeprefix("--config.") for flag in report["flags"]),
        "step": name,
        "hbm_gib": f"{step['peak'] / GIB:.1f}",
        "hbm_gib_of_device": f"{report['hbm'] / GIB:.1f}",
        "bound": "does not fit",
        "effort": "quick" if report["quick"] else "full",
    }
    if "seconds" in step:
        seconds = step["seconds"]
        times = {"compute_ms": "compute", "memory_ms": "memory", "network_ms": "ici"}
        row |= {column: f"{1e3 * seconds[kind]:.0f}" for column, kind in times.items()}
        row["mfu_percent"] = f"{100 * utilization(step):.0f}"
        if step["fits"]:
            row["bound"] = "network" if step["bound"] == "ici" else step["bound"]
    return row


def short_table(rows: list[dict[str, str]]) -> str:
    """Markdown of the cases in `FIRST`."""
    lines = [
        "| model | training | machine | mesh data, fsdp, tensor | step | HBM GiB (of) "
        "| compute, memory, network ms | bound by | MFU at most |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        if _case_name(row).partition("-vl-")[2] not in FIRST:
            continue
        flags_ = dict(flag.split("=") for flag in row["flags"].split())
        cells = [row["model"], row["training"], row["machine"]]
        cells.append(", ".join(flags_[f"mesh.{axis}"] for axis in ("data", "fsdp", "tensor")))
        cells += [row["step"], f"{row['hbm_gib']} ({row['hbm_gib_of_device']})"]
        cells.append(", ".join(row[name] for name in ("compute_ms", "memory_ms", "network_ms")))
        cells += [row["bound"], f"{row['mfu_percent']}%"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _case_name(row: dict[str, str]) -> str:
    return f"{row['model']}.{row['training']}.{row['machine']}"


def main(argv: list[str]) -> None:
    del argv
    folder = (ROOT / _OUT.value).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    compile_missing(folder)
    path = ROOT / _CSV.value
    rows = all_rows(folder, path)
    with io.StringIO() as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_text(path, file.getvalue())
    table = short_table(rows)
    print(table)
    page = ROOT / _DOCS.value
    text = page.read_text()
    begin, end = text.index(_BEGIN) + len(_BEGIN), text.index(_END)
    write_text(page, f"{text[:begin]}\n{table}\n{text[end:]}")


if __name__ == "__main__":
    app.run(main)
