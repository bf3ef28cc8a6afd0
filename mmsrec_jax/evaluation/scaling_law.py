"""Loss as a power law of compute over finished runs: L = E + A / C^alpha.

The form is that of Hoffmann et al. 2022 (arXiv 2203.15556, section 3) with compute in place of
parameters and tokens: all runs see the same data. As there, the fit is a Huber loss on log L, which
a single failed run changes little.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from scipy import stats
from scipy.optimize import least_squares

from mmsrec_jax.evaluation import figures
from mmsrec_jax.evaluation.report import aligned
from mmsrec_jax.runtime import disk, reading
from mmsrec_jax.runtime.errors import UserError
from mmsrec_jax.runtime.files import write_json
from mmsrec_jax.runtime.workdir import finished

POINT = "point.json"  # what a run leaves in its step `validation`
_HUBER = 1e-2  # of log L: beyond it a residual counts by its size, not its square
_LEVEL = 0.95


@dataclasses.dataclass(frozen=True)
class Point:
    """A finished run: its model's parameters, the FLOPs of its training, its held-out loss."""

    name: str
    parameters: int
    flops: float
    loss: float
    targets: int


@dataclasses.dataclass(frozen=True)
class Law:
    """L(C) = irreducible + scale / (C / unit)^exponent; unit: FLOPs, any."""

    irreducible: float
    scale: float
    exponent: float
    unit: float

    def __call__(self, flops: npt.ArrayLike) -> np.ndarray:
        return self.irreducible + self.scale * (np.asarray(flops) / self.unit) ** -self.exponent


def total_flops(log: Iterable[Mapping[str, float]]) -> float:
    """What the steps of a `metrics.jsonl` took, by `training.metering`."""
    total = done = 0.0
    for line in log:
        if "time/flops_per_second" in line:
            per_step = line["time/flops_per_second"] * line["time/seconds_per_step"]
            total += per_step * (line["step"] - done)
            done = line["step"]
    return total


def read(runs: Sequence[Path]) -> list[Point]:
    """The points of these workdirs, by compute.

    Raises:
      UserError: a run has not finished, or differs from the first in more than its model.
    """
    points: list[Point] = []
    first: dict[str, dict] | None = None
    for run in runs:
        finished(run, "validation", same=("sft", "data"))
        held = {name: finished(run, name) for name in ("data", "sft", "validation")}
        held["sft"] = {k: v for k, v in held["sft"].items() if k not in ("model", "model_files")}
        del held["sft"]["sft"]["learning_rate"]  # follows the width
        if first is None:
            first = held
        for step, config in held.items():
            if config != first[step]:
                raise UserError(
                    f"{run}: the config of step {step} is not that of {runs[0]}; a study changes "
                    "the model alone"
                )
        path = run / "validation" / POINT
        remedy = f"delete {path.parent} and run launch/train.py, which makes it"
        raw = disk.read_json(path, remedy)
        with disk.readable(path, remedy):
            points.append(Point(run.name, **raw))
    return sorted(points, key=lambda point: point.flops)


def parse_flops(texts: Sequence[str]) -> list[float]:
    """Amounts of compute as given on the command line. Raises UserError for what is none."""
    try:
        amounts = list(map(reading.number, texts))
    except ValueError as error:
        raise UserError(f"--predict: {error}; give FLOPs such as 1e18") from error
    if bad := [amount for amount in amounts if not 0 < amount < math.inf]:
        raise UserError(f"--predict: {bad[0]} is no amount of compute; give FLOPs such as 1e18")
    return amounts


def fit(
    flops: np.ndarray, loss: np.ndarray, *, exponents: Sequence[float] = (0.05, 0.2, 0.5, 1.0)
) -> Law:
    """The law through float[n] FLOPs and losses; the best found from each of these exponents.

    Raises:
      UserError: fewer than four different amounts of compute: three numbers are fitted.
    """
    flops, loss = np.asarray(flops, np.float64), np.asarray(loss, np.float64)
    if len(set(flops)) < 4:
        raise UserError(f"{len(set(flops))} amounts of compute: the law needs 4 or more")
    unit = math.exp(np.mean(np.log(flops)))
    x, y = np.log(flops / unit), np.log(loss)

    def residuals(parameters: np.ndarray) -> np.ndarray:
        irreducible, scale, exponent = parameters
        return np.logaddexp(irreducible, scale - np.exp(exponent) * x) - y

    def jacobian(parameters: np.ndarray) -> np.ndarray:
        irreducible, scale, exponent = parameters
        falling = scale - np.exp(exponent) * x
        share = np.exp(falling - np.logaddexp(irreducible, falling))  # of the loss that falls
        return np.stack([1 - share, share, -share * np.exp(exponent) * x], axis=1)

    found = []
    for exponent in exponents:
        start = np.log([loss.min() / 2, loss.min() / 2, exponent])
        found.append(least_squares(residuals, start, jacobian, loss="huber", f_scale=_HUBER))
    best = min(found, key=lambda result: result.cost)
    irreducible, scale, exponent = np.exp(best.x).tolist()
    return Law(irreducible, scale, exponent, unit)


def resample(
    law: Law, flops: np.ndarray, loss: np.ndarray, *, resamples: int, seed: int
) -> list[Law]:
    """Laws of data drawn anew: residuals of log L resampled over the points (Efron & Tibshirani
    1993, section 9.4).

    Residuals are widened for the three numbers that are fitted, and by Student's t over the normal
    quantile, without which intervals from so few points hold the truth too rarely (*ours*).
    """
    rng, fitted = np.random.default_rng(seed), np.log(law(flops))
    residuals = np.log(loss) - fitted
    freedom, tail = len(flops) - 3, (1 + _LEVEL) / 2
    residuals *= math.sqrt(len(flops) / freedom)
    residuals *= stats.t.ppf(tail, freedom) / stats.norm.ppf(tail)
    drawn = rng.choice(residuals, (resamples, len(flops)))
    return [fit(flops, np.exp(fitted + noise), exponents=(law.exponent,)) for noise in drawn]


def interval(values: Iterable[float]) -> tuple[float, float]:
    """The middle 95%."""
    low, high = np.quantile(list(values), [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return float(low), float(high)


def read_compiled(file: Path, steps: int, law: Law) -> dict[str, Any]:
    """What `launch/compile.py --steps=sft --out=FILE` found of a machine, for a run of `steps`.

    seconds: of one step, by the roofline; hbm: bytes of a device at its peak; flops: of the run;
    loss: what `law` gives for these.

    Raises:
      UserError: the file is none of those, or the program did not fit and has no time.
    """
    try:
        found = reading.read_json(file)
        step, devices = found["steps"]["sft"], math.prod(found["mesh"].values())
        required = (step["flops"] - step["flops_repeated"]) * devices * steps
        seconds, peak = max(step["seconds"].values()), int(step["peak"])
        if not (0 < required < math.inf and 0 < seconds < math.inf and peak > 0):
            raise ValueError("no time, memory or operations")
        return {
            "name": file.stem,
            "topology": str(found["topology"]),
            "slices": int(found["slices"]),
            "seconds": seconds,
            "hbm": peak,
            "hours": seconds * steps / 3600,
            "flops": required,
            "loss": float(law(required)),
        }
    except UserError as error:
        raise UserError(f"--compiled={error}") from error
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise UserError(
            f"--compiled={file} has no step sft that fits; write it with launch/compile.py "
            "--steps=sft --out=FILE"
        ) from error


def study(
    runs: Sequence[Path],
    *,
    predict: Sequence[float],
    compiled: Sequence[Path] = (),
    resamples: int,
    seed: int,
    out: Path,
) -> str:
    """Fits, writes scaling.json, .png and .svg into `out`, and gives the text for the screen.

    predict: FLOPs for which a loss is extrapolated; compiled: see `read_compiled`.
    """
    points = read(runs)
    flops, loss = np.array([p.flops for p in points]), np.array([p.loss for p in points])
    law = fit(flops, loss)
    laws = resample(law, flops, loss, resamples=resamples, seed=seed)
    predictions: list[dict[str, Any]] = [
        {"flops": c, "loss": float(law(c)), "interval": interval(float(one(c)) for one in laws)}
        for c in predict
    ]
    found: dict[str, Any] = {
        name: {
            "value": getattr(law, name), "interval": interval(getattr(one, name) for one in laws)
        }
        for name in ("irreducible", "exponent")
    }  # fmt: skip
    steps = finished(runs[0], "sft")["sft"]["steps"]
    machines = [read_compiled(file, steps, law) for file in compiled]
    out.mkdir(parents=True, exist_ok=True)
    write_json(
        out / "scaling.json",
        {
            "points": [dataclasses.asdict(point) for point in points],
            "law": dataclasses.asdict(law),
            **found,
            "predictions": predictions,
            "machines": machines,
            "resamples": resamples,
            "seed": seed,
        },
    )
    _plot(out / "scaling", points, law, laws)
    rows = [["run", "parameters", "FLOPs", "loss", "fit"]]
    rows += [
        [p.name, f"{p.parameters:,}", f"{p.flops:.3g}", f"{p.loss:.4f}", f"{law(p.flops):.4f}"]
        for p in points
    ]
    said = "  ".join(
        f"{symbol} {found[name]['value']:.4g} {_bracket(found[name]['interval'])}"
        for symbol, name in (("E", "irreducible"), ("alpha", "exponent"))
    )
    lines = [
        aligned(rows, left=1),
        "",
        f"L = E + A / C^alpha: {said}",
        f"(95% intervals, {resamples:,} resamples of residuals, seed {seed})",
    ]
    lines += [
        f"predicted at {p['flops']:.3g} FLOPs: {p['loss']:.4g} {_bracket(p['interval'])}"
        for p in predictions
    ]
    if machines:
        rows = [["compiled", "topology", "s/step", "GiB", f"h/{steps} steps", "FLOPs", "loss"]]
        rows += [
            [
                m["name"], f"{m['slices']} x {m['topology']}", f"{m['seconds']:.3g}",
                f"{m['hbm'] / 2**30:.2f}", f"{m['hours']:.3g}", f"{m['flops']:.3g}",
                f"{m['loss']:.4g}",
            ]
            for m in machines
        ]  # fmt: skip
        lines += ["", aligned(rows, left=2)]
    return "\n".join(lines)


def _bracket(ends: tuple[float, float]) -> str:
    return f"[{ends[0]:.4g}, {ends[1]:.4g}]"


def _plot(path: Path, points: Sequence[Point], law: Law, laws: Sequence[Law]) -> None:
    flops = np.array([point.flops for point in points])
    x = np.geomspace(flops.min() / 2, flops.max() * 10, 100)
    low, high = np.quantile([one(x) for one in laws], [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2], axis=0)

    def draw(figure: Figure) -> None:
        axis = figure.subplots()
        axis.fill_between(x, low, high, color="lightgray")
        axis.plot(x, law(x), color="black")
        axis.plot(flops, [point.loss for point in points], "o", color="black")
        for point in points:
            axis.annotate(point.name, (point.flops, point.loss), (4, 4), textcoords="offset points")
        axis.set(xscale="log", xlabel="training FLOPs", ylabel="held-out loss, nats a token")

    figures.write(path, (6, 4), draw)
