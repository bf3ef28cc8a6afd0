"""What an experiment asks of its machine and of its data, checked before any model is trained."""

from collections.abc import Collection, Iterator, Mapping, Sequence

import jax
import numpy as np
from absl import logging

from mmsrec_jax.data.records import Dataset, Histories
from mmsrec_jax.evaluation import protocols
from mmsrec_jax.inputs import chains
from mmsrec_jax.inputs.negatives import check_negatives
from mmsrec_jax.inputs.tastes import LIKED, PreferenceSettings
from mmsrec_jax.inputs.understanding import BOTH, IMAGE
from mmsrec_jax.methods import features
from mmsrec_jax.methods.base_model import MODEL, SECTIONS, WARMUP
from mmsrec_jax.methods.settings import Settings
from mmsrec_jax.prompts.settings import PromptSettings
from mmsrec_jax.runtime.buckets.given import local
from mmsrec_jax.runtime.errors import UserError
from mmsrec_jax.runtime.sharding import num_batch_shards, process_batch_shard

_READS = {
    "summaries": "summaries", "features": "features", "visual_answers": "understanding",
    "item_texts": "understanding", "preferences": "preferences", "profiles": "preferences",
    "validation": "evaluation",
}  # fmt: skip
"""Step in which an MLLM reads batches and does not learn -> its section."""

_CACHED = ("cached", "chain_cached")
_ON_LISTS = ("sft", "plain_sft", "text_sft", "chain_sft")  # whose examples have negatives


def check_machine(config: Settings, steps: Collection[str], mesh: jax.sharding.Mesh) -> None:
    """Raises UserError when the devices or processes cannot share a batch of one of `steps`, or
    when a batch has no room for its images."""
    devices, (_, processes) = num_batch_shards(mesh), process_batch_shard(mesh)
    for field, size, shards in _batches(config, steps):
        if size % devices:
            raise UserError(
                f"{field}={size}: must be a multiple of {devices}, the devices that share a batch "
                "(config.mesh.data x config.mesh.fsdp)"
            )
        parts = shards or processes
        if parts % processes:
            raise UserError(
                f"config.input_shards={parts}: must be a multiple of the {processes} processes "
                "that make batches"
            )
        if size % parts:
            raise UserError(
                f"{field}={size}: must be a multiple of {parts}, the parts in which batches are "
                "made (config.input_shards; processes)"
            )
    _check_patches(config, steps)
    for step in set(steps) & set(SECTIONS) - {"summarizer", *_CACHED}:
        section = SECTIONS[step]
        if (part := getattr(config, section).micro_batch) % devices:
            raise UserError(
                f"config.{section}.micro_batch={part}: must be a multiple of {devices}, the "
                "devices that share a batch (config.mesh.data x config.mesh.fsdp)"
            )


def _batches(config: Settings, steps: Collection[str]) -> Iterator[tuple[str, int, int]]:
    """(field, rows of a batch, input shards or 0) of every batch that devices share."""
    sections = {SECTIONS.get(step) or _READS.get(step) for step in steps} - {None}
    if "evaluation" in steps and (config.evaluation.generate or set(steps) & set(_ON_LISTS)):
        sections.add("evaluation")
    sections |= {model for model in config.sequential_models if model in steps}
    for section in sorted(name for name in sections if name):
        sizes = ("num_users", "num_items") if section == "cached" else ("batch_size",)
        found = getattr(config, section)
        for name in sizes:
            shards = getattr(found, "input_shards", 0)
            yield f"config.{section}.{name}", getattr(found, name), shards


def _check_patches(config: Settings, steps: Collection[str]) -> None:
    """Prompts that show images need room for them."""
    room = {
        "warmup": ("warmup", config.warmup.patches),
        "summarizer": ("summarizer", config.summarizer.patches),
        "summaries": ("summarizer", config.summarizer.patches),
        "plain_sft": ("sft", config.sft.patches + config.prompts.history_patches),
        "visual_answers": ("understanding", config.understanding.patches),
    }
    if config.understanding.mode in (IMAGE, BOTH):
        room["item_texts"] = ("understanding", config.understanding.patches)
    for step, (section, patches) in room.items():
        if step in steps and config.use.images and not patches:
            raise UserError(
                f"config.{section}.patches=0: the prompts of step {step} show images; raise it, or "
                "set config.use.images to False"
            )


def check_data(
    config: Settings,
    steps: Collection[str],
    dataset: Dataset,
    *,
    coverage: Mapping[str, int],
    targets: np.ndarray,
) -> None:
    """What depends on the data, right after it is prepared.

    Args:
      steps: those of the run.
      coverage: how many items have what (`data.report.Report.coverage`).
      targets: int32[n, 2] (user, position), the training targets.

    Raises:
      UserError: the data cannot do what the settings ask; names the field.
    """
    _check_sizes(config, steps, dataset, targets)
    if set(steps) & {MODEL, WARMUP, *SECTIONS, *_READS}:
        _check_prompts(config.prompts, dataset.histories)
        _check_names(config, coverage)
        _check_shown(config, coverage)
    _check_contents(config, coverage)


def check_tastes(config: Settings, dataset: Dataset, targets: np.ndarray) -> None:
    """What MLLM-SRec asks of the data beside `check_data`, right after it is prepared; says what
    the data does not have and prompts therefore do not tell.

    Args:
      targets: int32[n, 2] (user, position), the training targets.

    Raises:
      UserError: no target has a window or a rating that is high enough, or a line of
        `config.chain.file` is wrong; names the field.
    """
    histories, asked = dataset.histories, config.preferences
    if not (targets[:, 1] >= asked.step).any():
        raise UserError(
            f"config.preferences.step={asked.step}: no training target has as many interactions "
            "before it, so that there would be no windows; lower it"
        )
    _check_liked(asked, histories, targets)
    if config.use.clock and not histories.clock:
        logging.warning("config.use.clock: the data has an order and no times, no gaps are told")
    if config.use.chain and config.chain.file:
        chains.read(local(config.chain.file), histories)


def _check_liked(asked: PreferenceSettings, histories: Histories, targets: np.ndarray) -> None:
    """Raises UserError when the threshold leaves no training target that is liked."""
    if asked.threshold is None:
        return
    if histories.ratings is None:
        logging.warning(
            "config.preferences.threshold=%g: the data has no ratings, all is liked",
            asked.threshold,
        )
        return
    rated = histories.ratings[histories.offsets[targets[:, 0]] + targets[:, 1]]
    if asked.positives == LIKED and not (rated >= asked.threshold).any():
        raise UserError(
            f"config.preferences.threshold={asked.threshold:g}: no training target is rated as "
            "high; lower it"
        )


def _check_sizes(
    config: Settings, steps: Collection[str], dataset: Dataset, targets: np.ndarray
) -> None:
    catalog, histories, split = dataset
    remedy = "use data with longer histories, or another config.data.split"
    parts = {"training": targets, "validation": split.validation, "test": split.test}
    for part, rows in parts.items():
        if not len(rows) and (part != "test" or "evaluation" in steps):
            raise UserError(f"config.data: the split has no {part} targets; {remedy}")
    if "retrieval" in steps and config.retrieval.folds > len(histories):
        raise UserError(
            f"config.retrieval.folds={config.retrieval.folds}: the data has {len(histories)} "
            "users; lower it"
        )
    if set(steps) & set(_CACHED) and config.cached.num_items > len(catalog):
        raise UserError(
            f"config.cached.num_items={config.cached.num_items}: the catalog has {len(catalog)}; "
            "lower it"
        )
    if set(steps) & set(_ON_LISTS):
        check_negatives(
            histories,
            targets[:, 0],
            split.train_end,
            num_items=len(catalog),
            negatives=config.sft.negatives,
        )
    if "evaluation" in steps:
        for n in config.evaluation.negatives:
            protocols.check_negatives(histories, split.test, n=n, num_items=len(catalog))


def _check_prompts(prompts: PromptSettings, histories: Histories) -> None:
    """Raises UserError when prompts shall tell what the data does not have."""
    if prompts.ratings and histories.ratings is None:
        raise UserError("config.prompts.ratings: the data has no ratings; set it to False")
    if prompts.pauses and not histories.clock:
        raise UserError(
            "config.prompts.pauses: the data has an order and no times; set it to False"
        )


def _check_names(config: Settings, coverage: Mapping[str, int]) -> None:
    """An item without a field shows none: a misspelt one would be passed over without a word. The
    default is for any data, of which it need not name all."""
    default = PromptSettings()
    texts, attributes = _having("text", coverage), _having("attribute", coverage)
    for field in ("fields", "list_fields"):
        wanted = getattr(config.prompts, field)
        if not texts or (wanted == getattr(default, field) and set(wanted) & set(texts)):
            continue
        for name in wanted:
            _choose(name, texts, f"config.prompts.{field}={wanted}: no item has a text {name!r}")
    wanted = config.prompts.image_attributes
    for name in wanted:
        _choose(
            name,
            attributes,
            f"config.prompts.image_attributes={wanted}: no item has an attribute {name!r}",
        )


def _choose(name: str, known: Sequence[str], problem: str) -> None:
    if name not in known:
        there = ", ".join(known) if known else "none (config.data.attribute_fields names columns)"
        raise UserError(f"{problem}; there are {there}")


def _check_shown(config: Settings, coverage: Mapping[str, int]) -> None:
    """Prompts of an item show its text, its image or both; neither is an empty prompt."""
    images = bool(coverage.get("image")) and config.use.images
    texts = set(_having("text", coverage)) & {*config.prompts.fields, *config.prompts.list_fields}
    if not images and not texts:
        raise UserError(
            "config.prompts.fields: the items have no text"
            + (" and no image" if config.use.images else ", and config.use.images is False")
            + ", so that prompts would be empty; give a .item file with a column of text "
            "(config.data.text_fields), or images"
        )


def _check_contents(config: Settings, coverage: Mapping[str, int]) -> None:
    """Item features that an MLLM makes of nothing are all equal."""
    for model in config.sequential_models:
        made = features.to_make(config, model)
        for kind in ("text", "image"):
            there = _having("text", coverage) if kind == "text" else coverage.get("image")
            if kind in made and not there:
                raise UserError(
                    f"config.{model}.contents names {kind!r}, but no item has one; leave it out"
                )


def _having(kind: str, coverage: Mapping[str, int]) -> list[str]:
    """Names of the columns of a kind that at least one item has."""
    return [
        name.removeprefix(f"{kind} ")
        for name, count in coverage.items()
        if count and name.startswith(f"{kind} ")
    ]
