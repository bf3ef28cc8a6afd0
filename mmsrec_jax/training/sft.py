"""Supervised fine-tuning: warm-up and stage 3, cross-entropy on answer tokens only.

The paper trains the yes/no label token; the listwise term is *ours*: softmax cross-entropy over the
candidates of one user with logit(yes) - logit(no) as their score, the quantity that ranks them.
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from mmsrec_jax.inference.yes_no import yes_no_margins
from mmsrec_jax.models import flops
from mmsrec_jax.models import trainable as trainables
from mmsrec_jax.models.batch import Batch
from mmsrec_jax.models.batch_tree import check_shapes
from mmsrec_jax.models.mllm import MLLM
from mmsrec_jax.models.token_logprobs import next_logprobs
from mmsrec_jax.runtime import sharding
from mmsrec_jax.runtime.arrays import to_devices
from mmsrec_jax.runtime.errors import UserError
from mmsrec_jax.runtime.microbatch import accumulate_gradients
from mmsrec_jax.runtime.settings import Section, as_dict, seed_setting, setting
from mmsrec_jax.training import loop, metering, optimizers
from mmsrec_jax.training.state import TrainState, on_devices, place

Counts = dict[str, jax.Array]


SELECTED_BY = "validation/ndcg@10"


class Validation(NamedTuple):
    """How a training is validated.

    every: steps between two validations; the last step is one too.
    metrics: of a model, `SELECTED_BY` among them.
    """

    every: int
    metrics: Callable[[MLLM], dict[str, float]]


@dataclasses.dataclass(frozen=True)
class UpdateSettings(Section):
    """What all fine-tuning has in common."""

    trainable: str = setting(
        "lora",
        "Adapters, every weight of the model, what connects its vision tower to the decoder, or "
        "adapters beside that.",
        choices=trainables.KINDS,
    )
    lora_rank: int = setting(16, "Rank of the adapters.", low=1, high=10_000)
    lora_alpha: float = setting(
        32.0, "Adapters are scaled by this, divided by the rank.", low=0.001, high=100_000
    )
    steps: int = setting(2000, "Updates.", low=1, high=1_000_000_000)
    offload_optimizer: bool = setting(
        False,
        "Keep the moments of the optimizer in the hosts' memory: less HBM, more transfers.",
        recorded=False,
    )
    optimizer: str = setting(
        "adamw",
        "AdamW, or Muon for the kernels of layers and connectors beside AdamW for all else.",
        choices=optimizers.KINDS,
    )
    learning_rate: float = setting(
        1e-4, "The peak; a cosine ends at a tenth of it.", low=1e-10, high=1
    )
    warmup_steps: int = setting(
        100, "Steps until the peak; fewer than `steps`.", low=0, high=1_000_000_000
    )
    weight_decay: float = setting(0.0, "Of the optimizer.", low=0, high=10)
    clip_norm: float = setting(1.0, "Largest global norm of a gradient.", low=1e-6, high=1_000_000)
    workers: int = setting(
        8,
        "Processes that make batches, for each part. 0 is threads of the main process.",
        low=0,
        high=1024,
    )
    checkpoint_every: int = setting(
        200, "Steps between two checkpoints.", low=1, high=1_000_000_000
    )
    log_every: int = setting(20, "Steps between two lines of metrics.", low=1, high=1_000_000_000)
    seed: int = seed_setting("Of adapters, order, tasks and negatives.")

    def check(self, name: str) -> None:
        if self.warmup_steps >= self.steps:
            raise UserError(
                f"{name}.warmup_steps={self.warmup_steps}: must be below steps={self.steps}"
            )
        if self.optimizer == "muon" and self.trainable == "lora":
            raise UserError(
                f"{name}.optimizer='muon' updates kernels, and {name}.trainable='lora' trains "
                "none; train 'full', or set 'adamw'"
            )


@dataclasses.dataclass(frozen=True)
class FineTuneSettings(UpdateSettings):
    """What warm-up and stage 3 on packed rows have in common."""

    batch_size: int = setting(64, "Packed rows of an update.", low=1, high=1_000_000)
    micro_batch: int = setting(
        0, "Packed rows of one backward pass. 0 is all.", low=0, high=1_000_000
    )
    length: int = setting(4096, "Tokens of a row.", low=1, high=1_000_000)
    patches: int = setting(8192, "Vision patches of a row.", low=0, high=1_000_000)
    answers: int = setting(32, "Yes/no labels of a row.", low=1, high=100_000)
    targets: int = setting(256, "Tokens of a row that have a loss.", low=1, high=1_000_000)
    look_ahead: int = setting(
        64,
        "Examples that wait while rows choose those that fill them up; more leave less padding "
        "(ours). 0: each goes into the first row with room, in order.",
        low=0,
        high=256,
    )
    listwise_weight: float = setting(
        0.0,
        "Of the softmax over the yes/no labels of a list (ours; 0 is the paper).",
        low=0,
        high=1000,
    )
    input_shards: int = setting(
        0,
        "Parts in which batches are packed; see `input_shards`.",
        follows="input_shards",
        low=0,
        high=100_000,
    )

    def check(self, name: str) -> None:
        super().check(name)
        if self.micro_batch and self.batch_size % self.micro_batch:
            raise UserError(
                f"{name}.micro_batch={self.micro_batch}: must divide batch_size={self.batch_size}"
            )


def _check_shares(name: str, tasks: Mapping[str, float]) -> None:
    if not any(tasks.values()):
        raise UserError(f"{name}.tasks: all shares are 0; give one task or more a share above 0")


@dataclasses.dataclass(frozen=True)
class SFTSettings(FineTuneSettings):
    """Stage 3, and the plain SFT beside it."""

    tasks: Mapping[str, float] = setting(
        {"pointwise": 0.7, "rank": 0.1, "next_keywords": 0.1, "align": 0.1},
        "Shares of the tasks.",
        low=0,
        high=1000,
    )
    negatives: int = setting(7, "Negatives of a training list.", low=1, high=1_000_000)
    retriever_negatives: float = setting(
        0.0,
        "Share of MMSRARec's negatives that are among the 50 items which the sequential model "
        "ranks first for the target's history (ours); the others are uniform.",
        low=0,
        high=1,
    )
    rows: int = setting(
        0, "Size of a random subset of the training targets. 0 is all.", low=0, high=1_000_000_000
    )
    evaluate_every: int = setting(
        0,
        "Steps between two validations among sampled candidates, the last step is one too; the "
        "best weights are kept. 0: there are none, and the last weights are kept.",
        low=0,
        high=1_000_000_000,
    )
    validation_rows: int = setting(
        500,
        "Size of a random subset of the validation targets. 0 is all.",
        low=0,
        high=1_000_000_000,
    )

    def check(self, name: str) -> None:
        super().check(name)
        _check_shares(name, self.tasks)
        for room in ("answers", "targets"):
            if getattr(self, room) <= self.negatives:
                raise UserError(
                    f"{name}.{room}={getattr(self, room)}: a list of the target and "
                    f"{name}.negatives={self.negatives} has {1 + self.negatives} labels and fits "
                    "no row; raise it"
                )


@dataclasses.dataclass(frozen=True)
class WarmupSettings(FineTuneSettings):
    """Visual instruction tuning before all other steps (*ours*)."""

    pretrained: bool = setting(
        False,
        "Whether a pretrained model (`model.path`) has a warm-up too; one from scratch always has.",
    )
    trainable: str = setting(
        "connector",
        "What is trained of a pretrained model; of one from scratch it is every weight.",
        choices=trainables.KINDS,
    )
    tasks: Mapping[str, float] = setting(
        {"describe": 0.3, "see": 0.35, "vqa": 0.25, "retell": 0.1, "look": 0.0, "fuse": 0.0},
        "Shares of the tasks; look and fuse teach the prompts of item understanding.",
        low=0,
        high=1000,
    )
    noise: float = setting(
        0.3,
        "Probability that a described keyword is left out or repeated: what stage 1 can improve.",
        low=0,
        high=1,
    )
    wrong_answers: float = setting(
        0.0,
        "Probability that fuse is shown visual answers about another item: the model then learns "
        "to believe the text more than its own answers, where pictures say little.",
        low=0,
        high=1,
    )

    def check(self, name: str) -> None:
        super().check(name)
        _check_shares(name, self.tasks)


@dataclasses.dataclass(frozen=True)
class WriterSettings(FineTuneSettings):
    """What teaches a model to write about users' windows and histories (ours): counted examples."""

    pretrained: bool = setting(
        False,
        "Whether a pretrained model (`model.path`) is taught too; one from scratch always is.",
    )
    profiles: float = setting(
        0.3, "Share of the examples that are about whole histories.", low=0, high=1
    )

    def teaches(self, *, is_pretrained: bool) -> bool:
        """Whether there is a step that teaches the model to write; a pretrained one can."""
        return not is_pretrained or self.pretrained


def train(
    settings: FineTuneSettings,
    model: MLLM,
    dataset: Iterable[Batch],
    *,
    name: str,
    directory: str | os.PathLike,
    mesh: Mesh,
    yes_no_ids: tuple[int, int],
    profile: metering.Steps | None = None,
    validation: Validation | None = None,
) -> MLLM:
    """Trains `model` and returns it with the trained weights, of several validations those of the
    best one; resumes what `directory` holds.

    Args:
      model: with adapters if they are trained. What is trained of it is donated: go on
        with the model that is returned.
      dataset: `inputs.sharded.Sharded` or `inputs.pipeline.batches`, the rows of this process.
      name: for progress lines.
      yes_no_ids: ids of (yes, no).
      profile: steps to trace.

    Raises:
      UserError: `trainable` selects nothing in `model`, or a micro-batch that does not divide.
    """
    optimizer = make_optimizer(settings)
    with jax.set_mesh(mesh):
        graphdef, state, frozen, shardings = place(
            model, settings.trainable, optimizer, mesh, offload=settings.offload_optimizer
        )
        step = make_step(
            graphdef,
            optimizer,
            yes_no_ids=yes_no_ids,
            listwise_weight=settings.listwise_weight,
            num_microbatches=num_microbatches(settings, mesh),
            shardings=shardings,
            offload=settings.offload_optimizer,
        )

        trained = trainables.parts(settings.trainable)
        counted = metering.ModelFlops(model, adapters="lora" in trained)
        count = functools.partial(flops.train_step, connector="connector" in trained)
        _, parts = sharding.process_batch_shard(mesh)

        def step_fn(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Any]]:
            work = metering.amount(parts=parts, **_work(counted, count, batch))
            state, metrics = step(state, frozen, to_devices(batch, mesh))
            return state, metrics | work

        selection = {} if validation is None else selected(validation, graphdef, frozen)
        state = run_loop(
            settings, state, step_fn, dataset, name=name, directory=directory, profile=profile,
            **selection,
        )  # fmt: skip
    return nnx.merge(graphdef, state.params, frozen)


def selected(validation: Validation, graphdef: Any, frozen: nnx.State) -> dict[str, Any]:
    """Arguments of `loop.run` by which the weights that were best on validation are kept."""

    def evaluate(state: TrainState, _: int) -> tuple[TrainState, dict[str, float], bool]:
        return state, validation.metrics(nnx.merge(graphdef, state.params, frozen)), False

    return {"evaluate": evaluate, "evaluate_every": validation.every, "best": SELECTED_BY}


def run_loop(
    settings: UpdateSettings,
    state: TrainState,
    step_fn: loop.Step,
    dataset: Iterable[Any],
    *,
    name: str,
    directory: str | os.PathLike,
    profile: metering.Steps | None,
    **selection: Any,
) -> TrainState:
    """`loop.run` as the settings say, over batches that are closed at its end; selection: its
    arguments about validation."""
    iterator: Any = iter(dataset)  # a Grain iterator
    try:
        return loop.run(
            state,
            step_fn,
            iterator,
            name=name,
            directory=directory,
            steps=settings.steps,
            checkpoint_every=settings.checkpoint_every,
            log_every=settings.log_every,
            config=as_dict(settings),
            profile=profile,
            **selection,
        )
    finally:
        iterator.close()


def num_microbatches(settings: FineTuneSettings, mesh: Mesh) -> int:
    """How many backward passes a step takes.

    Raises:
      UserError: micro_batch does not divide.
    """
    if not settings.micro_batch:
        return 1
    size, part, shards = settings.batch_size, settings.micro_batch, sharding.num_batch_shards(mesh)
    if size % part or part % shards:
        raise UserError(
            f"micro_batch={part} must divide batch_size={size} and be a multiple of the {shards} "
            "shards of the batch (mesh data x fsdp)"
        )
    return size // part


def _work(
    counted: metering.ModelFlops, count: Callable[..., flops.Flops], batch: Batch
) -> dict[str, int]:
    tokens = np.sum(batch.segment_ids > 0, axis=1)
    assert batch.target_positions is not None
    targets = np.sum(batch.target_positions >= 0, axis=1)
    return metering.of_rows(batch.segment_ids) | {"flops": counted(count, tokens, targets, batch)}


def make_optimizer(settings: UpdateSettings) -> optax.GradientTransformation:
    """The optimizer that the settings name."""
    return optimizers.make_optimizer(
        settings.optimizer,
        learning_rate=settings.learning_rate,
        warmup_steps=settings.warmup_steps,
        steps=settings.steps,
        weight_decay=settings.weight_decay,
        clip_norm=settings.clip_norm,
    )


def make_step(
    graphdef: Any,
    optimizer: optax.GradientTransformation,
    *,
    yes_no_ids: tuple[int, int],
    listwise_weight: float,
    num_microbatches: int = 1,
    shardings: Any = None,
    offload: bool = False,
) -> Callable[[TrainState, Any, Batch], tuple[TrainState, dict[str, jax.Array]]]:
    """Jitted `(state, frozen, batch) -> (state, metrics)`; the state is donated and keeps the
    `shardings` given for it, with `offload` those of an offloaded optimizer. Gradients of
    `num_microbatches` parts of the batch are added up."""

    def compute(
        params: nnx.State, frozen: nnx.State, batch: Batch, counts: Counts
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        model = nnx.merge(graphdef, params, frozen)
        return loss(
            model, batch, yes_no_ids=yes_no_ids, listwise_weight=listwise_weight, counts=counts
        )

    def step(
        state: TrainState, frozen: nnx.State, batch: Batch
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        counts = count(batch)
        differentiate = jax.grad(compute, has_aux=True)
        gradients, metrics = accumulate_gradients(
            lambda part: differentiate(state.params, frozen, part, counts), num_microbatches
        )(batch)
        metrics["gradient_norm"] = optax.global_norm(gradients)
        state = on_devices(state) if offload else state
        return state.apply(gradients, optimizer), metrics

    return jax.jit(step, donate_argnums=0, out_shardings=(shardings, None))


def loss(
    model: MLLM,
    batch: Batch,
    *,
    yes_no_ids: tuple[int, int],
    listwise_weight: float,
    counts: Counts | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Scalar loss and metrics of a global batch (see `inputs.pipeline.batches`).

    The token part is the mean over target tokens by their weights, over all rows of all devices;
    the listwise part is the mean over lists that contain their positive.

    counts: of the batch that these rows are a part of. Losses, metrics and gradients of the parts
      then add up to those of the batch, however its tokens are spread over them.
    """
    check_shapes(batch, "loss_weights", "target_positions")
    counts = count(batch) if counts is None else counts
    hidden = model(batch)
    nll, weights = _target_nll(model, hidden, batch)
    total = token_loss = jnp.sum(nll * weights) / counts["weight"]
    metrics = {"loss/tokens": token_loss}
    if batch.answer_positions is not None:
        scores = yes_no_margins(model, hidden, batch.answer_positions, yes_no_ids)
        listwise, yes_no_metrics = _yes_no_terms(scores, batch, counts)
        total = token_loss + listwise_weight * listwise
        metrics |= {"loss/listwise": listwise, **yes_no_metrics}
    metrics["loss"] = total
    return total, metrics


def row_sums(model: MLLM, batch: Batch) -> jax.Array:
    """float32[B, 2]: the rows' sums of -log p of target tokens by their weights, and of these."""
    nll, weights = _target_nll(model, model(batch), batch)
    return jnp.stack([jnp.sum(nll * weights, axis=1), jnp.sum(weights, axis=1)], axis=1)


def count(batch: Batch) -> Counts:
    """What the terms of the loss are divided by: the weight of the target tokens; positive
    candidates (a list has one) and negative ones."""
    counts = {"weight": jnp.maximum(jnp.sum(_target_weights(batch)), 1e-9)}
    if batch.answer_positions is not None:
        positive, negative = _labelled(batch)
        counts["lists"] = jnp.maximum(jnp.sum(positive), 1)
        counts["negatives"] = jnp.maximum(jnp.sum(negative), 1)
    return counts


def _target_weights(batch: Batch) -> jax.Array:
    positions = batch.target_positions
    assert positions is not None and batch.loss_weights is not None
    weights = jnp.take_along_axis(batch.loss_weights, jnp.maximum(positions, 1), axis=1)
    return jnp.where(positions >= 0, weights, 0.0)


def _labelled(batch: Batch) -> tuple[jax.Array, jax.Array]:
    """bool[B, C] each: the candidate is positive, negative."""
    assert batch.answer_positions is not None and batch.labels is not None
    there = batch.answer_positions >= 0
    return there & (batch.labels == 1), there & (batch.labels == 0)


def _target_nll(model: MLLM, hidden: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """-log p and weight of the tokens at target_positions, float32[B, A] each."""
    assert batch.target_positions is not None
    at = jnp.maximum(batch.target_positions, 1)
    targets = jnp.take_along_axis(batch.tokens, at, axis=1)
    before = jnp.take_along_axis(hidden, (at - 1)[..., None], axis=1)
    before = sharding.constrain(before, "batch", "length", "features")
    return -next_logprobs(model, before, targets), _target_weights(batch)


def _yes_no_terms(
    scores: jax.Array, batch: Batch, counts: Counts
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Listwise loss over the candidates of each packed example, and accuracies."""
    positions = batch.answer_positions
    assert positions is not None
    there = positions >= 0
    group = jnp.take_along_axis(batch.segment_ids, jnp.maximum(positions, 0), axis=1)
    together = there[:, :, None] & there[:, None, :] & (group[:, :, None] == group[:, None, :])
    listed = jnp.where(together, scores[:, None, :], -1e30)  # [B, C, C]: row c is the list of c
    positive, negative = _labelled(batch)
    lists = counts["lists"]
    nll = jax.nn.logsumexp(listed, axis=-1) - scores
    first = jnp.sum(listed >= scores[:, :, None], axis=-1) == 1  # a tie counts against it
    yes = jnp.sum(positive & (scores > 0)) / lists
    no = jnp.sum(negative & (scores <= 0)) / counts["negatives"]
    return jnp.sum(jnp.where(positive, nll, 0.0)) / lists, {
        "yes_no/accuracy_yes": yes,
        "yes_no/accuracy_no": no,
        "yes_no/positive_first": jnp.sum(positive & first) / lists,
    }
