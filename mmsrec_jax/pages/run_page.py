"""The page of a run, `report.html` in its folder: made again after every step.

It holds samples, so that its size and the time to make it do not grow with the catalog: at most
5 MB, of which pictures take 3.
"""

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from absl import logging

from mmsrec_jax.data.records import Dataset
from mmsrec_jax.pages import curves, document, items, people, results, run_folder, settings
from mmsrec_jax.pages.document import Section
from mmsrec_jax.pages.markup import Content, Html, element, joined
from mmsrec_jax.pages.pictures import Pictures
from mmsrec_jax.pages.results import Results
from mmsrec_jax.pages.run_folder import DONE, RunFolder
from mmsrec_jax.runtime import disk

FILE = "report.html"
_POPULARITY = "popularity"  # every table has it


class RunPage:
    """Makes the page of one run, again and again; what it has read of the data stays.

    Args:
      workdir: of the run.
      dataset: opens what step `data` prepared; called when that step is done.
      defaults: every setting's default, as nested as the config.
    """

    def __init__(self, workdir: Path, dataset: Callable[[], Dataset], defaults: Mapping[str, Any]):
        self._workdir, self._open, self._defaults = workdir, dataset, defaults
        self._dataset: Dataset | None = None
        self._pictures: Pictures | None = None

    def write(self) -> Path:
        """Writes the page; returns its path.

        Raises:
          UserError: no run, or a file of it is damaged.
        """
        began = time.monotonic()
        run = run_folder.read(self._workdir)
        sections: list[Section] = []
        head: list[Content] = [_state(run)]
        if "data" in run.done:
            found = self._read_results(run)
            if found is not None:
                head.append(results.figures(found))
            sections += self._sections_of_data(run, found)
        head.append(settings.machine_facts(run))
        sections += _training(run)
        body = settings.section(run, self._defaults)
        sections.append(Section("run", "Steps and settings", body))
        path = self._workdir / FILE
        title = f"{run.name}: {run.headline}" if run.headline else run.name
        document.write(path, document.document(title, head, sections, self._foot()))
        logging.info("page: %s (%.1f s)", path, time.monotonic() - began)
        return path

    def _read_results(self, run: RunFolder) -> Results | None:
        if "evaluation" not in run.done:
            return None
        folder = self._workdir / "evaluation"
        path = folder / "table.json"
        with disk.readable(path, "run the step evaluation again"):
            rows = json.loads(path.read_text(encoding="utf-8"))
        if not rows:
            return None
        systems = {row["system"] for row in rows}
        compared = str(run.config.get("sequential_model", ""))
        if compared == run.headline or compared not in systems:
            compared = _POPULARITY
        return results.read(folder, rows, run.headline, compared)

    def _sections_of_data(self, run: RunFolder, found: Results | None) -> list[Section]:
        """Results, users and items: whatever there is of them."""
        if self._dataset is None:
            self._dataset = self._open()
            self._pictures = Pictures(self._dataset.catalog)
        dataset, pictures = self._dataset, self._pictures
        assert pictures is not None
        pictures.begin()
        workdir, made = self._workdir, []
        if found is not None:
            users = people.users_section(workdir, found, dataset, pictures, run.done)
            failures = people.failures_section(workdir, found, dataset, pictures, run.done)
            made += [
                Section("results", "Results", results.section(found)),
                Section("slices", "Slices", results.slices_section(found, dataset)),
                Section("users", "Users", users),
                Section("failures", "Failures", failures),
            ]
        cards = items.cards_section(workdir, dataset.catalog, pictures, run.done)
        of_data = items.data_section(workdir / "data", dataset.catalog, pictures)
        return [
            *made,
            Section("items", "Items", cards),
            Section("data", "Data", of_data),
        ]

    def _foot(self) -> Content:
        left_out = self._pictures.left_out if self._pictures is not None else 0
        return [
            "Made from the run's folder alone; numbers are those of its files. This page loads "
            "nothing and runs no script.",
            f" {left_out:,} pictures are left out to keep it small." if left_out else None,
        ]


def _state(run: RunFolder) -> Html:
    done = sum(step.state == DONE for step in run.steps)
    if done == len(run.steps):
        text = f"All {done} steps are done."
    else:
        left = [step.name for step in run.steps if step.state != DONE]
        text = f"{done} of {len(run.steps)} steps are done; next: {left[0]}."
    return element("p", text, class_="lead")


def _training(run: RunFolder) -> list[Section]:
    parts = []
    for step in run.steps:
        path = run.path / step.name / "metrics.jsonl"
        if path.is_file() and (series := curves.read(path)):
            parts += [element("h3", step.name), curves.charts_of_step(series)]
    return [Section("training", "Training", joined(parts))] if parts else []
