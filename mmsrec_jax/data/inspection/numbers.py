"""What `launch/data.py stats` prints: how much there is of what."""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from mmsrec_jax.data.build import Prepared
from mmsrec_jax.data.inspection import leaks
from mmsrec_jax.data.inspection.items import ItemTexts
from mmsrec_jax.data.inspection.tables import Cell, Table, share
from mmsrec_jax.data.records import Histories
from mmsrec_jax.data.report import Report, describe
from mmsrec_jax.data.user_attributes import UserAttributes

if TYPE_CHECKING:  # seconds of import, paid by those who use it
    from transformers import PreTrainedTokenizerBase

_DAY = 86_400.0
_BUCKETS = (1, 2, 3, 5, 10, 20, 50, 100, 200, 500, 1000)  # lengths of histories begin so
_MOST_TOKENIZED = 20_000  # items


def tables(
    prepared: Prepared,
    texts: ItemTexts,
    tokenizer: "PreTrainedTokenizerBase | None",
    *,
    prompt_fields: Sequence[str],
    text_tokens: int,
) -> list[Table]:
    """All of them, in the order of the page.

    Args:
      tokenizer: counts tokens; None leaves that table out.
      prompt_fields, text_tokens: what a prompt shows of an item, and at most how much of it.
    """
    histories = prepared.dataset.histories
    found = [
        _counts(prepared.report, histories, len(prepared.dataset.catalog)),
        _coverage(texts),
        *([_stated(histories.stated)] if histories.stated is not None else []),
        _lengths(histories),
        _length_buckets(histories),
        _popularity(histories, len(prepared.dataset.catalog)),
        *([_times(histories)] if histories.clock else []),
        *([_ratings(histories)] if histories.ratings is not None else []),
        _split(prepared),
    ]
    if tokenizer is not None:
        found.append(_tokens(texts, tokenizer, prompt_fields, text_tokens))
    return found


def _counts(report: Report, histories: Histories, items: int) -> Table:
    read, kept = report.read, describe(histories, items)
    names = ("users", "items", "interactions")
    rows: list[tuple[str, tuple[Cell, ...]]] = [("read", tuple(read[name] for name in names))]
    rows += [(f"- {d.why}", (d.users, d.items, d.interactions)) for d in report.dropped]
    rows.append(("kept", tuple(kept[name] for name in names)))
    return Table("read and dropped", names, tuple(rows))


def _coverage(texts: ItemTexts) -> Table:
    total, with_image = len(texts.has_image), int(texts.has_image.sum())
    counts = {f"text {name}": count for name, count in texts.counts.items()}
    counts |= {"category": texts.categories} if texts.categories else {}
    counts |= {f"attribute {name}": count for name, count in texts.attributes.items()}
    counts["picture"] = with_image
    counts["no text"] = int(texts.is_bare.sum())
    counts["neither text nor picture"] = int((texts.is_bare & ~texts.has_image).sum())
    rows = [(name, (count, share(count, total))) for name, count in counts.items()]
    return Table("what items have", ("items", "share"), tuple(rows))


def _stated(attributes: UserAttributes) -> Table:
    """Counts alone, no values: these are personal."""
    total, silent = len(attributes), np.ones(len(attributes), bool)
    rows: list[tuple[str, tuple[Cell, ...]]] = []
    for name, column in attributes.columns.items():
        count = attributes.coverage[name]
        values = len(column.unique().drop_null())
        rows.append((name, (count, share(count, total), values)))
        silent &= column.is_null().to_numpy(zero_copy_only=False)
    rows.append(("nothing", (int(silent.sum()), share(silent.sum(), total), None)))
    return Table("what users state", ("users", "share", "different values"), tuple(rows))


def _lengths(histories: Histories) -> Table:
    gaps = np.diff(histories.timestamps)
    same_user = np.diff(histories.user_of_row) == 0
    rows = [("interactions of a user", _spread(histories.lengths))]
    rows.append(("interactions of an item", _spread(np.bincount(histories.items))))
    if histories.clock:
        spans = (
            histories.timestamps[histories.offsets[1:] - 1]
            - histories.timestamps[histories.offsets[:-1]]
        )
        rows.append(("days of a history", _spread(spans / _DAY)))
        rows.append(("days between two choices", _spread(gaps[same_user] / _DAY)))
    columns = ("min", "10%", "median", "mean", "90%", "99%", "max")
    return Table("lengths", columns, tuple(rows))


def _spread(values: np.ndarray) -> tuple[Cell, ...]:
    if not len(values):
        return (None,) * 7
    low, tenth, half, ninety, most, high = np.quantile(values, [0, 0.1, 0.5, 0.9, 0.99, 1])
    return tuple(map(float, (low, tenth, half, values.mean(), ninety, most, high)))


def _length_buckets(histories: Histories) -> Table:
    ends = [*_BUCKETS[1:], np.inf]
    rows = []
    for low, end in zip(_BUCKETS, ends, strict=True):
        count = int(((histories.lengths >= low) & (histories.lengths < end)).sum())
        name = f"{low:,} or more" if end == np.inf else f"{low:,}" if end == low + 1 else (
            f"{low:,} to {int(end) - 1:,}"
        )  # fmt: skip
        rows.append((name, (count, share(count, len(histories)))))
    filled = [i for i, (_, (count, _)) in enumerate(rows) if count]
    return Table(
        "users by interactions", ("users", "share"), tuple(rows[filled[0] : filled[-1] + 1])
    )


def _popularity(histories: Histories, items: int) -> Table:
    counts = np.sort(np.bincount(histories.items, minlength=items))[::-1]
    rows: list[tuple[str, tuple[Cell, ...]]] = []
    for percent in (1, 10, 50):
        first = max(1, round(items * percent / 100))
        rows.append(
            (f"most frequent {percent}%", (first, share(counts[:first].sum(), counts.sum())))
        )
    return Table("popularity of items", ("items", "share of interactions"), tuple(rows))


def _times(histories: Histories) -> Table:
    times = histories.timestamps
    tied = np.zeros(len(times), bool)
    same = (np.diff(times) == 0) & (np.diff(histories.user_of_row) == 0)
    tied[1:] |= same
    tied[:-1] |= same
    rows: list[tuple[str, tuple[Cell, ...]]] = [
        ("first", (day(times.min()),)),
        ("last", (day(times.max()),)),
        ("days", (float((times.max() - times.min()) / _DAY),)),
        ("interactions at the time of another of the same user", (share(tied.sum(), len(times)),)),
        ("users with such", (share(len(np.unique(histories.user_of_row[tied])), len(histories)),)),
    ]
    return Table("time", ("",), tuple(rows))


def day(seconds: float) -> str:
    """A moment, as "2014-07-23 09:30" in UTC; a number where it is none."""
    try:
        return time.strftime("%Y-%m-%d %H:%M", time.gmtime(seconds))
    except (OverflowError, ValueError, OSError):
        return f"{seconds:g}"


def _ratings(histories: Histories) -> Table:
    assert histories.ratings is not None
    values, counts = np.unique(histories.ratings, return_counts=True)
    if len(values) > 12:
        edges = np.quantile(histories.ratings, [0, 0.25, 0.5, 0.75, 1])
        names = ("min", "25%", "median", "75%", "max")
        cells = tuple((name, (float(edge),)) for name, edge in zip(names, edges, strict=True))
        return Table("ratings", ("",), cells)
    rows = tuple(
        (f"{value:g}", (int(count), share(count, counts.sum())))
        for value, count in zip(values, counts, strict=True)
    )
    return Table("ratings", ("interactions", "share"), rows)


def _split(prepared: Prepared) -> Table:
    histories, split = prepared.dataset.histories, prepared.dataset.split
    columns = (
        "targets", "of items no training interaction has", "the user had before",
        "at the time of the one before", "earlier than a training interaction",
    )  # fmt: skip
    rows: list[tuple[str, tuple[Cell, ...]]] = [("train", (len(split.train), *[None] * 4))]
    for name, part in leaks.parts(histories, split).items():
        total = len(part.targets)
        shares = [share(mark.sum(), total) for mark in (part.cold, part.in_own_input)]
        timed = [share(mark.sum(), total) for mark in (part.tied, part.before_training)]
        rows.append((name, (total, *shares, *(timed if histories.clock else (None, None)))))
    return Table(f"split {split.kind}", columns, tuple(rows))


def _tokens(
    texts: ItemTexts,
    tokenizer: "PreTrainedTokenizerBase",
    prompt_fields: Sequence[str],
    text_tokens: int,
) -> Table:
    chosen = np.arange(len(texts.has_image))
    if len(chosen) > _MOST_TOKENIZED:
        chosen = np.random.default_rng(0).choice(len(chosen), _MOST_TOKENIZED, replace=False)
    asked = {name: texts.field(name, chosen) for name in texts.counts}
    shown = [name for name in prompt_fields if name in texts.counts]
    if shown:
        joined = ". ".join(shown)
        columns = [texts.field(name, chosen, keep_empty=True) for name in shown]
        whole = [". ".join(filter(None, line)) for line in zip(*columns, strict=True)]
        asked[f"{joined} (as in a prompt)"] = [text for text in whole if text]
    rows = []
    for name, values in asked.items():
        counts = np.array(
            [len(ids) for ids in tokenizer(values, add_special_tokens=False)["input_ids"]]
        )
        rows.append((name, (*_spread(counts), share((counts > text_tokens).sum(), len(counts)))))
    columns_told = ("min", "10%", "median", "mean", "90%", "99%", "max", f"over {text_tokens}")
    of = f", of {len(chosen):,} items drawn" if len(chosen) < len(texts.has_image) else ""
    return Table(f"tokens{of}", columns_told, tuple(rows))
