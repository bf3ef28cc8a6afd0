"""Training and full-catalog ranking of SASRec here and in RecBole on torch, in turn.

    python3.11 -m venv DIR && DIR/bin/pip install -r benchmarks/recbole.txt
    python benchmarks/sequential.py --root=DATA/beauty --recbole_python=DIR/bin/python \\
        --out=sequential.json

The same data (RecBole atomic files, 5-core, leave-one-out), sizes, full-softmax cross-entropy,
learning rate, target positions a batch and threads, on the CPU. RecBole makes every training target
a row of its own, with its whole history; here a row holds whole sequences side by side and every
position is a target. An epoch has the same targets on both sides, which is checked. Timed are
`--batches` of each, `--repeats` times in turn after one that is dropped, in which ours compiles; an
epoch is that rate over all targets. Evaluation ranks every test user's target among all items and
finds the ten best, from histories on the host to metrics: ours `ranking.full`, theirs
`Trainer.evaluate` (with 512 users a batch; its default takes one), which lets items of the history
compete. Printed and written: medians of both and their ratio.
"""

import gzip
import itertools
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
from absl import app, flags

from mmsrec_jax.data import build
from mmsrec_jax.evaluation import metrics, ranking
from mmsrec_jax.sequential import recommender
from mmsrec_jax.sequential import train as training
from mmsrec_jax.sequential.sasrec import SASRecSettings
from mmsrec_jax.training.state import TrainState

_ROOT = flags.DEFINE_string("root", None, "Folder NAME with NAME.inter or NAME.inter.gz.")
_PYTHON = flags.DEFINE_string("recbole_python", None, "A Python with benchmarks/recbole.txt.")
_DIM = flags.DEFINE_integer("dim", 64, "Width; the inner layer has four times as much.")
_LAYERS = flags.DEFINE_integer("layers", 2, "Transformer layers.")
_HEADS = flags.DEFINE_integer("heads", 2, "Attention heads.")
_LENGTH = flags.DEFINE_integer("length", 50, "Longest history, and positions of a row of ours.")
_BATCH = flags.DEFINE_integer("batch", 2000, "Target positions of a batch.")
_BATCHES = flags.DEFINE_integer("batches", 4, "Batches timed together; 0: evaluation only.")
_REPEATS = flags.DEFINE_integer("repeats", 3, "Timings of each kind, after one that is dropped.")
_THREADS = flags.DEFINE_integer("threads", 2, "Threads of torch; XLA takes the cores there are.")
_OUT = flags.DEFINE_string("out", None, "Where to write the figures as JSON.")


def sizes() -> dict:
    return {
        "dim": _DIM.value, "mlp_dim": 4 * _DIM.value, "layers": _LAYERS.value,
        "heads": _HEADS.value, "length": _LENGTH.value, "dropout": 0.5, "learning_rate": 1e-3,
    }  # fmt: skip


class Ours:
    """The library's own data, compiled step and ranking."""

    def __init__(self, root: Path, directory: Path):
        data = build.DataSettings(root=str(root))
        c = SASRecSettings(**sizes(), batch_size=max(_BATCH.value // _LENGTH.value, 1))
        build.build(data, directory)
        catalog, self.histories, self.split = build.open_built(data, directory)
        self.items = len(catalog)
        self.recipe = training.recipe(c, self.items, {})
        self.features = recommender.place_features(self.recipe.model, {})
        params = recommender.init_params(self.recipe.model, seed=0)
        self.state, self.key = TrainState.create(params, self.recipe.optimizer), jax.random.key(0)
        self.batches = iter(
            training.batches(
                self.histories, self.split, self.recipe.model, batch_size=c.batch_size, seed=0
            )
        )

    def load(self) -> dict:
        return {"targets": len(self.split.train), "users": len(self.split.test)}

    def train(self, batches: int) -> dict:
        start, targets = time.perf_counter(), 0
        for batch in itertools.islice(self.batches, batches):
            targets += int((batch["targets"] >= 0).sum())
            self.state, measured = training.step(
                self.recipe, self.state, self.features, batch, self.key
            )
        loss = float(measured["loss"])
        return {"seconds": time.perf_counter() - start, "targets": targets, "loss": loss}

    def evaluate(self) -> dict:
        start = time.perf_counter()
        current = recommender.SequentialRecommender(
            self.recipe.model, self.state.params, self.features
        )
        ranks = ranking.full(current, self.histories, self.split.test, progress=False, top=10)
        metrics.ndcg(ranks.ranks, 10), metrics.hit_rate(ranks.ranks, 10)
        return {"seconds": time.perf_counter() - start}


class RecBole:
    """`sequential_recbole.py` in its own Python; the same calls as `Ours`."""

    def __init__(self, root: Path, directory: Path, items: int):
        copy = directory / root.name
        copy.mkdir()
        (plain,) = sorted(root.glob(f"{root.name}.inter*"))[:1]
        with (gzip.open if plain.suffix == ".gz" else open)(plain, "rb") as source:
            with (copy / f"{root.name}.inter").open("wb") as target:
                shutil.copyfileobj(source, target)
        case = {
            **sizes(), "parent": str(directory), "name": root.name, "items": items + 1,
            "batch": _BATCH.value, "threads": _THREADS.value,
        }  # fmt: skip
        server = Path(__file__).with_name("sequential_recbole.py")
        self._process = subprocess.Popen(
            [_PYTHON.value, "-W", "ignore", str(server), json.dumps(case)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=directory,
        )  # fmt: skip

    def __getattr__(self, name: str):
        def call(*arguments):
            print(name, *arguments, file=self._process.stdin, flush=True)
            answer = self._process.stdout.readline()
            if not answer:
                raise SystemExit("RecBole's process ended; its last lines above say why")
            return json.loads(answer)

        return call


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def timed(sides: dict, work: str, *arguments) -> dict[str, list[dict]]:
    """`--repeats` answers of each side, in turn; a first one is dropped."""
    found = {name: [] for name in sides}
    for repeat in range(_REPEATS.value + 1):
        for name in sides if repeat % 2 else list(sides)[::-1]:
            answer = getattr(sides[name], work)(*arguments)
            say(f"{work} {repeat}/{_REPEATS.value} {name}: {answer['seconds']:.2f} s")
            found[name].append(answer)
    return {name: answers[1:] for name, answers in found.items()}


def main(argv: list[str]) -> None:
    del argv
    root = Path(_ROOT.value).resolve()
    with tempfile.TemporaryDirectory() as scratch:
        ours = Ours(root, Path(scratch) / "data")
        sides = {"ours": ours, "recbole": RecBole(root, Path(scratch), ours.items)}
        counts = {name: side.load() for name, side in sides.items()}
        if counts["ours"] != counts["recbole"]:
            raise SystemExit(f"the two sides do not have the same work: {counts}")
        counts = counts["ours"]
        seconds = {}
        if _BATCHES.value:
            seconds["epoch"] = {
                name: statistics.median(a["seconds"] / a["targets"] for a in answers)
                * counts["targets"]
                for name, answers in timed(sides, "train", _BATCHES.value).items()
            }
        seconds["evaluation"] = {
            name: statistics.median(a["seconds"] for a in answers)
            for name, answers in timed(sides, "evaluate").items()
        }
    found = {"data": root.name, **counts, "items": ours.items, **sizes(), "batch": _BATCH.value}
    print(
        f"{root.name}: {counts['users']:,} users, {ours.items:,} items, {counts['targets']:,} "
        f"training targets; dim {_DIM.value}, {_LAYERS.value} layers, length {_LENGTH.value}\n"
        f"{'seconds':22}{'ours':>10}{'RecBole':>10}{'ratio':>8}"
    )
    for work, each in seconds.items():
        found[f"{work}_seconds"] = each
        ratio = found[f"{work}_ratio"] = each["recbole"] / each["ours"]
        print(f"{work:22}{each['ours']:10.1f}{each['recbole']:10.1f}{ratio:8.1f}", flush=True)
    if _OUT.value:
        Path(_OUT.value).write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    flags.mark_flags_as_required(["root", "recbole_python"])
    app.run(main)
