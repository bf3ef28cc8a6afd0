"""Trains a sequential recommender and selects it on validation NDCG@10 over the full catalog."""

import dataclasses
import functools
import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import flax.struct
import grain
import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import optax
from absl import logging
from flax import nnx

from mmsrec_jax.data.records import Histories, Split
from mmsrec_jax.data.sequences import seconds
from mmsrec_jax.data.splits import subset
from mmsrec_jax.evaluation import metrics, ranking
from mmsrec_jax.runtime import arrays, chips
from mmsrec_jax.runtime.errors import UserError
from mmsrec_jax.runtime.settings import as_dict
from mmsrec_jax.runtime.sharding import batch_sharding, num_batch_shards, replicated
from mmsrec_jax.sequential import recommender, registry
from mmsrec_jax.sequential.base import Rows, SequentialConfig, SequentialSettings
from mmsrec_jax.sequential.losses import SAMPLED_SOFTMAX, SOFTMAX, ItemLoss, logits_bytes
from mmsrec_jax.training import loop, metering
from mmsrec_jax.training.state import TrainState


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What a compiled step depends on; models of equal recipe (folds, seeds) share the step."""

    model: SequentialConfig
    loss: ItemLoss
    learning_rate: float
    warmup_steps: int
    weight_decay: float

    @property
    def optimizer(self) -> optax.GradientTransformation:
        return _optimizer(self)


def recipe(
    settings: SequentialSettings, num_items: int, features: Mapping[str, np.ndarray]
) -> Recipe:
    """How `train` trains a model of these settings; arguments as there."""
    return Recipe(
        registry.configure(settings, num_items, features),
        ItemLoss(settings.loss, settings.negatives, settings.loss_chunk),
        learning_rate=settings.learning_rate,
        warmup_steps=settings.warmup_steps,
        weight_decay=settings.weight_decay,
    )


@functools.cache
def _optimizer(recipe: Recipe) -> optax.GradientTransformation:
    kept = set(registry.of(recipe.model).module.NO_DECAY)
    warmup = optax.linear_schedule(0.0, recipe.learning_rate, recipe.warmup_steps)
    return optax.adamw(
        warmup if recipe.warmup_steps else recipe.learning_rate,  # else Optax stays at 0 for good
        weight_decay=recipe.weight_decay,
        mask=lambda params: nnx.map_state(lambda path, _: kept.isdisjoint(path), params),
    )


class SequentialState(flax.struct.PyTreeNode):
    """What a resumed run needs: the weights in training, and how well they did on validation.

    best_ndcg float32[]; stale int32[]: validations since the best one.
    """

    train: TrainState
    best_ndcg: jax.Array
    stale: jax.Array


def train(
    settings: SequentialSettings,
    histories: Histories,
    split: Split,
    *,
    num_items: int,
    directory: str | os.PathLike,
    features: Mapping[str, np.ndarray] | None = None,
    mesh: jax.sharding.Mesh | None = None,
    profile: metering.Steps | None = None,
) -> recommender.SequentialRecommender:
    """Trains a model on every training target and returns the weights best on validation.

    Interrupted, it goes on from its last checkpoint in `directory` and ends with the same bits.
    Stops early after `settings.patience` validations without a better NDCG@10; `settings.steps` is
    rounded up to a multiple of `settings.evaluate_every`. The model also lies in `directory`/model.

    Args:
      settings: those of one kind of `registry.MODELS`.
      features: float32[items, width] by name, for a kind that reads some.
      profile: steps to trace.

    Raises:
      UserError: no training target, no validation row, or a batch size the mesh cannot divide.
    """
    name = registry.of(settings).name
    if not len(split.validation):
        raise UserError("the split has no validation rows; a model is selected on validation NDCG")
    shards = 1 if mesh is None else num_batch_shards(mesh)
    if settings.batch_size % shards:
        raise UserError(
            f"config.{name}.batch_size={settings.batch_size} does not divide over "
            f"{shards} data shards of the mesh; make it a multiple"
        )
    features = features or {}
    how = recipe(settings, num_items, features)
    shape = how.model
    key = jax.random.key(settings.seed)
    if advice := full_softmax_advice(settings, shape, mesh):
        logging.warning("%s", advice)
    state, frozen = _initial(how, settings.seed, features, mesh)

    def train_step(
        state: SequentialState, batch: dict[str, np.ndarray]
    ) -> tuple[SequentialState, dict[str, jax.Array]]:
        work = metering.amount(**metering.of_rows(batch["segments"]))
        batch = arrays.put(batch, None if mesh is None else batch_sharding(mesh))
        with jax.set_mesh(mesh) if mesh is not None and shards > 1 else nullcontext():
            trained, measured = step(how, state.train, frozen, batch, key)
        return state.replace(train=trained), measured | work

    validation = subset(split.validation, settings.validation_rows, settings.seed)

    def evaluate(state: SequentialState, _: int) -> tuple[SequentialState, dict[str, float], bool]:
        current = recommender.SequentialRecommender(shape, state.train.params, frozen, mesh=mesh)
        ranked = ranking.full(current, histories, validation, progress=False)
        ranks = ranked.ranks.astype(np.int64)
        ndcg = metrics.ndcg(ranks, 10)
        if ndcg > float(state.best_ndcg):
            state = state.replace(
                best_ndcg=jnp.full_like(state.best_ndcg, ndcg),
                stale=jnp.zeros_like(state.stale),
            )
        else:
            state = state.replace(stale=state.stale + 1)
        measured = {
            "validation/ndcg@10": ndcg,
            "validation/recall@10": metrics.hit_rate(ranks, 10),
            "validation/best": float(state.best_ndcg),
        }
        return state, measured, int(state.stale) >= settings.patience

    every = settings.evaluate_every
    state = loop.run(
        state,
        train_step,
        iter(batches(histories, split, shape, batch_size=settings.batch_size, seed=settings.seed)),
        name=name,
        directory=directory,
        steps=-(-settings.steps // every) * every,
        checkpoint_every=every,
        log_every=settings.log_every,
        evaluate=evaluate,
        evaluate_every=every,
        best="validation/ndcg@10",
        config=as_dict(settings),
        profile=profile,
    )
    trained = recommender.SequentialRecommender(shape, state.train.params, frozen, mesh=mesh)
    trained.save(Path(directory) / "model")
    return trained


def full_softmax_advice(
    settings: SequentialSettings, shape: SequentialConfig, mesh: jax.sharding.Mesh | None
) -> str:
    """One line if the logits of a step need more than a quarter of a device's memory, else "".

    A device that does not tell its memory counts as one of 16 GiB. Weights, their gradient and
    AdamW's two moments come on top.
    """
    num_items = shape.num_items
    if settings.loss != SOFTMAX:
        return ""
    shards = 1 if mesh is None else num_batch_shards(mesh)
    tokens = settings.batch_size * shape.length
    need = logits_bytes(settings.loss_chunk, tokens, num_items, shards)
    devices = [jax.devices()[0]] if mesh is None else mesh.local_devices
    told = [(device.memory_stats() or {}).get("bytes_limit") for device in devices]
    memory = min((limit for limit in told if limit), default=chips.CHIPS["cpu"].hbm)
    if need <= memory / 4:
        return ""
    name = f"config.{registry.of(settings).name}"
    fits = int(memory / 4 / logits_bytes(1, tokens, num_items, shards))
    less = f"{name}.loss_chunk={fits} needs a quarter for the same loss; " if fits else ""
    return (
        f"{name}.loss={SOFTMAX!r}: the logits of {num_items:,} items and their gradient need "
        f"{need / chips.GIB:.1f} GiB of each device's {memory / chips.GIB:.1f}; {less}"
        f"{name}.loss={SAMPLED_SOFTMAX!r} needs less time too and takes "
        f"{name}.negatives={settings.negatives} of them"
    )


def _initial(
    how: Recipe, seed: int, features: Mapping[str, np.ndarray], mesh: jax.sharding.Mesh | None
) -> tuple[SequentialState, nnx.State]:
    """The state at step 0 and the features that stay as they are, on the devices of `mesh`."""
    params = recommender.init_params(how.model, seed)
    frozen = recommender.place_features(how.model, features)
    if mesh is not None:
        params, frozen = arrays.put((params, frozen), replicated(mesh))
    state = SequentialState(
        train=TrainState.create(params, how.optimizer),
        best_ndcg=jnp.float32(-1.0),
        stale=jnp.int32(0),
    )
    return state if mesh is None else jax.device_put(state, replicated(mesh)), frozen


def train_folds(
    settings: SequentialSettings,
    histories: Histories,
    split: Split,
    folds: np.ndarray,
    *,
    directory: str | os.PathLike,
    **options: Any,
) -> list[recommender.SequentialRecommender]:
    """One model per fold, trained and selected without that fold's users (*ours*).

    folds int32[U] as from `retrieval.similar.assign_folds`. Each model gets a folder of its own;
    the rest as in `train`.
    """
    return [
        train(
            settings,
            histories,
            without(split, folds == fold),
            directory=Path(directory) / f"fold{fold}",
            **options,
        )
        for fold in range(int(folds.max(initial=0)) + 1)
    ]


def without(split: Split, users: np.ndarray) -> Split:
    """The split as if these users (bool[U]) had no training or validation data."""
    return dataclasses.replace(
        split,
        train=split.train[~users[split.train[:, 0]]],
        validation=split.validation[~users[split.validation[:, 0]]],
        train_end=np.where(users, 0, split.train_end).astype(np.int32),
    )


def batches(
    histories: Histories, split: Split, config: SequentialConfig, *, batch_size: int, seed: int
) -> grain.IterDataset:
    """Endless packed batches: the fields of `Rows`, all int32[batch_size, length].

    Rows are shuffled, and the sequences dealt anew to the rows, in every epoch; a function of
    (seed, step) alone.
    """
    module = registry.of(config).module
    rows = PackedSequences(
        histories, split.train_end, config.length, seed=seed, multiple=batch_size,
        shifted=module.SHIFTED, times=module.USES_TIMES,
    )  # fmt: skip
    return (
        grain.MapDataset.range(len(rows))
        .shuffle(seed=seed)
        .map_with_index(rows.row)
        .batch(batch_size, drop_remainder=True)
        .repeat()
        .to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=4))
    )


class PackedSequences:
    """Training sequences laid side by side in rows of `length` tokens.

    A sequence longer than a row is cut from its end into windows, so that every training target
    occurs exactly once. Which window lengths share a row is decided once (best fit, longest first);
    which windows of those lengths fill the rows is drawn anew in every epoch. Empty rows make
    their number a multiple of `multiple`.

    With `shifted`, the target of a position is the next item, and a sequence's last item is only a
    target; without, every item has a position and there are no targets. Without `times` these are
    0.
    """

    def __init__(
        self,
        histories: Histories,
        train_end: np.ndarray,
        length: int,
        *,
        seed: int,
        multiple: int,
        shifted: bool = True,
        times: bool = False,
    ):
        self._items, self._length, self._seed = histories.items, length, seed
        self._shifted = shifted
        self._times = seconds(histories.timestamps) if times else None
        # A single training interaction has no target and no history: neither kind of row uses it.
        tokens = np.where(np.asarray(train_end) > 1, np.asarray(train_end) - shifted, 0)
        starts, lengths = _windows(histories.offsets[:-1], tokens, length)
        if not len(lengths):
            raise UserError(
                "no user has two training interactions; the split leaves nothing to learn"
            )
        order = np.argsort(-lengths, kind="stable")
        self._starts, self._lengths = starts[order], lengths[order]
        row_of_place, rows = _best_fit(self._lengths.tolist(), length)
        self._places = np.argsort(row_of_place, kind="stable")
        rows = -(-rows // multiple) * multiple
        self._row_start = np.searchsorted(row_of_place[self._places], np.arange(rows + 1))
        self._deal = functools.lru_cache(maxsize=2)(self._deal_epoch)

    def __len__(self) -> int:
        return len(self._row_start) - 1

    def row(self, index: int, row: int) -> dict[str, np.ndarray]:
        """Row `row` in the epoch that the running index `index` falls into."""
        starts = self._deal(index // len(self))
        places = self._places[self._row_start[row] : self._row_start[row + 1]]
        lengths = self._lengths[places]
        within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        at = np.repeat(starts[places], lengths) + within
        segments = np.repeat(np.arange(1, len(places) + 1), lengths)
        return {
            "ids": self._filled(self._items[at] + 1, 0),
            "segments": self._filled(segments, 0),
            "positions": self._filled(within, 0),
            "times": self._filled([] if self._times is None else self._times[at], 0),
            "targets": self._filled(self._items[at + 1] if self._shifted else [], -1),
        }

    def _filled(self, values: npt.ArrayLike, padding: int) -> np.ndarray:
        full = np.full(self._length, padding, np.int32)
        full[: np.size(values)] = values
        return full

    def _deal_epoch(self, epoch: int) -> np.ndarray:
        draw = np.random.default_rng([self._seed, epoch]).random(len(self._lengths))
        return self._starts[np.lexsort((draw, -self._lengths))]


def _windows(offsets: np.ndarray, tokens: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Starts in the flat item array and lengths of the training windows, cut from the ends."""
    counts = -(-tokens // length)
    which = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    first = tokens - (counts - 1) * length
    offsets, first = np.repeat(offsets, counts), np.repeat(first, counts)
    starts = np.where(which == 0, 0, first + (which - 1) * length)
    return offsets + starts, np.where(which == 0, first, length)


def _best_fit(lengths: Sequence[int], capacity: int) -> tuple[np.ndarray, int]:
    """Row of every length (given longest first), and how many rows there are."""
    open_rows: list[list[int]] = [[] for _ in range(capacity + 1)]  # by the room that is left
    row_of: list[int] = []
    rows = 0
    for length in lengths:
        room = next((r for r in range(length, capacity) if open_rows[r]), capacity)
        if room == capacity:
            open_rows[capacity].append(rows)
            rows += 1
        row = open_rows[room].pop()
        open_rows[room - length].append(row)
        row_of.append(row)
    return np.array(row_of, np.int64), rows


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def step(
    recipe: Recipe,
    state: TrainState,
    features: nnx.State,
    batch: Mapping[str, jax.Array],
    key: jax.Array,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One compiled update on a batch of `batches`; returns the state and scalars to log."""

    def loss(params: nnx.State) -> tuple[jax.Array, dict[str, jax.Array]]:
        module = recommender.merge(recipe.model, params, features)
        return module.loss(Rows(**batch), jax.random.fold_in(key, state.step), recipe.loss)

    (value, parts), gradients = jax.value_and_grad(loss, has_aux=True)(state.params)
    return state.apply(gradients, recipe.optimizer), {"loss": value, **parts}
