"""A finished run that trained nothing: its files are written by hand, its steps are recorded as
those of real runs are. Its items are hostile."""

import base64
import io
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from mmsrec_jax.data import build, store, user_attributes
from mmsrec_jax.data.build import DataSettings
from mmsrec_jax.data.records import Histories, Item
from mmsrec_jax.data.report import Report
from mmsrec_jax.data.user_attributes import UserAttributes
from mmsrec_jax.evaluation import ranking, report, results
from mmsrec_jax.evaluation.comparison.points import PointRow
from mmsrec_jax.methods.settings import Settings
from mmsrec_jax.pages import run_folder
from mmsrec_jax.retrieval import table as neighbors_table
from mmsrec_jax.retrieval.similar import Neighbors
from mmsrec_jax.runtime.settings import as_dict
from mmsrec_jax.runtime.workdir import Step, run_steps

USERS, ITEMS, LENGTH = 30, 40, 5
HOSTILE = (
    "</title></style><script>alert(1)</script><img src=x onerror=alert(2)>\u202e\x00\ud800&amp;"
)
SYSTEMS = {"random": 0.0, "popularity": 0.5, "sasrec": 1.0, "mmsrarec": 3.0}
STEPS = ("data", "users", "summarizer", "summaries", "sasrec", "retrieval", "evaluation")


@dataclass
class PageRun:
    """Makes the run in `folder`; `config` is what it was started with."""

    folder: Path
    config: dict
    protocols: dict = field(default_factory=dict)  # of systems that have another than the full one

    def steps(self) -> list[Step]:
        inputs = {
            "data": (), "users": ("data",), "summarizer": ("data",),
            "summaries": ("data", "summarizer"), "sasrec": ("data",),
            "retrieval": ("data", "sasrec"), "evaluation": ("data", "sasrec"),
        }  # fmt: skip
        settings = {"data": {"data": self.config["data"]}}
        return [
            Step(name, getattr(self, name), settings.get(name, {}), inputs[name]) for name in STEPS
        ]

    def run(self, after=lambda step: None, only=None, reuse=()) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        run_folder.begin(self.folder, self.config, STEPS)
        run_steps(self.folder, self.steps(), only, after=after, reuse=reuse)

    @property
    def dataset(self):
        return build.open_built(DataSettings(source="toyshop"), self.folder / "data")

    @property
    def targets(self) -> np.ndarray:
        """int32[n]: the true item of each test target."""
        _, histories, split = self.dataset
        return histories.items[histories.offsets[split.test[:, 0]] + split.test[:, 1]]

    def data(self, folder: Path) -> None:
        found = Report(source=f"tests {HOSTILE[:20]}")
        users = np.array([f"u{n}<b>" for n in range(USERS)])
        rng = np.random.default_rng(0)
        chosen = np.concatenate([rng.choice(ITEMS, LENGTH, replace=False) for _ in range(USERS)])
        of_row, times = np.repeat(np.arange(USERS), LENGTH), np.tile(np.arange(LENGTH), USERS)
        histories = Histories.from_rows(users, of_row, chosen, times)
        written = store.write(folder / "store", map(_item, range(ITEMS)), histories)
        catalog, histories = store.open(folder / "store")
        found.finish(catalog, histories, written)
        found.split(build.split(DataSettings(), histories))
        found.save(folder / "report.json")

    def users(self, folder: Path) -> None:
        users = self.dataset.histories.users
        told = [f"motto {n} {HOSTILE.replace(chr(0xD800), '')}" for n in range(len(users))]
        user_attributes.write(folder, users, UserAttributes.of({"motto": told}))

    def summarizer(self, folder: Path) -> None:
        _log(folder, lambda step: {"loss": 0.1, "reward/total": step / 100, "reward/length": -4.0})

    def summaries(self, folder: Path) -> None:
        lines = [
            {"item": n, "id": str(n), "image": [f"color{n % 3}"], "text": [f"<i>word{n % 11}"]}
            for n in range(ITEMS)
        ]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / "summaries.jsonl").write_text(text)
        scored = [
            {"item": n, "rewards": {"image_contrastive": n / 100, "total": -float(n)}}
            for n in range(1, ITEMS, 2)
        ]
        text = "".join(json.dumps(line) + "\n" for line in scored)
        (folder / "rewards.jsonl").write_text(text)

    def sasrec(self, folder: Path) -> None:
        _log(folder, lambda step: {"loss": 5 / step, "time/steps": 7.0})

    def retrieval(self, folder: Path) -> None:
        catalog, _, split = self.dataset
        rows = split.test
        rng = np.random.default_rng(2)
        shape = (len(rows), 3)
        items = rng.integers(0, len(catalog), shape).astype(np.int32)
        items[::3, :2] = self.targets[::3, None]  # of two similar users
        found = Neighbors(
            items=items,
            users=rng.integers(0, USERS, shape).astype(np.int32),
            similarity=rng.random(shape).astype(np.float32),
        )
        neighbors_table.write(folder / "neighbors.parquet", rows, found)

    def evaluation(self, folder: Path) -> None:
        _, histories, split = self.dataset
        targets, rows = self.targets, []
        for name, skill in SYSTEMS.items():
            rng = np.random.default_rng(len(name))
            scores = rng.normal(size=(len(targets), ITEMS))
            scores[np.arange(len(targets)), targets] += skill
            ranks = ranking.full_from_scores(name, scores, histories, split.test, top=10)
            protocol = self.protocols.get(name, "full")
            rows.append(report.row(name, protocol, 0, ranks, (1, 5, 10)))
            results.write(
                folder / f"ranks-{name}-{protocol}.parquet",
                ranks, system=name, seed=0, config=name,
                setting=results.Setting(
                    build.fingerprint(self.folder / "data"), split.kind, protocol, "c"
                ),
            )  # fmt: skip
        report.write_table(folder / "table.json", rows)


def config() -> dict:
    """As `launch/train.py` records it."""
    changed = Settings(data=DataSettings(source="toyshop"))
    return json.loads(json.dumps(as_dict(changed)))


def picture(number: int, side: int = 40) -> bytes:
    """A PNG of one color."""
    made = io.BytesIO()
    Image.new("RGB", (side, side), (number % 256, 40, 90)).save(made, "PNG")
    return made.getvalue()


def points(bounds: Iterable[tuple[float, float]]) -> tuple[list[PointRow], dict]:
    """Rows of a sweep whose points differ from the first one by intervals of these `bounds`, and
    what its `sweep.json` says."""
    rows = [
        PointRow(
            f"point{number}", "sasrec", "full", 30, 1, metric, 0.5, 0.4, 0.6, None, "first",
            (low + high) / 2, low, high,
        )
        for number, (low, high) in enumerate(bounds)
        for metric in ("ndcg@10", "hr@10")
    ]  # fmt: skip
    sets = [{"name": f"point{n}", "sets": {"sasrec.dim": 2**n}} for n in range(len(rows) // 2)]
    took = [{"seconds": 60.0 * n, "problem": HOSTILE if n == 1 else ""} for n in range(len(sets))]
    told = [{**one, **other} for one, other in zip(sets, took, strict=True)]
    return rows, {"sweep": "dims.py", "config": "base.py", "settings": {"seed": 1}, "points": told}


def color(source: str) -> int:
    """The number whose `picture` an image of a page shows."""
    data = base64.b64decode(source.partition(",")[2])
    return Image.open(io.BytesIO(data)).getpixel((5, 5))[0]


def _item(number: int) -> Item:
    title = HOSTILE.replace("\ud800", "") if number % 2 else f"item {number} " + "long " * 2000
    return Item(
        f"i{number}",
        {"title": title, "description": "<script>alert(3)</script>"},
        image=picture(number) if number % 5 else None,
        category="<u>kind</u>",
        attributes={"color": "<b>red</b>"},
    )


def _log(folder: Path, values) -> None:
    lines = [json.dumps({"step": step, **values(step)}) + "\n" for step in range(1, 1001)]
    lines.append(json.dumps({"step": 1000, "validation/ndcg@10": 0.25}) + "\n")
    (folder / "metrics.jsonl").write_text("".join(lines) + '{"step": 1001, "loss": 0.')
