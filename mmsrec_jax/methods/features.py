"""Item features that the sequential models of a run read: files given by the settings, or made by
the run's MLLM."""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging

from mmsrec_jax.data import item_features
from mmsrec_jax.data.records import Catalog
from mmsrec_jax.evaluation import id_map
from mmsrec_jax.inference.embed import embed_items, embed_texts
from mmsrec_jax.inputs.item_prompts import ContentSource, TextSource
from mmsrec_jax.inputs.item_renderer import PromptConfig
from mmsrec_jax.methods.counts import log_counts
from mmsrec_jax.methods.settings import Settings
from mmsrec_jax.models.mllm import MLLM
from mmsrec_jax.runtime import digests, processes
from mmsrec_jax.runtime.buckets.given import local
from mmsrec_jax.runtime.errors import UserError
from mmsrec_jax.sequential import registry
from mmsrec_jax.sequential.base import CATEGORIES


def check(config: Settings) -> None:
    """Stops early when a feature is neither given nor can be made (UserError)."""
    can_make = bool(config.model.path) or config.method != "sequential"  # has an MLLM anyway
    for model in config.sequential_models:
        item_features.check(_paths(config, model), can_make=can_make)


def given(config: Settings, model: str) -> dict[str, list[Any]]:
    """Digests of the files that the settings give, for the record of a step."""
    paths = {name: Path(path) for name, path in _paths(config, model).items() if path}
    return {name: digests.of_input(path) for name, path in paths.items()}


def to_make(config: Settings, *models: str) -> list[str]:
    """Names of the features that these models of the run read and that are not given."""
    paths = [(name, path) for model in models for name, path in _paths(config, model).items()]
    return list(dict.fromkeys(name for name, path in paths if not path))


def read(config: Settings, model: str, directory: Path, catalog: Catalog) -> dict[str, np.ndarray]:
    """float32[items, width] by name: what the model reads, standardized, and categories.

    directory: of those that `make` wrote.
    """
    module, given_paths = registry.find(model).module, _paths(config, model)
    paths = {name: path or str(_file(directory, name)) for name, path in given_paths.items()}
    found = {}
    for name, rows in item_features.read(paths, len(catalog)).items():
        if lacking := int((~rows.any(1)).sum()):
            logging.warning(
                "%s: %d of %d items have no %s features; theirs stay zero",
                model, lacking, len(rows), name,
            )  # fmt: skip
        found[name] = item_features.standardized(rows)
    if CATEGORIES in module.FEATURES:
        section = getattr(config, model)
        labels = item_features.categories(catalog, section.category_separator)
        if labels.size:
            found[CATEGORIES] = labels
        else:
            logging.info(
                "%s: no item has a category (config.data.category_field); training goes on "
                "without the category loss",
                model,
            )
    return found


def make(
    config: Settings,
    directory: Path,
    catalog: Catalog,
    prompt_config: PromptConfig,
    keywords: Sequence[str] | None,
    make_model: Callable[[], MLLM],
    mesh: jax.sharding.Mesh,
) -> None:
    """Pooled hidden states of every item, `text.npy`, `image.npy`, `item.npy`: those of `to_make`.
    `item_ids.parquet` beside them has the raw id of each row.

    A killed step goes on with the next file. `make_model` is called when one is missing. The text
    of an item is that of a candidate (`ItemRenderer.candidate_text`), with its `keywords` where
    candidates show them.
    """
    id_map.write_items(directory, catalog.ids)
    c, wanted = config.features, to_make(config, *config.sequential_models)
    missing = processes.from_main(
        lambda: [name for name in wanted if not _file(directory, name).exists()]
    )
    if not missing:
        return
    model = make_model()
    for name in missing:
        counts: Counter[str] = Counter()
        common: dict[str, Any] = {
            "name": name,
            "batch_size": c.batch_size,
            "workers": c.workers,
            "mesh": mesh,
            "counts": counts,
        }
        if name == "text" or (name == "item" and prompt_config.processor is None):
            texts = TextSource(catalog, prompt_config, length=c.length, keywords=keywords)
            rows = embed_texts(model, texts, **common)
        else:
            source = ContentSource(
                catalog, prompt_config, length=c.length, content=name, keywords=keywords
            )
            rows = embed_items(model, source, patches=c.patches, **common)
        if processes.is_main():
            item_features.write(_file(directory, name), rows)
        log_counts(f"features {name}", counts, mesh)


def _file(directory: Path, name: str) -> Path:
    return directory / f"{name}.npy"


def _paths(config: Settings, model: str) -> dict[str, str]:
    """Files of the item features that the model reads; "" where none is given."""
    if not registry.contents(registry.find(model)):
        return {}
    section, field = getattr(config, model), f"config.{model}.contents"
    if "image" in section.contents and not config.use.images and not section.features.image:
        raise UserError(f"{field} names 'image', but config.use.images is False; leave one out")
    given_paths = {name: getattr(section.features, name) for name in section.contents}
    return {name: path and str(local(path)) for name, path in given_paths.items()}
