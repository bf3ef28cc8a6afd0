"""BERT4Rec (Sun et al. 2019): a bidirectional transformer that fills in masked items.

Section 3.6 of the paper: every item of a training sequence is masked with probability `mask_rate`,
at least one of each sequence, and some sequences have their last item masked and no other, as in
use, where the mask token follows the history. Output layer with an item bias, equation 7, and with
a layer norm after the GELU, as in the authors' code.

*Ours:* pre-norm layers, as in RecTools; positions count from the end of the sequence, so that the
mask token after a history always has the position that a masked last item has in training.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from mmsrec_jax.runtime.errors import UserError
from mmsrec_jax.runtime.settings import setting, setting_like
from mmsrec_jax.sequential.base import (
    Rows,
    SequentialConfig,
    SequentialModule,
    SequentialSettings,
)
from mmsrec_jax.sequential.losses import ItemLoss
from mmsrec_jax.sequential.transformer import (
    Transformer,
    TransformerSizes,
    identity_norms,
    norm,
    same_segment,
)


@dataclass(frozen=True)
class BERT4RecSizes(TransformerSizes):
    mask_rate: float = setting(0.2, "Share of the training items that are masked.", low=0, high=1)
    last_rate: float = setting(
        0.1, "Share of the training sequences whose last item alone is masked.", low=0, high=1
    )

    def check(self, name: str) -> None:
        super().check(name)
        if not self.mask_rate and not self.last_rate:
            raise UserError(
                f"{name}.mask_rate=0.0 and {name}.last_rate=0.0: nothing would be masked, so "
                "nothing learned; raise one"
            )


@dataclass(frozen=True)
class BERT4RecConfig(BERT4RecSizes, SequentialConfig):
    """What the module is built from."""


@dataclass(frozen=True)
class BERT4RecSettings(SequentialSettings, BERT4RecSizes):
    """BERT4Rec and its training."""

    # Small, because chunks without a masked item, which are most, cost nothing.
    loss_chunk: int = setting_like(SequentialSettings, "loss_chunk", 512)


class BERT4Rec(SequentialModule):
    """Sequence encoder; row 0 of the items is padding, the last row is the mask token."""

    config: BERT4RecConfig
    NO_DECAY = (*Transformer.NO_DECAY, "item_bias", "transform_bias", "transform_norm")
    SHIFTED, CAUSAL = False, False

    def __init__(self, config: BERT4RecConfig, *, rngs: nnx.Rngs):
        super().__init__(config, rngs=rngs)
        c = config
        normal = nnx.initializers.normal(0.02)
        self.items = nnx.Param(normal(rngs.params(), (c.num_items + 2, c.dim)))
        self.positions = nnx.Param(normal(rngs.params(), (c.length, c.dim)))
        self.encoder = Transformer(c, rngs=rngs)
        kernel = nnx.initializers.xavier_uniform()
        self.transform = nnx.Param(kernel(rngs.params(), (c.dim, c.dim)))
        self.transform_bias = nnx.Param(jnp.zeros(c.dim))
        self.transform_norm = nnx.Param(identity_norms((), c.dim))
        self.item_bias = nnx.Param(jnp.zeros(c.num_items))

    @property
    def mask_token(self) -> int:
        """Its id in `Rows.ids`."""
        return self.config.num_items + 1

    def __call__(self, rows: Rows, key: jax.Array | None = None) -> jax.Array:
        """States float32[B, L, D]; [b, t] has seen every token of its own segment.

        Segments are at most `config.length` long.
        """
        same = same_segment(rows.segments)
        return self._transformed(self.encoder(self._inputs(rows, same), same, key))

    def table(self) -> jax.Array:
        """The input embeddings, tied: float32[items, D]."""
        return self.items[...][1:-1]

    def bias(self) -> jax.Array:
        return self.item_bias[...]

    def last(self, rows: Rows) -> jax.Array:
        """State of a mask token after each history, float32[B, D].

        Of a history that fills the window, the first item is left out.
        """
        counts = (rows.ids > 0).sum(1)
        full = counts == self.config.length
        ids = jnp.pad(rows.ids, ((0, 0), (0, 1)))
        ids = jnp.where(full[:, None], jnp.roll(ids, -1, 1), ids)
        end = counts - full
        steps = jnp.arange(ids.shape[1])
        ids = jnp.where(steps == end[:, None], self.mask_token, ids)
        masked = rows._replace(ids=ids, segments=(steps <= end[:, None]).astype(jnp.int32))
        same = same_segment(masked.segments)
        return self._transformed(self.encoder.at(self._inputs(masked, same), same, end))

    def loss(
        self, rows: Rows, key: jax.Array, item_loss: ItemLoss
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Loss of the masked items."""
        masked = self.draw_masks(rows, jax.random.fold_in(key, 1))
        states = self(rows._replace(ids=jnp.where(masked, self.mask_token, rows.ids)), key)
        targets = jnp.where(masked, rows.ids - 1, -1)
        negatives = jax.random.fold_in(key, 2)
        return item_loss(states, self.table(), targets, negatives, self.bias()), {}

    def draw_masks(self, rows: Rows, key: jax.Array) -> jax.Array:
        """Which training items to mask: bool[B, L]."""
        c = self.config
        item, sequence = jax.random.uniform(key, (2, *rows.ids.shape))
        same = same_segment(rows.segments)
        least = jnp.where(same, item[:, None], 1).min(-1)
        masked = (item < c.mask_rate) | (item == least)
        last = rows.segments != jnp.pad(rows.segments[:, 1:], ((0, 0), (0, 1)))
        first = jnp.arange(rows.ids.shape[1]) - rows.positions
        only_last = jnp.take_along_axis(sequence, jnp.maximum(first, 0), 1) < c.last_rate
        return jnp.where(only_last, last, masked) & (rows.segments > 0)

    def _inputs(self, rows: Rows, same: jax.Array) -> jax.Array:
        steps = jnp.arange(rows.ids.shape[1])
        from_end = jnp.sum(same & (steps[:, None] < steps[None, :]), -1)
        return self.items[...][rows.ids] + self.positions[...][from_end]

    def _transformed(self, x: jax.Array) -> jax.Array:
        x = x @ self.transform[...] + self.transform_bias[...]
        return norm(jax.nn.gelu(x), self.transform_norm[...])
