"""GRU4Rec (Hidasi et al. 2016), trained by cross-entropy at every position.

Embedding, GRU layers, a linear map back to the width of the embedding, which also scores (tied:
the constrained embedding of Hidasi & Karatzoglou 2018). Dropout before every layer and after the
last. The GRU is cuDNN's and torch's: the reset gate acts on the candidate's product with the state.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from mmsrec_jax.runtime.settings import setting
from mmsrec_jax.sequential import dropout
from mmsrec_jax.sequential.base import (
    Rows,
    SequentialConfig,
    SequentialModule,
    SequentialSettings,
    Sizes,
)


@dataclass(frozen=True)
class GRU4RecSizes(Sizes):
    dim: int = setting(64, "Width of the item embeddings.", low=1, high=100_000)
    hidden: int = setting(128, "Width of the state of each layer.", low=1, high=100_000)
    layers: int = setting(1, "GRU layers.", low=1, high=1000)
    dropout: float = setting(0.3, "Before every layer and after the last.", low=0, high=0.99)


@dataclass(frozen=True)
class GRU4RecConfig(GRU4RecSizes, SequentialConfig):
    """What the module is built from."""


@dataclass(frozen=True)
class GRU4RecSettings(SequentialSettings, GRU4RecSizes):
    """GRU4Rec and its training."""


class GRU4Rec(SequentialModule):
    """Sequence encoder; item i of the catalog lives in row i + 1, row 0 is padding."""

    config: GRU4RecConfig
    NO_DECAY = ("bias", "state_bias", "out_bias")

    def __init__(self, config: GRU4RecConfig, *, rngs: nnx.Rngs):
        super().__init__(config, rngs=rngs)
        c = config
        normal, kernel = nnx.initializers.normal(0.02), nnx.initializers.xavier_uniform()
        self.items = nnx.Param(normal(rngs.params(), (c.num_items + 1, c.dim)))
        widths = (c.dim, *[c.hidden] * (c.layers - 1))
        self.layers = nnx.List([GRU(width, c.hidden, rngs=rngs) for width in widths])
        self.out = nnx.Param(kernel(rngs.params(), (c.hidden, c.dim)))
        self.out_bias = nnx.Param(jnp.zeros(c.dim))

    def __call__(self, rows: Rows, key: jax.Array | None = None) -> jax.Array:
        """States float32[B, L, D]; [b, t] has seen tokens <= t of its own sequence."""
        c = self.config
        x = self.items[...][rows.ids] * c.dim**0.5
        keep: Sequence[jax.Array | None] = [None] * (c.layers + 1)
        if key is not None and c.dropout > 0:
            widths = (c.dim, *[c.hidden] * c.layers)
            drawn = dropout.kept(key, (*rows.ids.shape, sum(widths)), c.dropout)
            keep = jnp.split(drawn, [c.dim + n * c.hidden for n in range(c.layers)], axis=-1)
        for layer, kept in zip(self.layers, keep[:-1], strict=True):
            x = layer(dropout.apply(x, c.dropout, kept), rows.positions == 0)
        return dropout.apply(x, c.dropout, keep[-1]) @ self.out[...] + self.out_bias[...]

    def table(self) -> jax.Array:
        """The input embeddings, tied: float32[items, D]."""
        return self.items[...][1:]


class GRU(nnx.Module):
    """One layer; gates lie side by side: reset, update, candidate."""

    def __init__(self, width: int, hidden: int, *, rngs: nnx.Rngs):
        kernel = nnx.initializers.xavier_uniform()
        self.input = nnx.Param(kernel(rngs.params(), (width, 3 * hidden)))
        self.state = nnx.Param(kernel(rngs.params(), (hidden, 3 * hidden)))
        self.bias = nnx.Param(jnp.zeros(3 * hidden))
        self.state_bias = nnx.Param(jnp.zeros(hidden))  # inside the reset; elsewhere redundant

    def __call__(self, x: jax.Array, first: jax.Array) -> jax.Array:
        """float32[B, L, width] -> float32[B, L, hidden].

        first bool[B, L]: where a sequence begins; its state begins at zero.
        """
        hidden = self.state.shape[0]
        inputs = x @ self.input[...] + self.bias[...]

        def step(h: jax.Array, scanned: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
            gates, candidate, first = scanned
            h = jnp.where(first[:, None], 0, h)
            from_state = h @ self.state[...]
            opened = jax.nn.sigmoid(gates + from_state[:, : 2 * hidden])
            reset, update = jnp.split(opened, 2, axis=-1)
            inner = from_state[:, 2 * hidden :] + self.state_bias[...]
            h = (1 - update) * jnp.tanh(candidate + reset * inner) + update * h
            return h, h

        gates, candidates = jnp.split(inputs, [2 * hidden], axis=-1)
        over_time = tuple(jnp.swapaxes(a, 0, 1) for a in (gates, candidates, first))
        _, states = jax.lax.scan(step, jnp.zeros((x.shape[0], hidden)), over_time)
        return jnp.swapaxes(states, 0, 1)
