"""The table of a run: every system, how sure its difference to a baseline is, and slices."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmsrec_jax.data.records import Dataset
from mmsrec_jax.evaluation import metrics, protocols, ranking, slices
from mmsrec_jax.evaluation.beyond_accuracy import Training
from mmsrec_jax.evaluation.comparison import bootstrap
from mmsrec_jax.evaluation.metrics import Ranks
from mmsrec_jax.evaluation.report import is_shown
from mmsrec_jax.pages.document import bar, folded, note, table
from mmsrec_jax.pages.markup import Content, Html, element, joined

FEW_USERS = 5_000  # up to so many the interval is a bootstrap, above it the normal one
_MOST_INTERACTIONS = 50_000_000  # above it no slices: counting who had what takes too long
_KNOWS_THE_TRUTH = ("bayes_learned_groups", "bayes_optimal", "oracle")


@dataclass(frozen=True)
class Difference:
    """Of a mean metric to the baseline's, with its 95% interval over users."""

    value: float
    low: float
    high: float

    @property
    def sign(self) -> int:
        """1 or -1 where the interval is above or below 0; 0 where it includes it."""
        return int(self.low > 0) - int(self.high < 0)


@dataclass(frozen=True)
class Results:
    """What step `evaluation` left.

    Attributes:
      rows: of the table, by (protocol, system), in its order.
      ranks: of the systems under the protocols, users aligned.
      headline: the system that the run is about.
      baseline: the one that differences are taken to.
      gaps: of each system but the baseline the differences in `metrics`.
    """

    rows: Mapping[tuple[str, str], Mapping[str, Any]]
    ranks: Mapping[tuple[str, str], Ranks]
    headline: str
    baseline: str
    gaps: Mapping[tuple[str, str], list[Difference]]

    @property
    def protocols(self) -> list[str]:
        return list(dict.fromkeys(protocol for protocol, _ in self.rows))

    @property
    def metrics(self) -> list[str]:
        """Those that stand out: NDCG and HR at 10, or at the largest cut-off there is."""
        return _metrics(next(iter(self.rows.values())))

    def systems(self, protocol: str) -> list[str]:
        return [system for of, system in self.rows if of == protocol]

    def with_lists(self) -> str:
        """The system whose ranked lists of the whole catalog are shown: the headline's own, or, of
        an MLLM that was ranked among candidates alone, the baseline's. Empty without lists."""
        for system in (self.headline, self.baseline):
            found = self.ranks.get((protocols.FULL, system))
            if found is not None and found.top.shape[1]:
                return system
        return ""


def read(folder: Path, rows: Sequence[Mapping[str, Any]], headline: str, baseline: str) -> Results:
    """Results of the table rows in `table.json` and of the ranks beside it.

    headline, baseline: systems; a protocol under which one of them has no row has no difference.
    """
    by_name = {(row["protocol"], row["system"]): row for row in rows}
    found = {}
    for protocol, system in by_name:
        path = folder / f"ranks-{system.replace('/', '.')}-{protocol}.parquet"
        ranks = ranking.read_ranks(path)[0]
        is_shown_by_user = system in (headline, baseline)
        found[protocol, system] = ranks if is_shown_by_user else _without_lists(ranks)
    names = _metrics(rows[0])
    gaps: dict[tuple[str, str], list[Difference]] = {}
    for protocol in dict.fromkeys(protocol for protocol, _ in by_name):
        own = {name: ranks for (of, name), ranks in found.items() if of == protocol}
        base = own.pop(baseline, None)
        if base is not None and own:
            compared = differences(list(own.values()), base, names)
            gaps |= {(protocol, name): each for name, each in zip(own, compared, strict=True)}
    return Results(by_name, found, headline, baseline, gaps)


def differences(
    systems: Sequence[Ranks], base: Ranks, names: Sequence[str]
) -> list[list[Difference]]:
    """Of each system and metric the difference to another ranking of the same users, as
    `launch/evaluate.py --compare` takes it; of more than `FEW_USERS` users the interval of the
    normal distribution, which is then the same to the eye and takes no resamples."""
    of_base = [metrics.per_row(base, name) for name in names]
    gaps = np.stack(
        [
            metrics.per_row(ranks, name) - other
            for ranks in systems
            for name, other in zip(names, of_base, strict=True)
        ],
        axis=1,
    )
    mean = gaps.mean(0)
    if len(gaps) > FEW_USERS:
        margin = 1.959964 * gaps.std(0, ddof=1) / len(gaps) ** 0.5
        low, high = mean - margin, mean + margin
    else:
        low, high = bootstrap.intervals(gaps)
    found = [Difference(*map(float, each)) for each in zip(mean, low, high, strict=True)]
    return [found[start : start + len(names)] for start in range(0, len(found), len(names))]


def section(results: Results) -> Html:
    """For every protocol the table that counts, best first; all metrics folded."""
    parts: list[Content] = [
        note(
            f"Differences are to {results.baseline}, of the same users, with 95% intervals. ",
            element("b", "▲"),
            " and ",
            element("b", "▼"),
            " mark intervals that exclude 0. ",
            "Sampled protocols order systems otherwise than the full catalog does.",
        )
    ]
    for protocol in results.protocols:
        parts += [
            element("h3", protocol_title(protocol)),
            _main_table(results, protocol),
            folded("All metrics", _whole_table(results, protocol)),
        ]
    return joined(parts)


def figures(results: Results) -> Html:
    """The numbers that stand out, for the head of the page."""
    found = []
    for protocol in results.protocols:
        row = results.rows.get((protocol, results.headline))
        if row is None:
            continue
        gaps = results.gaps.get((protocol, results.headline))
        for place, name in enumerate(results.metrics):
            beside: Content = f"{row['users']:,} users"
            if gaps:
                beside = [_gap(gaps[place]), f" to {results.baseline}"]
            found.append((f"{metric_title(name)}, {protocol}", f"{row[name]:.4f}", beside))
    return element("div", [_figure(*each) for each in found[:4]], class_="figures")


def slices_section(results: Results, dataset: Dataset) -> Html:
    """Headline and baseline on parts of the users, under the first protocol that has both."""
    protocol = next((p for p in results.protocols if (p, results.headline) in results.ranks), "")
    if not protocol:
        return note("The run ranked nothing that could be cut into slices.")
    catalog, histories, split = dataset
    if len(histories.items) > _MOST_INTERACTIONS:
        return note(
            f"Left out: {len(histories.items):,} interactions. launch/evaluate.py --compare has "
            "the slices."
        )
    own = results.ranks[protocol, results.headline]
    base = results.ranks.get((protocol, results.baseline))
    training = Training.of(histories, split, len(catalog))
    names = results.metrics
    is_compared = base is not None and results.baseline != results.headline
    head: list[Content] = ["slice", "users"]
    for name in names:
        head += [metric_title(name), *([f"to {results.baseline}"] if is_compared else [])]
    rows = []
    for part, inside in slices.slices(own, training, split).items():
        at = np.flatnonzero(inside)
        line: list[Content] = [part, f"{len(at):,}"]
        mine = own.select(at)
        gaps: list[Difference] = []
        if part == slices.WHOLE:
            gaps = results.gaps.get((protocol, results.headline), [])
        elif is_compared and base is not None and len(at):
            gaps = differences([mine], base.select(at), names)[0]
        for place, name in enumerate(names):
            mean = f"{metrics.per_row(mine, name).mean():.4f}" if len(at) else "–"
            line += [mean, *([gap_cell(gaps[place]) if gaps else ""] if is_compared else [])]
        rows.append(line)
    caption = f"{results.headline}, {protocol_title(protocol).lower()}"
    return joined(
        note(
            "New items occur in no training interaction, cold ones in at most "
            f"{slices.COLD}. Head items are the most popular that make up half of the training "
            "interactions."
        ),
        table(caption, head, rows),
    )


def metric_title(name: str) -> str:
    """`ndcg@10` as NDCG@10."""
    return name.upper()


def protocol_title(protocol: str) -> str:
    """What competes under a protocol."""
    if protocol == protocols.FULL:
        return "Among the whole catalog"
    return f"Among {protocol.partition('@')[2]} sampled items and the true one"


def _main_table(results: Results, protocol: str) -> Html:
    names = results.metrics
    systems = sorted(
        results.systems(protocol), key=lambda system: -results.rows[protocol, system][names[0]]
    )
    top = max(results.rows[protocol, system][names[0]] for system in systems) or 1.0
    lines = []
    for system in systems:
        row = results.rows[protocol, system]
        gaps = results.gaps.get((protocol, system))
        cells: list[Content] = [[system_name(system), bar(row[names[0]] / top)]]
        for place, name in enumerate(names):
            cells += [f"{row[name]:.4f}", gap_cell(gaps[place]) if gaps else "–"]
        lines.append(cells)
    head: list[Content] = ["system"]
    for name in names:
        head += [metric_title(name), "difference"]
    users = results.rows[protocol, systems[0]]["users"]
    marked = [number for number, system in enumerate(systems) if system == results.headline]
    caption = f"{users:,} users, protocol {protocol}, best first"
    return table(caption, head, lines, marked=marked)


def _whole_table(results: Results, protocol: str) -> Html:
    systems = results.systems(protocol)
    first = results.rows[protocol, systems[0]]
    names = [name for name, value in first.items() if isinstance(value, float) and is_shown(name)]
    lines: list[list[Content]] = []
    for system in systems:
        row = results.rows[protocol, system]
        lines.append([system, *(f"{row[name]:.4f}" for name in names)])
    marked = [number for number, system in enumerate(systems) if system == results.headline]
    caption = f"Every metric, protocol {protocol}, as in table.json"
    return table(caption, ["system", *map(metric_title, names)], lines, marked=marked)


def _without_lists(ranks: Ranks) -> Ranks:
    """Lists of many users and systems would fill the memory."""
    return Ranks(ranks.users, ranks.targets, ranks.ranks, ranks.candidates, ranks.ties)


def _metrics(row: Mapping[str, Any]) -> list[str]:
    cutoffs = [int(name.partition("@")[2]) for name in row if name.startswith("hr@")]
    cutoff = 10 if 10 in cutoffs else max(cutoffs)
    return [f"ndcg@{cutoff}", f"hr@{cutoff}"]


def system_name(name: str) -> Content:
    """A system's name, with a label where it knows what no recommender can."""
    if name not in _KNOWS_THE_TRUTH:
        return name
    return [name, " ", element("span", "knows the generator", class_="tag")]


def _gap(gap: Difference) -> Html:
    kind = {1: "up", 0: None, -1: "down"}[gap.sign]
    return element("span", f"{gap.value:+.4f}", class_=kind)


def gap_cell(gap: Difference) -> Html:
    """A difference, marked where its interval excludes 0, and the interval."""
    interval = f"{gap.low:+.4f} to {gap.high:+.4f}"
    return joined(_gap(gap), element("span", interval, class_="interval"))


def _figure(name: str, value: str, beside: Content) -> Html:
    return element(
        "div",
        element("div", name, class_="name"),
        element("div", value, class_="value"),
        element("div", beside, class_="beside"),
    )
