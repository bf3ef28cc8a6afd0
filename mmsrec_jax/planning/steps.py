"""The compiled steps of an experiment with abstract arguments: nothing is ever materialized.

Each is the very function that training or ranking jits, traced for shapes with shardings.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mmsrec_jax.evaluation.settings import EvaluationSettings
from mmsrec_jax.hf.processor import ImageProcessor
from mmsrec_jax.inference import forward, scoring
from mmsrec_jax.inference.cached_catalog import Chunk, programs
from mmsrec_jax.inference.sampler import Generation, Sampling, generate_compiled
from mmsrec_jax.inference.settings import UnderstandingSettings
from mmsrec_jax.inputs.batch import Room
from mmsrec_jax.inputs.understanding import BOTH, IMAGE
from mmsrec_jax.models import flops, lora
from mmsrec_jax.models import trainable as trainables
from mmsrec_jax.models.batch import Batch
from mmsrec_jax.models.config import MLLMConfig
from mmsrec_jax.models.late_interaction import Encoded
from mmsrec_jax.models.mllm import MLLM
from mmsrec_jax.models.pair_batch import PairBatch
from mmsrec_jax.planning.planned import Planned, is_taught, model_name
from mmsrec_jax.rl import grpo
from mmsrec_jax.rl.rollout import make_rollout
from mmsrec_jax.rl.settings import GRPOSettings
from mmsrec_jax.runtime import sharding
from mmsrec_jax.runtime.errors import UserError
from mmsrec_jax.training import pairs, sft
from mmsrec_jax.training.sft import FineTuneSettings, WriterSettings
from mmsrec_jax.training.state import TrainState, place_abstract

_YES_NO_IDS = 0, 1  # which ids these are changes nothing that is compiled


@dataclasses.dataclass(frozen=True)
class Step:
    """A jitted function with what it is compiled for.

    static: what stands before the arguments and has no shape.
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
    static: tuple = ()


_Trained = FineTuneSettings | GRPOSettings
_Adapted = _Trained | pairs.CachedSettings
_Updated = FineTuneSettings | pairs.CachedSettings
_Read = _Adapted | EvaluationSettings | UnderstandingSettings


class Steps:
    """What `config` compiles on `mesh` for the model `shape`."""

    def __init__(self, config: Planned, shape: MLLMConfig, mesh: Mesh):
        self.config, self.shape, self.mesh = config, shape, mesh

    def sft(self) -> Step:
        """One update of stage 3 in the joint form."""
        c = self.config.sft
        return self._fine_tune("sft", c, c.listwise_weight)

    def writer(self) -> Step:
        """One update of what teaches a model to write about users (MLLM-SRec)."""
        return self._fine_tune("writer", self.config.writer, 0.0)

    def visual_answers(self) -> Step:
        """Answers to a batch of questions about images (MLLM-SRec)."""
        c = self.config.understanding
        return self._write(
            "visual_answers", c.batch_size, c.prompt_length, c.answer_tokens, c.gather_weights,
            patches=self._patches(c),
        )  # fmt: skip

    def item_texts(self) -> Step:
        """Summaries of a batch of items (MLLM-SRec)."""
        c = self.config.understanding
        return self._write(
            "item_texts", c.batch_size, c.prompt_length, c.summary_tokens, c.gather_weights,
            patches=self._patches(c) if c.mode in (IMAGE, BOTH) else 0,
        )  # fmt: skip

    def preferences(self) -> Step:
        """Texts about one window of a batch of users (MLLM-SRec); profiles are the same program."""
        c = self.config.preferences
        return self._write(
            "preferences", c.batch_size, c.prompt_length, c.max_new_tokens, c.gather_weights,
            taught=self.config.writer if is_taught(self.config) else None,
        )  # fmt: skip

    def _write(
        self,
        name: str,
        rows: int,
        length: int,
        new_tokens: int,
        gather_weights: bool,
        *,
        patches: int = 0,
        taught: WriterSettings | None = None,
    ) -> Step:
        """Greedy texts of a batch of prompts, see `inference.texts`: prefill, and the largest
        number of decoding steps. taught: what trained the model that writes; None: the base."""
        _need_division(f"{name}: batch_size", rows, sharding.num_batch_shards(self.mesh))
        adapters = None
        if taught is not None and "lora" in trainables.parts(taught.trainable):
            adapters = self._adapters(taught)
        graphdef, state = nnx.split(self._model(taught.trainable if taught else "lora", taught))
        state = sharding.abstract(state, sharding.shardings(state, self.mesh))
        batch = self._arrays(
            self._room_of(rows, patches, length=length, targets=0, packed=False).empty()
        )
        key = sharding.abstract(
            jax.eval_shape(lambda: jax.random.key(0)), sharding.replicated(self.mesh)
        )
        prefill = flops.forward(self.shape, self._row_of(length, 1, patches), adapters)
        token = _total(flops.decode(self.shape, length + new_tokens, adapters))
        return Step(
            name,
            generate_compiled,
            (state, batch.model_inputs(), batch.index, key),
            _kinds(state, None, None, batch.model_inputs()),
            rows * (_total(prefill) + (new_tokens - 1) * token),
            rows * self._tower_again(prefill),
            static=(graphdef, self._sampling(1, new_tokens, gather_weights, temperature=0.0)),
        )

    def _sampling(
        self, num_generations: int, max_new_tokens: int, gather_weights: bool, **options: Any
    ) -> Sampling:
        image = self.shape.image_token_id
        return Sampling(
            num_generations=num_generations,
            max_new_tokens=max_new_tokens,
            eos_ids=(0,),
            pad_id=0,
            gather_weights=gather_weights,
            suppress=() if image is None else (image,),
            **options,
        )

    def _fine_tune(self, name: str, c: FineTuneSettings, listwise_weight: float) -> Step:
        optimizer = sft.make_optimizer(c)
        graphdef, state, frozen, shardings = self._placed(c, optimizer)
        step = sft.make_step(
            graphdef,
            optimizer,
            yes_no_ids=_YES_NO_IDS,
            listwise_weight=listwise_weight,
            num_microbatches=sft.num_microbatches(c, self.mesh),
            shardings=shardings,
            offload=c.offload_optimizer,
        )
        batch = self._batch(c, length=c.length, answers=c.answers, targets=c.targets)
        row = self._row(c, c.length, c.targets)
        trained = trainables.parts(c.trainable)
        adapters = self._adapters(c) if "lora" in trained else None
        return Step(
            name,
            step,
            (state, frozen, batch),
            _kinds(state.params, frozen, state.opt_state, batch),
            *self._trained(c, row, adapters, connector="connector" in trained),
        )

    def rollout(self) -> Step:
        """Summaries of stage 1: prefill, and the largest number of decoding steps."""
        c = self.config.summarizer
        graphdef, state, frozen, batch, index = self._grpo()
        sampling = self._sampling(
            c.num_generations, c.max_new_tokens, c.gather_weights,
            temperature=c.temperature, top_k=c.top_k, top_p=c.top_p,
        )  # fmt: skip
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
        prompts = Room(users, c.prompt_length, targets=1).empty().model_inputs()
        read = np.zeros((users, 1 + c.history_end), np.int32)
        return self._arrays(
            PairBatch(
                users=dataclasses.replace(prompts, ends=read),
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

    def _model(self, trainable: str, adapters: _Adapted | None) -> MLLM:
        dtype = self.config.model.dtype
        held = dtype if model_name(self.config) else "float32"

        def make() -> MLLM:
            model = MLLM(self.shape, rngs=nnx.Rngs(0), param_dtype=held, dtype=dtype)
            trainables.hold_in_float32(model, trainable)
            if adapters is not None and "lora" in trainables.parts(trainable):
                lora.add(model, adapters.lora_rank, adapters.lora_alpha, rngs=nnx.Rngs(0))
            return model

        return nnx.eval_shape(make)

    def _batch(self, config: _Trained | EvaluationSettings, **sizes: Any) -> Batch:
        _need_division("batch_size", config.batch_size, sharding.num_batch_shards(self.mesh))
        return self._arrays(self._room(config, config.batch_size, **sizes).empty())

    def _room(self, config: _Read, rows: int, **sizes: Any) -> Room:
        return self._room_of(rows, self._patches(config), **sizes)

    def _room_of(self, rows: int, patches: int, **sizes: Any) -> Room:
        vision = self.shape.vision
        width = 0 if vision is None else vision.channels * vision.patch_size**2
        return Room(rows, patches=patches, patch_width=width, **sizes)

    def _arrays(self, tree: Any) -> Any:
        return sharding.abstract(tree, sharding.batch_sharding(self.mesh))

    def _patches(self, config: _Read) -> int:
        return config.patches if self.config.use.images and self.shape.vision is not None else 0

    def _row(self, config: _Read, length: int, targets: int) -> flops.Row:
        return self._row_of(length, targets, self._patches(config))

    def _row_of(self, length: int, targets: int, patches: int) -> flops.Row:
        """A full row: as many of the largest images as its patches hold."""
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
    "visual_answers": Steps.visual_answers,
    "item_texts": Steps.item_texts,
    "writer": Steps.writer,
    "preferences": Steps.preferences,
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
