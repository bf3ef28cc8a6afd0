"""The compiled steps of an experiment with abstract arguments: nothing is ever materialized.

Each is the very function that training or ranking jits, traced for shapes with shardings.
"""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mmsrec_jax.evaluation.settings import EvaluationSettings
from mmsrec_jax.hf import mapping, presets, tiny_init
from mmsrec_jax.hf.loading import ModelSettings
from mmsrec_jax.hf.processor import ImageProcessor, read_json
from mmsrec_jax.inference import forward, scoring
from mmsrec_jax.inference.cached_catalog import Chunk, programs
from mmsrec_jax.inference.sampler import Generation, Sampling
from mmsrec_jax.inputs.batch import Room
from mmsrec_jax.models import flops, lora
from mmsrec_jax.models import trainable as trainables
from mmsrec_jax.models.batch import Batch
from mmsrec_jax.models.config import MLLMConfig
from mmsrec_jax.models.late_interaction import Encoded
from mmsrec_jax.models.mllm import MLLM
from mmsrec_jax.models.pair_batch import PairBatch
from mmsrec_jax.prompts.settings import PromptSettings
from mmsrec_jax.rl import grpo
from mmsrec_jax.rl.rollout import make_rollout
from mmsrec_jax.rl.settings import GRPOSettings
from mmsrec_jax.runtime import sharding
from mmsrec_jax.runtime.errors import UserError
from mmsrec_jax.runtime.settings import Section, setting
from mmsrec_jax.training import pairs, sft
from mmsrec_jax.training.state import TrainState, place_abstract

_YES_NO_IDS = 0, 1  # which ids these are changes nothing that is compiled


@dataclasses.dataclass(frozen=True)
class PlanningSettings(Section):
    """What launch/compile.py reads beside the settings of the steps."""

    model: str = setting(
        "", "Published model, or a folder with a config.json, compiled while `model.path` is empty."
    )


class _Use(Protocol):
    @property
    def images(self) -> bool: ...


class Planned(Protocol):
    """The settings of an experiment, as far as planning reads them."""

    @property
    def mesh(self) -> sharding.MeshSettings: ...
    @property
    def model(self) -> ModelSettings: ...
    @property
    def planning(self) -> PlanningSettings: ...
    @property
    def use(self) -> _Use: ...
    @property
    def summarizer(self) -> GRPOSettings: ...
    @property
    def sft(self) -> sft.FineTuneSettings: ...
    @property
    def evaluation(self) -> EvaluationSettings: ...
    @property
    def cached(self) -> pairs.CachedSettings: ...
    @property
    def prompts(self) -> PromptSettings: ...


@dataclasses.dataclass(frozen=True)
class Step:
    """A jitted function with what it is compiled for.

    arguments: positional, shapes with shardings.
    kinds: the same arrays by what they are: parameters, optimizer, batch.
    required, repeated: FLOPs of one call on all devices: by the model's arithmetic, and what is
      computed again: by rematerialization, and by devices along the tensor axis, each of which
      has the whole vision tower.
    """

    name: str
    function: Any
    arguments: tuple
    kinds: dict[str, Any]
    required: int
    repeated: int = 0


def model_name(config: Planned) -> str:
    """Folder or published name, "" from scratch."""
    return config.model.path or config.planning.model


def model_config(config: Planned) -> MLLMConfig:
    """The model that `config` is about: config.model.path or else config.planning.model, either a
    folder or a published name; without them the one from scratch.

    Raises:
      UserError: neither a folder with a config.json nor a published name.
    """
    name = model_name(config)
    if not name:
        raw = tiny_init.hf_config(config.model.tiny, config.model.tiny.vocab_size)
        found = mapping.config_from_hf(raw)
    elif (path := Path(name) / "config.json").is_file():
        found = mapping.config_from_hf(read_json(path))
    elif name in presets.CONFIGS:
        found = presets.config(name)
    else:
        raise UserError(
            f"model {name!r}: no folder with a config.json, and none of "
            f"{', '.join(presets.CONFIGS)}"
        )
    return dataclasses.replace(found, remat=config.model.remat)


_Trained = sft.FineTuneSettings | GRPOSettings
_Adapted = _Trained | pairs.CachedSettings
_Updated = sft.FineTuneSettings | pairs.CachedSettings
_Read = _Adapted | EvaluationSettings


class Steps:
    """What `config` compiles on `mesh` for the model `shape`."""

    def __init__(self, config: Planned, shape: MLLMConfig, mesh: Mesh):
        self.config, self.shape, self.mesh = config, shape, mesh

    def sft(self) -> Step:
        """One update of stage 3."""
        c = self.config.sft
        optimizer = sft.make_optimizer(c)
        graphdef, state, frozen, shardings = self._placed(c, optimizer)
        step = sft.make_step(
            graphdef,
            optimizer,
            yes_no_ids=_YES_NO_IDS,
            listwise_weight=c.listwise_weight,
            num_microbatches=sft.num_microbatches(c, self.mesh),
            shardings=shardings,
            offload=c.offload_optimizer,
        )
        batch = self._batch(c, length=c.length, answers=c.answers, targets=c.targets)
        row = self._row(c, c.length, c.targets)
        trained = trainables.parts(c.trainable)
        adapters = self._adapters(c) if "lora" in trained else None
        return Step(
            "sft",
            step,
            (state, frozen, batch),
            _kinds(state.params, frozen, state.opt_state, batch),
            *self._trained(c, row, adapters, connector="connector" in trained),
        )

    def rollout(self) -> Step:
        """Summaries of stage 1: prefill, and the largest number of decoding steps."""
        c = self.config.summarizer
        graphdef, state, frozen, batch, index = self._grpo()
        sampling = Sampling(
            num_generations=c.num_generations,
            max_new_tokens=c.max_new_tokens,
            eos_ids=(0,),
            pad_id=0,
            temperature=c.temperature,
            top_k=c.top_k,
            top_p=c.top_p,
            suppress=() if self.shape.image_token_id is None else (self.shape.image_token_id,),
            gather_weights=c.gather_weights,
        )
        roll = make_rollout(graphdef, sampling, c.seed)
        adapters, slots = self._adapters(c), c.prompt_length + c.max_new_tokens
        row = self._row(c, c.prompt_length, c.num_generations)
        prefill = flops.forward(self.shape, row, adapters)
        tokens = c.num_generations * (c.max_new_tokens - 1)
        token = _total(flops.decode(self.shape, slots, adapters))
        return Step(
            "rollout",
            roll,
            (state.params, frozen, batch, index, state.step),
            _kinds(state.params, frozen, None, batch),
            c.batch_size * (_total(prefill) + tokens * token),
            c.batch_size * self._tower_again(prefill),
        )

    def grpo(self) -> Step:
        """One update of stage 1 on scored summaries."""
        c = self.config.summarizer
        graphdef, state, frozen, batch, _ = self._grpo()
        completions = c.batch_size, c.num_generations, c.max_new_tokens
        drawn = self._arrays(
            jax.eval_shape(
                lambda: Generation(
                    tokens=jnp.zeros(completions, jnp.int32),
                    logprobs=jnp.zeros(completions),
                    sampling_logprobs=jnp.zeros(completions),
                    entropies=jnp.zeros(completions),
                    lengths=jnp.zeros(completions[:2], jnp.int32),
                )
            )
        )
        scored = self._arrays(
            jax.eval_shape(lambda: grpo.Scored(jnp.zeros(completions[:2]), jnp.zeros(completions)))
        )
        update = grpo.make_update(
            graphdef,
            grpo.make_optimizer(c),
            c,
            shardings=jax.tree.map(lambda x: x.sharding, state),
        )
        suffixes = c.num_generations * (c.max_new_tokens + 1)
        row, adapters = self._row(c, c.prompt_length + suffixes, suffixes), self._adapters(c)
        return Step(
            "grpo",
            update,
            (state, frozen, batch, drawn, scored),
            _kinds(state.params, frozen, state.opt_state, (batch, drawn, scored)),
            *self._trained(c, row, adapters),
        )

    def rank(self) -> Step:
        """Scores of a batch of candidate lists."""
        c, tuned = self.config.evaluation, self.config.sft
        graphdef, state = nnx.split(self._model(tuned.trainable, tuned))
        state = sharding.abstract(state, sharding.shardings(state, self.mesh))
        score = forward.compiled(graphdef, scoring.margins(_YES_NO_IDS), self.mesh)
        batch = self._batch(
            c, length=c.length, answers=c.list_width, targets=c.length // 2, packed=False
        )
        adapters = self._adapters(tuned) if "lora" in trainables.parts(tuned.trainable) else None
        parts = flops.forward(self.shape, self._row(c, c.length, 0), adapters)
        return Step(
            "rank",
            score,
            (state, batch),
            _kinds(state, None, None, batch),
            c.batch_size * _total(parts),
            c.batch_size * self._tower_again(parts),
        )

    def cached(self) -> Step:
        """One update of stage 3 in the cached form: every item meets every user."""
        c = self.config.cached
        optimizer = sft.make_optimizer(c)
        graphdef, state, frozen, shardings = self._placed(c, optimizer)
        step = pairs.make_step(
            graphdef,
            optimizer,
            jnp.zeros(c.tail, jnp.int32),
            start=c.prompt_length,
            yes_no_ids=_YES_NO_IDS,
            closeness=c.closeness,
            weights=c.task_weights,
            shardings=shardings,
            offload=c.offload_optimizer,
        )
        batch = self._pairs()
        trained = trainables.parts(c.trainable)
        adapters = self._adapters(c) if "lora" in trained else None
        connector = "connector" in trained
        required = repeated = 0
        for count, row in (
            (c.num_users, flops.Row(c.prompt_length, c.prompt_length)),
            (c.num_users, flops.Row(c.words_length, c.words_length)),
            (c.num_items, self._row(c, c.item_length, 0)),
        ):
            parts = flops.train_step(self.shape, row, adapters, connector=connector)
            again = flops.recomputed(self.shape, row, adapters, connector=connector)
            total = {part: parts[part] + again.get(part, 0) for part in parts}
            required += count * _total(parts)
            repeated += count * (_total(again) + self._tower_again(total))
        backward = 2 if adapters is not None or connector else 3
        return Step(
            "cached",
            step,
            (state, frozen, batch),
            _kinds(state.params, frozen, state.opt_state, batch),
            required + c.num_users * c.num_items * backward * self._pair(),
            repeated,
        )

    def catalog(self) -> Step:
        """Scores of `cached.score_users` users for `cached.score_items` stored items."""
        c = self.config.cached
        graphdef, state = nnx.split(self._model(c.trainable, c))
        state = sharding.abstract(state, sharding.shardings(state, self.mesh))
        shards = sharding.num_batch_shards(self.mesh)
        users, items = (-(-n // shards) * shards for n in (c.score_users, c.score_items))
        stored = Chunk(
            self._encoded(items, c.item_length),
            self._arrays(jax.ShapeDtypeStruct((items,), jnp.int32)),
        )
        prompts = self._encoded(users, c.prompt_length)
        tail = sharding.abstract(
            jax.ShapeDtypeStruct((c.tail,), jnp.int32), sharding.replicated(self.mesh)
        )
        return Step(
            "catalog",
            programs(graphdef, _YES_NO_IDS, c.closeness, self.mesh).score,
            (state, prompts, stored, tail),
            {"parameters": state, "prompts": prompts, "item store": stored},
            users * items * self._pair(),
        )

    def _pair(self) -> int:
        """FLOPs of the tail of an item for one user."""
        c = self.config.cached
        return round(sum(flops.read(self.shape, c.tail, c.prompt_length + c.item_length).values()))

    def _pairs(self) -> PairBatch:
        c = self.config.cached
        shards = sharding.num_batch_shards(self.mesh)
        for name, size in (("num_users", c.num_users), ("num_items", c.num_items)):
            _need_division(f"cached.{name}", size, shards)
        users, items = c.num_users, c.num_items
        words, ends = (users, c.words_length), (users, max(self.config.prompts.history - 1, 0))
        return self._arrays(
            PairBatch(
                users=Room(users, c.prompt_length, targets=1).empty().model_inputs(),
                items=self._room(c, items, length=c.item_length, targets=1).empty().model_inputs(),
                tails=np.zeros(items, np.int32),
                targets=np.zeros(users, np.int32),
                competes=np.zeros((users, items), bool),
                log_frequency=np.zeros(items, np.float32),
                words=np.zeros(words, np.int32),
                word_weights=np.zeros(words, np.float32),
                history_weights=np.zeros((users, c.prompt_length), np.float32),
                history_ends=np.zeros(ends, np.int32),
                history_nexts=np.zeros(ends, np.int32),
            )
        )

    def _encoded(self, rows: int, length: int) -> Encoded:
        """What is kept of rows, divided over the shards of a batch."""
        text, batch = self.shape.text, sharding.LOGICAL_AXES["batch"]
        dtype = jnp.dtype(self.config.model.dtype)
        kept: Any = jax.ShapeDtypeStruct(
            (text.layers, rows, length, text.kv_heads, text.head_dim), dtype,
            sharding=NamedSharding(self.mesh, PartitionSpec(None, batch)),
        )  # fmt: skip
        there, end = self._arrays(
            (
                jax.ShapeDtypeStruct((rows, length), jnp.bool_),
                jax.ShapeDtypeStruct((rows, text.hidden), dtype),
            )
        )
        return Encoded(kept, kept, there, end)

    def _trained(
        self,
        config: _Trained,
        row: flops.Row,
        adapters: flops.Adapters | None,
        *,
        connector: bool = False,
    ) -> tuple[int, int]:
        """Required and repeated FLOPs of a training step on rows like `row`."""
        parts = flops.train_step(self.shape, row, adapters, connector=connector)
        again = flops.recomputed(self.shape, row, adapters, connector=connector)
        total = {part: parts[part] + again.get(part, 0) for part in parts}
        repeated = _total(again) + self._tower_again(total)
        return config.batch_size * _total(parts), config.batch_size * repeated

    def _tower_again(self, parts: flops.Flops) -> int:
        tower = sum(parts.get(part, 0) for part in ("tower", "tower_attention", "connector"))
        return (self.mesh.shape["tensor"] - 1) * tower

    def _grpo(self) -> tuple[nnx.GraphDef, TrainState, nnx.State, Batch, Any]:
        """Model, prompts and their items."""
        c = self.config.summarizer
        model = self._model("lora", c)
        graphdef, state, frozen, _ = place_abstract(
            model, "lora", grpo.make_optimizer(c), self.mesh
        )
        batch = self._batch(c, length=c.prompt_length, targets=c.prompt_length // 2, packed=False)
        return graphdef, state, frozen, batch.model_inputs(), batch.index

    def _placed(
        self, c: _Updated, optimizer: optax.GradientTransformation
    ) -> tuple[nnx.GraphDef, TrainState, nnx.State, TrainState]:
        """The model and its optimizer, see `place_abstract`."""
        return place_abstract(
            self._model(c.trainable, c), c.trainable, optimizer, self.mesh,
            offload=c.offload_optimizer,
        )  # fmt: skip

    def _model(self, trainable: str, adapters: _Adapted) -> MLLM:
        dtype = self.config.model.dtype
        held = dtype if model_name(self.config) else "float32"

        def make() -> MLLM:
            model = MLLM(self.shape, rngs=nnx.Rngs(0), param_dtype=held, dtype=dtype)
            trainables.hold_in_float32(model, trainable)
            if "lora" in trainables.parts(trainable):
                lora.add(model, adapters.lora_rank, adapters.lora_alpha, rngs=nnx.Rngs(0))
            return model

        return nnx.eval_shape(make)

    def _batch(self, config: _Trained | EvaluationSettings, **sizes: Any) -> Batch:
        _need_division("batch_size", config.batch_size, sharding.num_batch_shards(self.mesh))
        return self._arrays(self._room(config, config.batch_size, **sizes).empty())

    def _room(self, config: _Read, rows: int, **sizes: Any) -> Room:
        vision = self.shape.vision
        width = 0 if vision is None else vision.channels * vision.patch_size**2
        return Room(rows, patches=self._patches(config), patch_width=width, **sizes)

    def _arrays(self, tree: Any) -> Any:
        return sharding.abstract(tree, sharding.batch_sharding(self.mesh))

    def _patches(self, config: _Read) -> int:
        return config.patches if self.config.use.images and self.shape.vision is not None else 0

    def _row(self, config: _Read, length: int, targets: int) -> flops.Row:
        """A full row: as many of the largest images as its patches hold."""
        patches = self._patches(config)
        if not patches:
            return flops.Row(length, targets)
        vision = self.shape.vision
        assert vision is not None, "patches need a tower"
        pixels = self.config.model.max_pixels or ImageProcessor().max_pixels
        most = min(patches, max(vision.merge**2, pixels // vision.patch_size**2))
        height = vision.merge * (math.isqrt(most) // vision.merge)
        width = vision.merge * (most // height // vision.merge)
        return flops.Row(length, targets, [(height, width)] * (patches // (height * width)))

    @staticmethod
    def _adapters(config: _Adapted) -> flops.Adapters:
        return flops.Adapters(config.lora_rank)


STEPS: dict[str, Callable[[Steps], Step]] = {
    "sft": Steps.sft,
    "grpo": Steps.grpo,
    "rollout": Steps.rollout,
    "rank": Steps.rank,
    "cached": Steps.cached,
    "catalog": Steps.catalog,
}


def _need_division(name: str, size: int, shards: int) -> None:
    if size % shards:
        raise UserError(
            f"{name}={size} does not divide by the {shards} shards of a batch on this mesh "
            "(data * fsdp); make it a multiple"
        )


def _kinds(trained: Any, frozen: Any, optimizer: Any, batch: Any) -> dict[str, Any]:
    return {"parameters": (trained, frozen), "optimizer": optimizer, "batch": batch}


def _total(parts: flops.Flops) -> int:
    return sum(parts.values())
