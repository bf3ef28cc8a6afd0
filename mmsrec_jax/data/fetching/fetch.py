"""A folder of pictures from a list of URLs: what `launch/data.py fetch` does.

DIR/<item_id>.jpg          pictures, made small once
DIR/fetch/journal.jsonl    a line for every picture (size, SHA-256) and every failure
DIR/fetch/failures.jsonl   the items that have no picture, and why
DIR/fetch/partial/         what is being written
"""

import dataclasses
import hashlib
import json
import os
import queue
import random
import shutil
import threading
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmsrec_jax.data import column_items, images
from mmsrec_jax.data.fetching import links, listed
from mmsrec_jax.data.fetching.client import Client, Failure, Limits, Redirect
from mmsrec_jax.data.fetching.journal import Journal
from mmsrec_jax.data.fetching.schedule import Job, Schedule
from mmsrec_jax.runtime import disk
from mmsrec_jax.runtime.errors import UserError
from mmsrec_jax.runtime.progress import Progress

FOLDER = "fetch"
_PARTIAL = ".partial"  # hidden: what has no name yet goes into no bucket
_MOST_HOPS = 5
_LONGEST_PAUSE = 600.0  # seconds that a host may ask for
_LONGEST_BACKOFF = 60.0
_UNREACHABLE = 100  # failures of this kind in a row, before anything went well


@dataclasses.dataclass(frozen=True)
class FetchSettings:
    """How a list is fetched.

    Attributes:
      max_side: pixels of the longer side of what is stored; larger pictures are made smaller.
      rate: requests a second to one host.
      parallel, per_host: requests at once, to all and to one host.
      attempts: of one picture, when the fault may pass.
      backoff: seconds after a first fault, doubled after each, shortened at random by up to half.
      retry_failures: tries again what failed in an earlier start.
      private_hosts: hosts that may be asked although their addresses are not public.
    """

    max_side: int = 512
    rate: float = 10.0
    parallel: int = 16
    per_host: int = 8
    attempts: int = 5
    backoff: float = 1.0
    limits: Limits = dataclasses.field(default_factory=Limits)
    retry_failures: bool = False
    private_hosts: tuple[str, ...] = ()
    user_agent: str = "mmsrec_jax"


@dataclasses.dataclass
class Summary:
    """Of the items of the list: how many were stored now or by an earlier start, had a picture
    from elsewhere, or have none; kind of failure -> items."""

    folder: str
    items: int = 0
    stored: int = 0
    stored_bytes: int = 0
    stored_before: int = 0
    from_elsewhere: int = 0
    missing: int = 0
    missing_since_before: int = 0
    reasons: dict[str, int] = dataclasses.field(default_factory=dict)

    def text(self) -> str:
        """Lines for the screen."""
        lines = [
            f"{self.folder}: {self.items:,} items",
            f"  fetched now: {self.stored:,} ({self.stored_bytes / 1e6:.1f} MB stored)",
            f"  fetched before: {self.stored_before:,}",
        ]
        if self.from_elsewhere:
            lines.append(f"  there already, not by this program: {self.from_elsewhere:,}")
        lines.append(f"  without a picture: {self.missing:,}")
        lines += [f"    {count:,}  {reason}" for reason, count in self.reasons.items()]
        if self.missing:
            lines.append(f"  which and why: {self.folder}/{FOLDER}/failures.jsonl")
        if self.missing_since_before:
            lines.append(
                f"  {self.missing_since_before:,} of them failed before and were not tried again; "
                "--retry_failures does"
            )
        return "\n".join(lines)

    def json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=1)


def fetch(wanted: listed.Listed, folder: Path, settings: FetchSettings) -> Summary:
    """Fetches what is listed and `folder` lacks.

    The caller sees to it that nobody else does so in the same folder.

    Raises:
      UserError: the journal is damaged, no host can be reached, or a setting cannot be
        sent.
      OSError: the disk is full.
    """
    if not (settings.user_agent.isascii() and settings.user_agent.isprintable()):
        raise UserError(f"--user_agent={settings.user_agent!r}: give plain ASCII letters")
    shutil.rmtree(folder / FOLDER / _PARTIAL, ignore_errors=True)  # of a start that was killed
    (folder / FOLDER / _PARTIAL).mkdir(parents=True)
    journal = Journal(folder / FOLDER / "journal.jsonl", settings.max_side)
    summary = Summary(str(folder), items=len(wanted))
    try:
        left = list(_left(wanted, folder, journal, settings.retry_failures, summary))
        _Fetching(wanted, left, folder, settings).run(journal, summary)
    finally:
        journal.close()
        _write_failures(wanted, folder, journal, summary)
    return summary


def _left(
    wanted: listed.Listed, folder: Path, journal: Journal, retry_failures: bool, summary: Summary
) -> Iterator[int]:
    """Places in the list of what is to be fetched; counts the others."""
    sizes = {entry.name: entry.stat().st_size for entry in os.scandir(folder) if entry.is_file()}
    found = column_items.image_files(folder, within=None)
    pictures = {item for item, path in found.items() if sizes.get(path.name)}
    for i, (item, url) in enumerate(wanted):
        failed = journal.failed.get(item)
        if item in journal.stored:
            if journal.stored[item] == (url, sizes.get(f"{item}.jpg")):
                summary.stored_before += 1
                continue
        elif item in pictures:
            summary.from_elsewhere += 1
            continue
        elif failed is not None and failed["url"] == url and not retry_failures:
            summary.missing_since_before += 1
            continue
        yield i


def _write_failures(
    wanted: listed.Listed, folder: Path, journal: Journal, summary: Summary
) -> None:
    path = folder / FOLDER / "failures.jsonl"
    partial = disk.temporary(path)
    reasons: Counter[str] = Counter()
    with disk.named(path), partial.open("w", encoding="utf-8") as file:
        for item, _ in wanted:
            if (line := journal.failed.get(item)) is not None:
                reasons[line["reason"].partition(": ")[0]] += 1
                file.write(json.dumps(line) + "\n")
    disk.sync(partial)
    os.replace(partial, path)
    summary.missing = reasons.total()
    summary.reasons = dict(reasons.most_common())


@dataclasses.dataclass(frozen=True)
class _Picture:
    """One that waits in `partial` for its name. `line` is for the journal."""

    partial: Path
    line: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class _Missing:
    line: dict[str, Any]
    unreachable: bool


class _Fetching:
    """Threads that fetch, decode and shrink; the calling thread names files and writes lines."""

    def __init__(
        self, wanted: listed.Listed, left: list[int], folder: Path, settings: FetchSettings
    ):
        self._wanted, self._left, self._folder, self._settings = wanted, left, folder, settings
        self._done: queue.SimpleQueue[_Picture | _Missing | BaseException] = queue.SimpleQueue()
        self._schedule = Schedule(self._jobs(), rate=settings.rate, per_host=settings.per_host)
        # Decoding takes memory, and more at once than there are cores is no faster.
        self._decoding = threading.BoundedSemaphore(os.cpu_count() or 1)

    def run(self, journal: Journal, summary: Summary) -> None:
        """Until nothing is left to do."""
        threads = [
            threading.Thread(target=self._work, daemon=True, name=f"fetch-{i}")
            for i in range(min(self._settings.parallel, len(self._left)))
        ]
        try:
            for thread in threads:
                thread.start()
            self._collect(journal, summary)
        finally:
            self._schedule.close()

    def _jobs(self) -> Iterator[Job]:
        for i in self._left:
            item, url = self._wanted[i]
            try:
                listed.file_name(item)
                link = links.parse(url)
            except ValueError as error:
                self._fail(item, url, Failure(str(error), again=False), attempts=0)
                continue
            yield Job(item, url, start=link, link=link)

    def _collect(self, journal: Journal, summary: Summary) -> None:
        progress = Progress("fetch", len(self._left), unit="images")
        failed = unreachable = 0
        while progress.done < len(self._left):
            try:
                found = self._done.get(timeout=progress.interval)
            except queue.Empty:
                progress.update(0, {"failed": failed})
                continue
            if isinstance(found, BaseException):
                raise found
            if isinstance(found, _Picture):
                os.replace(found.partial, self._folder / listed.file_name(found.line["item"]))
                summary.stored += 1
                summary.stored_bytes += found.line["bytes"]
            else:
                failed += 1
                unreachable += found.unreachable
            journal.add(found.line)
            progress.update(1, {"failed": failed, "MB": summary.stored_bytes / 1e6})
            if unreachable == failed == _UNREACHABLE and not summary.stored:
                raise UserError(
                    f"the first {failed} URLs were not to be reached (the last: "
                    f"{found.line['reason']}); is there a way to the internet? "
                    "Later: the same command with --retry_failures"
                )

    def _work(self) -> None:
        settings = self._settings
        client = Client(
            settings.limits, user_agent=settings.user_agent, private_hosts=settings.private_hosts
        )
        try:
            while (job := self._schedule.take()) is not None:
                self._do(client, job)
        except BaseException as error:  # the calling thread raises it
            self._done.put(error)
        finally:
            client.close()

    def _do(self, client: Client, job: Job) -> None:
        try:
            found = client.get(job.link)
            if isinstance(found, Redirect):
                self._schedule.put_back(job, self._redirected(job, found.location))
                return
            picture = self._store(job, found)
        except Failure as failure:
            job.attempts += 1
            if failure.again and job.attempts < self._settings.attempts:
                self._try_later(job, failure)
            else:
                self._fail(job.item, job.url, failure, job.attempts)
                self._schedule.finished(job)
            return
        self._done.put(picture)
        self._schedule.finished(job)

    def _redirected(self, job: Job, location: str) -> links.Link:
        job.hops += 1
        if job.hops > _MOST_HOPS:
            raise Failure(f"more than {_MOST_HOPS} redirects", again=False)
        try:
            return links.redirected(job.link, location)
        except links.BadLink as error:
            raise Failure(str(error), again=False) from error

    def _try_later(self, job: Job, failure: Failure) -> None:
        backoff = min(_LONGEST_BACKOFF, self._settings.backoff * 2 ** (job.attempts - 1))
        pause = backoff * random.uniform(0.5, 1)
        if failure.wait is not None:
            pause = min(_LONGEST_PAUSE, failure.wait)
        job.hops = 0
        rests = pause if failure.is_busy else 0.0
        self._schedule.put_back(job, job.start, after=pause, host_rests=rests)

    def _store(self, job: Job, body: bytes) -> _Picture:
        try:
            images.suffix(body)
        except images.ImageError as error:
            raise Failure(f"no picture: {error}", again=False) from error
        try:
            with self._decoding:
                data, width, height = images.shrunk(body, self._settings.max_side)
        except images.ImageError as error:  # perhaps damaged on its way
            raise Failure(f"damaged picture: {error}", again=True) from error
        partial = self._folder / FOLDER / _PARTIAL / uuid.uuid4().hex
        with disk.named(partial):
            partial.write_bytes(data)
        line = {
            "item": job.item,
            "url": job.url,
            "bytes": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
            "width": width,
            "height": height,
            "fetched_bytes": len(body),
            "fetched_sha256": hashlib.sha256(body).hexdigest(),
        }
        return _Picture(partial, line)

    def _fail(self, item: str, url: str, failure: Failure, attempts: int) -> None:
        line = {"item": item, "url": url, "reason": str(failure), "attempts": attempts}
        self._done.put(_Missing(line, failure.unreachable))
