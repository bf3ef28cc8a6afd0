"""HM4SR (Zhang et al., WWW 2025, arXiv 2501.14269): id, text and image streams and the clock.

After the authors' code, its constants included: every item of a history is an id
embedding and projected text and image features. An interactive mixture of experts adds to each what
it learns from all, gated by each modality itself; a temporal mixture then scales all of them, gated
by an embedding of the time and one of the logarithm of the interval to the item before. Each stream
has its own transformer, and an item's score is the sum over streams of state times item embedding.
Beside the softmax over items: contrast of the id stream with the next item's id embedding (IDCL),
categories from the three embeddings of each item (CP), and contrast of the text and image streams
with themselves after some items gave way to placeholders made of their times (PCL).

*Ours:* pre-norm transformers over packed rows, where every position is a user at that time; a
sample of these positions is contrasted; placeholders are drawn for each item alone instead of a
fixed number a sequence; negatives with the same target are left out of a contrast (the code counts
each as exp(0)), and in PCL those of the same sequence; time is counted in days, because float32
has no seconds of this century; one of text and image may be missing. Items without a category do
not count in CP.

Where the data has no clock (`Rows.times` are positions), all intervals are 1 and the days are
almost 0: the temporal mixture is the same for every item but the first.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mmsrec_jax.runtime.settings import Section, group, setting, setting_like
from mmsrec_jax.sequential.base import (
    CATEGORIES,
    FEATURE_FILE,
    ContentSettings,
    Rows,
    SequentialConfig,
    SequentialModule,
    SequentialSettings,
)
from mmsrec_jax.sequential.contrastive import draw_positions, info_nce
from mmsrec_jax.sequential.losses import ItemLoss
from mmsrec_jax.sequential.transformer import (
    Transformer,
    TransformerSizes,
    causal_mask,
    identity_norms,
    norm,
)

_DAY = 86400  # seconds
_DOUBLINGS = 31  # of an interval of one second until int32 ends


@dataclass(frozen=True)
class HM4SRSizes(TransformerSizes):
    """Of each stream."""

    dropout: float = setting_like(TransformerSizes, "dropout", 0.5)
    experts: int = setting(4, "Experts of either mixture.", low=1, high=1000)
    interval_buckets: int = setting(
        100,
        "Embeddings of intervals between two items, for each doubling of the interval.",
        low=1,
        high=100_000,
    )
    id_temperature: float = setting(
        0.2, "Of the contrast with the next item's id.", low=0.001, high=100
    )
    placeholder_temperature: float = setting(
        1.0, "Of the contrast with placeholders.", low=0.001, high=100
    )
    placeholder_rate: float = setting(
        0.3, "Share of the items that a placeholder made of their time replaces.", low=0, high=1
    )
    id_weight: float = setting(
        1.0, "Of the contrast with the next item's id in the loss.", low=0, high=1000
    )
    category_weight: float = setting(1.0, "Of the items' categories in the loss.", low=0, high=1000)
    placeholder_weight: float = setting(
        1.0, "Of the contrast with placeholders in the loss.", low=0, high=1000
    )
    contrast: int = setting(
        1024, "Positions of a batch that either contrast tells apart.", low=1, high=1_000_000
    )


@dataclass(frozen=True)
class HM4SRConfig(HM4SRSizes, SequentialConfig):
    """What the module is built from."""


@dataclass(frozen=True)
class HM4SRFeatures(Section):
    """Files of item features."""

    text: str = setting("", FEATURE_FILE)
    image: str = setting("", FEATURE_FILE)


@dataclass(frozen=True)
class HM4SRSettings(ContentSettings, HM4SRSizes):
    """HM4SR and its training."""

    weight_decay: float = setting_like(SequentialSettings, "weight_decay", 0.0)
    contents: tuple[str, ...] = setting(
        ("text", "image"), "Item features that are read, a stream each.", choices=("text", "image")
    )
    features: HM4SRFeatures = group(HM4SRFeatures)
    category_separator: str | None = setting(
        None, "Between the categories of one item. None: an item has one category."
    )


class HM4SR(SequentialModule):
    """Streams are stacked first: [S, ...], the id stream and then one for each content feature."""

    config: HM4SRConfig
    FEATURES = ("text", "image", CATEGORIES)
    NO_DECAY = (
        *Transformer.NO_DECAY,
        "input_norms", "projection_bias", "expert_bias", "gate_bias", "share", "time_gate_bias",
        "time_bias", "placeholder_bias", "category_bias",
    )  # fmt: skip
    USES_TIMES = True

    def __init__(self, config: HM4SRConfig, *, rngs: nnx.Rngs):
        super().__init__(config, rngs=rngs)
        c = config
        contents = [(name, width) for name, width in c.features if name != CATEGORIES]
        self.contents = tuple(name for name, _ in contents)
        streams, wide = 1 + len(contents), c.dim * (1 + len(contents))
        drawn = _normal(
            rngs.params(),
            items=(c.num_items + 1, c.dim),
            positions=(c.length, c.dim),
            experts=(c.experts, wide, wide),
            gates=(streams, c.dim, c.experts),
            intervals=(c.interval_buckets * _DOUBLINGS + 1, c.dim),
            time_scale=(c.dim,),
            time_gate=(2 * c.dim, c.experts),
            time_experts=(c.experts, wide),
            placeholders=(len(contents), 2 * c.dim, c.dim),
            category_kernel=(wide, dict(c.features).get(CATEGORIES, 0)),
            **{name: (width, c.dim) for name, width in contents},
        )
        self.items = nnx.Param(0.02 * drawn["items"])
        self.positions = nnx.Param(0.02 * drawn["positions"])
        self.projections = nnx.Dict(
            {name: nnx.Param((width * c.dim) ** -0.5 * drawn[name]) for name, width in contents}
        )
        self.projection_bias = nnx.Param(jnp.zeros((len(contents), c.dim)))
        self.experts = nnx.Param(0.02 * drawn["experts"])
        self.expert_bias = nnx.Param(jnp.zeros((c.experts, wide)))
        self.gates = nnx.Param(0.02 * drawn["gates"])
        self.gate_bias = nnx.Param(jnp.zeros((streams, c.experts)))
        self.share = nnx.Param(jnp.array([0.0] + [1.0] * len(contents)))
        self.intervals = nnx.Param(0.02 * drawn["intervals"])
        self.time_scale = nnx.Param(0.02 * drawn["time_scale"])
        self.time_bias = nnx.Param(jnp.zeros(c.dim))
        self.time_gate = nnx.Param(0.02 * drawn["time_gate"])
        self.time_gate_bias = nnx.Param(jnp.zeros(c.experts))
        self.time_experts = nnx.Param(0.1 * drawn["time_experts"])
        self.placeholders = nnx.Param(0.02 * drawn["placeholders"])
        self.placeholder_bias = nnx.Param(jnp.zeros((len(contents), c.dim)))
        self.input_norms = nnx.Param(identity_norms((streams,), c.dim))
        self.encoders = _transformers(c, streams, rngs)
        if CATEGORIES in dict(c.features):
            self.category_kernel = nnx.Param(0.02 * drawn["category_kernel"])
            self.category_bias = nnx.Param(jnp.zeros(drawn["category_kernel"].shape[1]))

    def __call__(self, rows: Rows, key: jax.Array | None = None) -> jax.Array:
        """States float32[B, L, S D], the streams side by side."""
        x = self._inputs(self._tables(), self.time(rows), rows)
        return _side_by_side(self._encode(x, rows, key, range(len(x))))

    def table(self) -> jax.Array:
        """Embeddings of all streams side by side, float32[items, S D]."""
        return _side_by_side(self._tables())

    def loss(
        self, rows: Rows, key: jax.Array, item_loss: ItemLoss
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The items' loss, IDCL, CP and PCL."""
        c = self.config
        dropout, negatives, drawn, hidden = jax.random.split(key, 4)
        tables, time = self._tables(), self.time(rows)
        x = self._inputs(tables, time, rows)
        streams = range(len(x))
        hides = jax.random.bernoulli(hidden, c.placeholder_rate, rows.ids.shape)
        both = jnp.concatenate([x, self._with_placeholders(x[1:], time, hides)])
        encoded = self._encode(both, rows, dropout, (*streams, *streams[1:]))
        states, replaced = encoded[: len(x)], encoded[len(x) :]

        places = draw_positions(rows, c.contrast, drawn)
        next_ids = tables[0][jnp.maximum(places.targets, 0)]
        parts = {
            "items": item_loss(
                _side_by_side(states), _side_by_side(tables), rows.targets, negatives
            ),
            "id_contrast": info_nce(
                places.of(states[0]), next_ids, places.other_targets, places.known, c.id_temperature
            ),
            "placeholder_contrast": jnp.mean(
                jnp.stack(
                    [
                        info_nce(
                            places.of(plain),
                            places.of(other),
                            places.other_targets & places.other_sequences,
                            places.known,
                            c.placeholder_temperature,
                        )
                        for plain, other in zip(states[1:], replaced, strict=True)
                    ]
                )
            ),
        }
        loss = (
            parts["items"]
            + c.id_weight * parts["id_contrast"]
            + c.placeholder_weight * parts["placeholder_contrast"]
        )
        if CATEGORIES in dict(c.features):
            parts["category"] = self.category_loss(tables, rows)
            loss += c.category_weight * parts["category"]
        return loss, parts

    def category_loss(self, tables: jax.Array, rows: Rows) -> jax.Array:
        """CP: mean binary cross-entropy over the items of the rows and all categories, scalar."""
        item = jnp.maximum(rows.ids - 1, 0)
        logits = _side_by_side(tables)[item] @ self.category_kernel[...] + self.category_bias[...]
        labels = self.features[CATEGORIES][...][item]
        counts = (rows.ids > 0) & (labels > 0).any(-1)
        nats = jax.nn.softplus(logits) - labels * logits
        return jnp.where(counts, nats.mean(-1), 0).sum() / jnp.maximum(counts.sum(), 1)

    def interactive_gates(self, x: jax.Array) -> jax.Array:
        """Share of each expert in each stream, float32[S, B, L, experts] of x[S, B, L, D]."""
        logits = jnp.einsum("sbld,sde->sble", x, self.gates[...])
        return jax.nn.softmax(logits + self.gate_bias[...][:, None, None], -1)

    def temporal_gates(self, time: jax.Array) -> jax.Array:
        """Share of each expert, float32[B, L, experts] of time[B, L, 2 D]."""
        return jax.nn.softmax(time @ self.time_gate[...] + self.time_gate_bias[...], -1)

    def time(self, rows: Rows) -> jax.Array:
        """Embedding of the interval to the item before, and of the time: float32[B, L, 2 D].

        As the authors' code has it: the interval by floor(buckets log2(seconds + 1)), 0 at the
        first item of a window; the time by cos((w t + b) 10000^(-d / D)).
        """
        c = self.config
        before = jnp.pad(rows.times[:, :-1], ((0, 0), (1, 0)))
        seconds = jnp.where(rows.positions > 0, jnp.maximum(rows.times - before, 0), 0)
        bucket = jnp.floor(c.interval_buckets * jnp.log2(seconds.astype(jnp.float32) + 1))
        interval = self.intervals[...][bucket.astype(jnp.int32)]
        days = rows.times.astype(jnp.float32)[..., None] / _DAY
        slower = 10000.0 ** -(np.arange(c.dim, dtype=np.float32) / c.dim)
        clock = jnp.cos((days * self.time_scale[...] + self.time_bias[...]) * slower)
        return jnp.concatenate([interval, clock], -1)

    def _tables(self) -> jax.Array:
        """float32[S, items, D]"""
        projected = [
            self.features[name][...] @ self.projections[name][...] + self.projection_bias[...][s]
            for s, name in enumerate(self.contents)
        ]
        return jnp.stack([self.items[...][1:], *projected])

    def _inputs(self, tables: jax.Array, time: jax.Array, rows: Rows) -> jax.Array:
        """What the transformers read, [S, B, L, D]."""
        x = tables[:, jnp.maximum(rows.ids - 1, 0)] + self.positions[...][rows.positions]
        streams, batch, length, dim = x.shape
        every = _side_by_side(x)
        said = jnp.einsum("blm,emn->blen", every, self.experts[...]) + self.expert_bias[...]
        said = said.reshape(batch, length, -1, streams, dim)
        heard = jnp.einsum("sble,blesd->sbld", self.interactive_gates(x), said)
        x = x + self.share[...][:, None, None, None] * heard
        scale = self.temporal_gates(time) @ self.time_experts[...]
        return x * jnp.moveaxis(scale.reshape(batch, length, streams, dim), 2, 0)

    def _with_placeholders(self, x: jax.Array, time: jax.Array, hides: jax.Array) -> jax.Array:
        """Content streams [S - 1, B, L, D] with placeholders where `hides` (bool[B, L])."""
        made = jnp.einsum("blt,std->sbld", time, self.placeholders[...])
        made = made + self.placeholder_bias[...][:, None, None]
        return jnp.where(hides[..., None], made, x)

    def _encode(
        self, x: jax.Array, rows: Rows, key: jax.Array | None, streams: Sequence[int]
    ) -> jax.Array:
        """Each x[i], [B, L, D], through the transformer of stream `streams[i]`."""
        graphdef, weights = nnx.split(self.encoders)
        weights, mask = jax.tree.map(lambda w: w[np.array(streams)], weights), causal_mask(rows)
        norms = self.input_norms[...][np.array(streams)]
        keys = None if key is None else jax.random.split(key, len(streams))

        def encode(
            weights: nnx.State, norms: jax.Array, x: jax.Array, key: jax.Array | None
        ) -> jax.Array:
            return nnx.merge(graphdef, weights)(norm(x, norms), mask, key)

        return jax.vmap(encode, (0, 0, 0, None if key is None else 0))(weights, norms, x, keys)


def _normal(key: jax.Array, **shapes: tuple[int, ...]) -> dict[str, jax.Array]:
    """Normal numbers of these shapes by name, from one draw: each one costs compile seconds."""
    sizes = [math.prod(shape) for shape in shapes.values()]
    parts = jnp.split(jax.random.normal(key, (sum(sizes),)), np.cumsum(sizes)[:-1])
    return {
        name: part.reshape(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)
    }


def _transformers(config: HM4SRConfig, count: int, rngs: nnx.Rngs) -> Transformer:
    """So many transformers as one, their weights stacked first."""

    def make(key: jax.Array) -> Transformer:
        return Transformer(config, rngs=nnx.Rngs(key))

    graphdef, _ = nnx.split(nnx.eval_shape(lambda: make(jax.random.key(0))))
    return nnx.merge(
        graphdef, jax.vmap(lambda key: nnx.state(make(key)))(jax.random.split(rngs.params(), count))
    )


def _side_by_side(x: jax.Array) -> jax.Array:
    """[S, ..., D] as [..., S D]."""
    return jnp.moveaxis(x, 0, -2).reshape(*x.shape[1:-1], -1)
