"""SASRec (Kang & McAuley 2018); with full-softmax cross-entropy by default.

The loss is that of Klenitskiy & Vasilev 2023 (arXiv 2309.07602) and RecTools; `loss="bce"` is the
original's. Pre-norm causal transformer over item ids, learned positions, tied item embedding.
Positions count from the start of the window (*ours*; the original pads on the left): the embedding
of a prefix does not depend on what comes after it, nor on whether it was computed alone or with the
whole sequence.
"""

from dataclasses import dataclass

import jax
from flax import nnx

from mmsrec_jax.runtime.settings import setting_like
from mmsrec_jax.sequential.base import (
    Rows,
    SequentialConfig,
    SequentialModule,
    SequentialSettings,
    last_position,
)
from mmsrec_jax.sequential.transformer import Transformer, TransformerSizes, causal_mask


@dataclass(frozen=True)
class SASRecSizes(TransformerSizes):
    dropout: float = setting_like(TransformerSizes, "dropout", 0.3)


@dataclass(frozen=True)
class SASRecConfig(SASRecSizes, SequentialConfig):
    """What the module is built from."""


@dataclass(frozen=True)
class SASRecSettings(SequentialSettings, SASRecSizes):
    """SASRec and its training."""


class SASRec(SequentialModule):
    """Sequence encoder; item i of the catalog lives in row i + 1, row 0 is padding."""

    config: SASRecConfig
    NO_DECAY = Transformer.NO_DECAY

    def __init__(self, config: SASRecConfig, *, rngs: nnx.Rngs):
        super().__init__(config, rngs=rngs)
        c = config
        normal = nnx.initializers.normal(0.02)
        self.items = nnx.Param(normal(rngs.params(), (c.num_items + 1, c.dim)))
        self.positions = nnx.Param(normal(rngs.params(), (c.length, c.dim)))
        self.encoder = Transformer(c, rngs=rngs)

    def __call__(self, rows: Rows, key: jax.Array | None = None) -> jax.Array:
        """States float32[B, L, D]; [b, t] has seen tokens <= t of its own segment."""
        return self.encoder(self._inputs(rows), causal_mask(rows), key)

    def last(self, rows: Rows) -> jax.Array:
        """State after the last item of each row, float32[B, D]."""
        return self.encoder.at(self._inputs(rows), causal_mask(rows), last_position(rows))

    def table(self) -> jax.Array:
        """The input embeddings, tied: float32[items, D]."""
        return self.items[...][1:]

    def _inputs(self, rows: Rows) -> jax.Array:
        x = self.items[...][rows.ids] * self.config.dim**0.5
        return x + self.positions[...][rows.positions]
