"""Molar (Luo et al., arXiv 2412.18176): content scores items, an ID-based model aligns
users.

The paper's: items are what an MLLM says of them (section 3.3); a sequence model over these vectors
gives the content-based user embedding, which is scored against the items' vectors (3.4); an
ID-based SASRec of the same width gives a second embedding of the user, and a symmetric InfoNCE with
cosine similarity pulls both together (equation 4), weighted by alpha (equation 5). Item ids reach
the scores through this alignment alone. `loss="bce"`, one negative a target, is the paper's
(appendix B).

*Ours:* the MLLM is frozen, its pooled hidden states pass a two-layer adapter in place of the
paper's fine-tuning of the MLLM (three tasks, then both losses); the sequence model is a causal
transformer from scratch instead of an LLM without its word embeddings, so that every position
of a sequence is a user at that time and no [User] token is needed; the ID-based model, whose
training the paper does not describe, is trained on the same targets at the same time; alpha and the
temperature, which the paper does not give.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from mmsrec_jax.runtime.settings import Section, group, setting, setting_like
from mmsrec_jax.sequential.base import (
    FEATURE_FILE,
    ContentSettings,
    Rows,
    SequentialConfig,
    SequentialModule,
    last_position,
)
from mmsrec_jax.sequential.contrastive import draw_positions, info_nce
from mmsrec_jax.sequential.losses import ItemLoss
from mmsrec_jax.sequential.sasrec import SASRec, SASRecConfig
from mmsrec_jax.sequential.transformer import Transformer, TransformerSizes, causal_mask


@dataclass(frozen=True)
class MolarSizes(TransformerSizes):
    """Of both sequence models; `mlp_dim` is also the width of the adapter."""

    dropout: float = setting_like(TransformerSizes, "dropout", 0.3)
    alignment_weight: float = setting(
        0.1, "Of the alignment in the loss; the paper's alpha.", low=0, high=1000
    )
    temperature: float = setting(0.1, "Of the alignment; the paper's tau.", low=0.001, high=100)
    contrast: int = setting(
        512,
        "Users of a batch, each at one time, that the alignment tells apart.",
        low=1,
        high=1_000_000,
    )


@dataclass(frozen=True)
class MolarConfig(MolarSizes, SequentialConfig):
    """What the module is built from."""


@dataclass(frozen=True)
class MolarFeatures(Section):
    """Files of item features."""

    item: str = setting("", FEATURE_FILE)
    text: str = setting("", FEATURE_FILE)
    image: str = setting("", FEATURE_FILE)


@dataclass(frozen=True)
class MolarSettings(ContentSettings, MolarSizes):
    """Molar and its training."""

    contents: tuple[str, ...] = setting(
        ("item",), "Item features that are read; \"item\" is text and image in one.",
        choices=("item", "text", "image"),
    )  # fmt: skip
    features: MolarFeatures = group(MolarFeatures)


class Molar(SequentialModule):
    """The content-based model, and the ID-based one, which only training uses."""

    config: MolarConfig
    FEATURES = ("item", "text", "image")
    NO_DECAY = (*Transformer.NO_DECAY, "inner_bias", "outer_bias")

    def __init__(self, config: MolarConfig, *, rngs: nnx.Rngs):
        super().__init__(config, rngs=rngs)
        c = config
        kernel = nnx.initializers.lecun_normal()
        self.inner = nnx.Dict(
            {
                name: nnx.Param(kernel(rngs.params(), (width, c.mlp_dim)))
                for name, width in c.features
            }
        )
        self.inner_bias = nnx.Param(jnp.zeros(c.mlp_dim))
        self.outer = nnx.Param(kernel(rngs.params(), (c.mlp_dim, c.dim)))
        self.outer_bias = nnx.Param(jnp.zeros(c.dim))
        self.positions = nnx.Param(nnx.initializers.normal(0.02)(rngs.params(), (c.length, c.dim)))
        self.encoder = Transformer(c, rngs=rngs)
        sizes = {name: getattr(c, name) for name in ("dim", "layers", "heads", "mlp_dim")}
        self.ids = SASRec(
            SASRecConfig(c.num_items, length=c.length, dropout=c.dropout, **sizes), rngs=rngs
        )

    def __call__(self, rows: Rows, key: jax.Array | None = None) -> jax.Array:
        """Content-based user embeddings float32[B, L, D] after every item."""
        return self.encoder(self._inputs(self.table(), rows), causal_mask(rows), key)

    def last(self, rows: Rows) -> jax.Array:
        """Content-based user embedding after the last item of each row, float32[B, D]."""
        x = self._inputs(self.table(), rows)
        return self.encoder.at(x, causal_mask(rows), last_position(rows))

    def table(self) -> jax.Array:
        """What content says of the items, float32[items, D]."""
        inner = self.inner_bias[...] + sum(
            self.features[name][...] @ self.inner[name][...] for name, _ in self.config.features
        )
        outer = jax.nn.gelu(inner) @ self.outer[...] + self.outer_bias[...]
        return outer * self.config.dim**-0.5

    def loss(
        self, rows: Rows, key: jax.Array, item_loss: ItemLoss
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The content-based loss, the alignment and the ID-based model's own loss."""
        c = self.config
        content_key, id_key, negatives, drawn = jax.random.split(key, 4)
        table = self.table()
        content = self.encoder(self._inputs(table, rows), causal_mask(rows), content_key)
        by_content = item_loss(content, table, rows.targets, negatives)
        id_based = self.ids(rows, id_key)
        by_id = item_loss(id_based, self.ids.table(), rows.targets, negatives)
        alignment = align(content, id_based, rows, drawn, c.contrast, c.temperature)
        parts = {"content": by_content, "id": by_id, "alignment": alignment}
        return by_content + by_id + c.alignment_weight * alignment, parts

    def _inputs(self, table: jax.Array, rows: Rows) -> jax.Array:
        x = table[jnp.maximum(rows.ids - 1, 0)] * self.config.dim**0.5
        return x + self.positions[...][rows.positions]


def align(
    content: jax.Array,
    id_based: jax.Array,
    rows: Rows,
    key: jax.Array,
    count: int,
    temperature: float,
) -> jax.Array:
    """Equation 4 over at most `count` users, scalar: both directions of InfoNCE, added.

    content, id_based float[B, L, D]. Negatives are the other drawn positions, except those of the
    same sequence, which are the same user (*ours*).
    """
    places = draw_positions(rows, count, key)
    content, id_based = places.of(content), places.of(id_based)
    rivals, known = places.other_sequences, places.known
    return info_nce(id_based, content, rivals, known, temperature) + info_nce(
        content, id_based, rivals, known, temperature
    )
