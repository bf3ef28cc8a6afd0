"""What `launch/data.py check` says: whether a data set can be trusted, before it is trained on."""

import os
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from mmsrec_jax.data import images
from mmsrec_jax.data.build import DataSettings, Prepared
from mmsrec_jax.data.inspection import leaks, raw_files
from mmsrec_jax.data.inspection.findings import Finding, Findings, first
from mmsrec_jax.data.inspection.items import ItemTexts
from mmsrec_jax.data.records import Catalog
from mmsrec_jax.runtime.buckets.given import local
from mmsrec_jax.runtime.progress import Progress
from mmsrec_jax.runtime.reading import shown

_MARKUP = re.compile(r"&(amp|quot|lt|gt|nbsp|#\d+);|</?(br|p|div|span|b|i|li|ul)\b[^>]*>", re.I)
_CHUNK = 256  # pictures


def check(settings: DataSettings, prepared: Prepared, texts: ItemTexts) -> Findings:
    """Everything that is looked for. Reads all pictures."""
    findings = Findings()
    if settings.source == "atomic":
        raw_files.check(local(settings.root), findings)
    _check_split(settings, prepared, findings)
    _check_texts(prepared, texts, findings)
    _check_images(settings, prepared, findings)
    for what, count in prepared.report.notes.items():
        findings.notes.append(Finding(prepared.report.source, f"{count:,} {what}", "as counted"))
    return findings


def _check_split(settings: DataSettings, prepared: Prepared, findings: Findings) -> None:
    histories, split = prepared.dataset.histories, prepared.dataset.split
    source = prepared.report.source
    for name in ("train", "validation", "test"):
        if not len(getattr(split, name)):
            findings.problems.append(
                Finding(source, f"the split has no {name} targets", "use longer histories, "
                        "another config.data.split or other quantiles")
            )  # fmt: skip
    if histories.clock and (np.diff(histories.timestamps)[_within(histories.offsets)] < 0).any():
        findings.problems.append(
            Finding(source, "a history is not in the order of time", "report this as a fault")
        )
    for name, found in leaks.parts(histories, split).items():
        _check_part(prepared, name, found, findings)


def _check_part(prepared: Prepared, name: str, part: leaks.Part, findings: Findings) -> None:
    """name: validation or test."""
    catalog, histories, split = prepared.dataset
    source, kind = prepared.report.source, f"{name} targets like that"

    def add(mask: np.ndarray, what: str, remedy: str) -> None:
        found = []
        for row in first(part.targets[mask]):
            user = histories.users[np.searchsorted(histories.offsets, row, side="right") - 1]
            item = catalog.ids[histories.items[row]]
            where = f"{source}: user {shown(str(user))}, item {shown(str(item))}"
            found.append(Finding(where, f"the {name} target {what}", remedy))
        findings.several(found, int(mask.sum()), are_problems=True, kind=kind)

    add(part.in_own_input, "stands in its own input", "drop repeated items")
    if split.kind == "global_time":
        add(part.before_training, "is earlier than training", "report this as a fault")
    if len(part.tied) and part.tied.mean() > 0.1:
        findings.notes.append(
            Finding(
                source,
                f"{part.tied.mean():.0%} of the {name} targets are at the time of the interaction "
                "before them: their order is drawn at random",
                "take finer times if there are",
            )
        )


def _within(offsets: np.ndarray) -> np.ndarray:
    """bool[T-1]: whether rows t and t+1 are of one user."""
    inside = np.ones(max(int(offsets[-1]) - 1, 0), bool)
    ends = offsets[1:-1] - 1
    inside[ends[(ends >= 0) & (ends < len(inside))]] = False
    return inside


def _check_texts(prepared: Prepared, texts: ItemTexts, findings: Findings) -> None:
    ids, source = prepared.dataset.catalog.ids, prepared.report.source

    def item(i: int) -> str:
        return f"{source}: item {shown(str(ids[i]))}"

    bare = np.flatnonzero(texts.is_bare & ~texts.has_image)
    if len(bare):
        findings.notes.append(
            Finding(
                item(int(bare[0])),
                f"has neither text nor picture; so do {len(bare):,} items",
                "an MLLM knows nothing of them but their place in histories",
            )
        )
    marked = [i for i, text in enumerate(texts.whole) if _MARKUP.search(text)]
    if marked:
        example = _MARKUP.search(texts.whole[marked[0]])
        assert example is not None
        findings.notes.append(
            Finding(
                item(marked[0]),
                f"its text has markup such as {shown(example[0])}; so do {len(marked):,} items",
                "decode it (html.unescape) when the files are made",
            )
        )
    counts = Counter(text for text in texts.whole if text)
    repeated = {text for text, count in counts.items() if count > 1}
    if repeated:
        same = [i for i, text in enumerate(texts.whole) if text in repeated]
        findings.notes.append(
            Finding(
                item(same[0]),
                f"has the same text as another item; so do {len(same):,} items",
                "a model tells them apart by their pictures, if at all",
            )
        )


def _check_images(settings: DataSettings, prepared: Prepared, findings: Findings) -> None:
    catalog, source = prepared.dataset.catalog, prepared.report.source
    unused = sum(
        count for what, count in prepared.report.notes.items() if what.startswith("image files of")
    )
    numbers = np.flatnonzero(catalog.has_image)
    missing = np.flatnonzero(~catalog.has_image)
    if unused and not len(numbers):
        findings.problems.append(
            Finding(
                settings.images_root or f"{source}/images",
                f"none of its {unused:,} images is called as an item",
                "name them <item_id>.jpg",
            )
        )
    elif len(missing):
        example = shown(str(catalog.ids[missing[0]]))
        what = f"{len(missing):,} of {len(catalog):,} items have no picture, such as {example}"
        remedy = "they are shown by their texts"
        if not len(numbers):
            remedy += "; if there are pictures, name their folder in config.data.images_root"
        findings.notes.append(Finding(source, what, remedy))
    corrupt = _corrupt(catalog, numbers)
    found = [
        Finding(_picture_of(prepared, i), reason, "copy it again or delete it: the item then has "
                "no picture")
        for i, reason in corrupt
    ]  # fmt: skip
    findings.several(found, len(found), are_problems=True, kind="pictures that cannot be read")


def _picture_of(prepared: Prepared, i: int) -> str:
    id = str(prepared.dataset.catalog.ids[i])
    if isinstance(prepared.items, list):
        return f"{prepared.report.source}: picture of item {shown(id)}"
    return prepared.items.image_name(id)


def _corrupt(catalog: Catalog, numbers: np.ndarray) -> list[tuple[int, str]]:
    """(item, reason) of the pictures that cannot be decoded."""
    progress = Progress("pictures", len(numbers), unit="pictures")

    def fault(i: int) -> tuple[int, str]:
        try:
            if (encoded := catalog[i].image) is not None:
                images.decode(encoded)
        except images.ImageError as error:
            return i, str(error)
        return i, ""

    found = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # decoders release the GIL
        for start in range(0, len(numbers), _CHUNK):
            chunk = numbers[start : start + _CHUNK].tolist()
            found += [(i, reason) for i, reason in pool.map(fault, chunk) if reason]
            progress.update(len(chunk))
    return found
