"""What `launch/data.py` does: looks at the data of a config, and fetches pictures."""

import functools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml_collections import ConfigDict

from mmsrec_jax.data import build
from mmsrec_jax.data.fetching import fetch as fetching
from mmsrec_jax.data.fetching import listed
from mmsrec_jax.data.fetching.listed import Listed
from mmsrec_jax.data.inspection import numbers, problems, samples
from mmsrec_jax.data.inspection.findings import Findings
from mmsrec_jax.data.inspection.items import ItemTexts
from mmsrec_jax.data.inspection.samples import History
from mmsrec_jax.data.inspection.tables import Table
from mmsrec_jax.data.published.image_urls import image_urls
from mmsrec_jax.methods.settings import Settings
from mmsrec_jax.pages import data_page, document
from mmsrec_jax.runtime import lock
from mmsrec_jax.runtime.buckets import run as buckets
from mmsrec_jax.runtime.buckets.given import local
from mmsrec_jax.runtime.buckets.objects import is_url
from mmsrec_jax.runtime.errors import UserError
from mmsrec_jax.runtime.settings import from_config

if TYPE_CHECKING:  # seconds of import, paid by those who use it
    from transformers import PreTrainedTokenizerBase


def fetch(wanted: Listed, images: str, settings: fetching.FetchSettings) -> fetching.Summary:
    """Fetches pictures into `images`, a folder that is made when absent, also in a bucket: what is
    there already is copied to this machine first, and what arrives goes there once in a while.

    Raises:
      UserError: as `fetching.fetch`; or another fetch is under way there.
    """
    if is_url(images):
        with buckets.opened(images, "--images") as copy:
            (copy / fetching.FOLDER).mkdir(exist_ok=True)
            return replace(fetching.fetch(wanted, copy, settings), folder=images.rstrip("/"))
    folder = Path(images) / fetching.FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    with lock.only_run(folder, "--images"):
        return fetching.fetch(wanted, Path(images), settings)


def published_pictures(config: ConfigDict) -> tuple[Listed, str]:
    """What the publisher of a config's data says of pictures, and where the config looks for them.

    Raises:
      UserError: the data is of no publisher, or its files name no pictures.
    """
    data = from_config(Settings, config).data
    build.check(data)
    if data.source in ("atomic", "toyshop"):
        raise UserError(
            f"config.data.source={data.source!r} names no URLs; give a list with --urls"
        )
    wanted = listed.of_pairs(image_urls(data.source, local(data.root)))
    if not len(wanted):
        raise UserError(f"{data.root}: {data.source} names no pictures; give a list with --urls")
    return wanted, data.images_root or f"{data.root.rstrip('/')}/images"


@dataclass(frozen=True)
class Seen:
    """What one look found; what was not asked for is empty.

    Attributes:
      source: where the data is from.
      findings: None unless the data was checked.
    """

    source: str
    tables: Sequence[Table] = ()
    findings: Findings | None = None
    histories: Sequence[History] = ()

    @property
    def is_sound(self) -> bool:
        """Whether a check found nothing to be put right."""
        return self.findings is None or not self.findings.problems

    def text(self) -> str:
        """Lines for the screen."""
        blocks = [table.text() for table in self.tables]
        if not self.tables:  # beside numbers, histories are for the page
            blocks += [history.text() for history in self.histories]
        if self.findings is not None:
            count = len(self.findings.problems)
            told = f"{count:,} problem{'' if count == 1 else 's'}" if count else "no problem found"
            blocks.append("\n".join([*self.findings.lines(), f"{self.source}: {told}"]))
        return "\n\n".join(blocks)

    def json(self) -> str:
        """The same as one JSON object."""
        found: dict[str, Any] = {"source": self.source}
        if self.tables:
            found["tables"] = {table.title: table.json() for table in self.tables}
        if self.findings is not None:
            found |= asdict(self.findings)
        if self.histories:
            found["histories"] = [history.json() for history in self.histories]
        return json.dumps(found, indent=1)


class Look:
    """The data of a config, read once for all that is asked of it.

    Raises:
      UserError: the config or the data cannot be read.
    """

    def __init__(self, config: ConfigDict):
        self._settings = from_config(Settings, config)
        build.check(self._settings.data)
        self._prepared = build.read(self._settings.data)

    def stats(self, *, tokenizer: str, users: int, seed: int) -> Seen:
        """Numbers, and some histories for the page. tokenizer: a folder, else that of the model of
        the config, if it names one."""
        prompts = self._settings.prompts
        tables = numbers.tables(
            self._prepared,
            self._texts,
            _tokenizer(tokenizer or self._settings.model.path),
            prompt_fields=prompts.fields,
            text_tokens=prompts.text_tokens,
        )
        return Seen(self._source, tables=tables, histories=self._drawn(users, seed))

    def check(self) -> Seen:
        """What is wrong."""
        found = problems.check(self._settings.data, self._prepared, self._texts)
        return Seen(self._source, findings=found)

    def sample(self, *, user: str, users: int, seed: int) -> Seen:
        """The history of one user, or of some drawn at random."""
        if user:
            return Seen(self._source, histories=[samples.of_user(self._prepared, user)])
        return Seen(self._source, histories=self._drawn(users, seed))

    def write_page(self, path: Path, seen: Seen, command: str) -> None:
        """What was seen as a page."""
        page = data_page.page(
            seen.source, command, self._prepared.dataset.catalog, histories=seen.histories,
            tables=seen.tables, findings=seen.findings,
        )  # fmt: skip
        document.write(path, page)

    @property
    def _source(self) -> str:
        return self._prepared.report.source

    @functools.cached_property
    def _texts(self) -> ItemTexts:
        items = self._prepared.items
        shown = items if isinstance(items, list) else items.without_images()
        return ItemTexts(shown, self._prepared.dataset.catalog.has_image)

    def _drawn(self, users: int, seed: int) -> list[History]:
        return samples.draw(self._prepared, users, seed)


def _tokenizer(directory: str | None) -> "PreTrainedTokenizerBase | None":
    if not directory:
        return None
    from mmsrec_jax.hf import tokenizer

    return tokenizer.load(local(directory))
