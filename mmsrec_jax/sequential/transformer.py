"""Pre-norm transformer layers over item sequences (Vaswani et al. 2017; GELU): SASRec, BERT4Rec."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from mmsrec_jax.runtime.errors import UserError
from mmsrec_jax.runtime.settings import setting
from mmsrec_jax.sequential import dropout
from mmsrec_jax.sequential.base import Rows, Sizes, take_position


@dataclass(frozen=True)
class TransformerSizes(Sizes):
    """Sizes of the transformer over a history."""

    dim: int = setting(64, "Width of the item embeddings and of the states.", low=1, high=100_000)
    layers: int = setting(2, "Transformer layers.", low=1, high=1000)
    heads: int = setting(2, "Attention heads; they divide `dim`.", low=1, high=1000)
    mlp_dim: int = setting(256, "Width of the MLP in each layer.", low=1, high=1_000_000)
    dropout: float = setting(
        0.2, "Of the input, of both residual branches and of the attention weights.",
        low=0, high=0.99,
    )  # fmt: skip

    def check(self, name: str) -> None:
        super().check(name)
        if self.dim % self.heads:
            raise UserError(f"{name}.heads={self.heads}: must divide dim={self.dim}")


class Transformer(nnx.Module):
    """Layers with stacked weights and a final norm; the caller gives the attention mask."""

    NO_DECAY = ("norms", "final_norm", "up_bias", "down_bias")

    def __init__(self, config: TransformerSizes, *, rngs: nnx.Rngs):
        self.config = c = config
        kernel = nnx.initializers.xavier_uniform(batch_axis=0)
        self.qkv = nnx.Param(kernel(rngs.params(), (c.layers, c.dim, 3 * c.dim)))
        self.out = nnx.Param(kernel(rngs.params(), (c.layers, c.dim, c.dim)))
        self.up = nnx.Param(kernel(rngs.params(), (c.layers, c.dim, c.mlp_dim)))
        self.up_bias = nnx.Param(jnp.zeros((c.layers, c.mlp_dim)))
        self.down = nnx.Param(kernel(rngs.params(), (c.layers, c.mlp_dim, c.dim)))
        self.down_bias = nnx.Param(jnp.zeros((c.layers, c.dim)))
        self.norms = nnx.Param(identity_norms((c.layers, 2), c.dim))
        self.final_norm = nnx.Param(identity_norms((), c.dim))

    def __call__(self, x: jax.Array, mask: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """float32[B, L, D] -> float32[B, L, D].

        mask bool[B, L, L]: [b, q, k]: position q sees position k. key: dropout of the input, of
        both residual connections and of the attention weights; None for no dropout.
        """
        keep = None
        if key is not None and self.config.dropout > 0:
            x, keep = self._dropout_masks(x, key)
        return norm(self._layers(x, mask, self._weights(), keep), self.final_norm[...])

    def at(self, x: jax.Array, mask: jax.Array, positions: jax.Array) -> jax.Array:
        """States of `self(x, mask)` at one position of each row: float32[B, D]; positions int32[B].

        In the last layer this position is the only query; the others give keys and values.
        """
        weights = self._weights()
        x = self._layers(x, mask, jax.tree.map(lambda w: w[:-1], weights))
        last = jax.tree.map(lambda w: w[-1], weights)
        mask = take_position(mask, positions)
        x = _layer(take_position(x, positions), x, mask, last, self.config)
        return norm(x, self.final_norm[...])[:, 0]

    def _weights(self) -> dict[str, jax.Array]:
        names = ("qkv", "out", "up", "up_bias", "down", "down_bias", "norms")
        return {name: getattr(self, name)[...] for name in names}

    def _layers(
        self,
        x: jax.Array,
        mask: jax.Array,
        weights: dict[str, jax.Array],
        keep: jax.Array | None = None,
    ) -> jax.Array:
        def layer(
            x: jax.Array, scanned: tuple[dict[str, jax.Array], jax.Array | None]
        ) -> tuple[jax.Array, None]:
            return _layer(x, x, mask, scanned[0], self.config, scanned[1]), None

        return jax.lax.scan(layer, x, (weights, keep))[0]

    def _dropout_masks(self, x: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """x after dropout; per layer bool[B, L, 2 D + heads L]: two residual masks, attention."""
        c = self.config
        batch, length, dim = x.shape
        width = 2 * dim + c.heads * length
        keep = dropout.kept(key, (batch, length, dim + c.layers * width), c.dropout)
        layers = keep[..., dim:].reshape(batch, length, c.layers, width)
        return dropout.apply(x, c.dropout, keep[..., :dim]), jnp.moveaxis(layers, 2, 0)


def same_segment(segments: jax.Array) -> jax.Array:
    """bool[B, L, L]: which positions belong to one sequence; segments int32[B, L]."""
    return segments[:, :, None] == segments[:, None, :]


def causal_mask(rows: Rows) -> jax.Array:
    """bool[B, L, L]: a position sees itself and earlier positions of its sequence."""
    steps = jnp.arange(rows.segments.shape[1])
    return same_segment(rows.segments) & (steps[:, None] >= steps[None, :])


def identity_norms(shape: tuple[int, ...], dim: int) -> jax.Array:
    """Scale and bias of layer norms, stacked: float32[*shape, 2, dim]."""
    return jnp.broadcast_to(jnp.stack([jnp.ones(dim), jnp.zeros(dim)]), (*shape, 2, dim))


def norm(x: jax.Array, scale_bias: jax.Array) -> jax.Array:
    """Layer norm over the last axis; scale_bias float32[2, dim]."""
    x = x - x.mean(-1, keepdims=True)
    x = x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6)
    return x * scale_bias[0] + scale_bias[1]


def _layer(
    x: jax.Array,
    seen: jax.Array,
    mask: jax.Array,
    w: dict[str, jax.Array],
    c: TransformerSizes,
    keep: jax.Array | None = None,
) -> jax.Array:
    """x [B, Q, D] after one layer, in which it attends to `seen` [B, L, D]; mask bool[B, Q, L]."""
    kept = (None,) * 3 if keep is None else jnp.split(keep, (c.dim, 2 * c.dim), axis=-1)
    q = norm(x, w["norms"][0]) @ w["qkv"][:, : c.dim]
    kv = norm(seen, w["norms"][0]) @ w["qkv"][:, c.dim :]
    x = x + dropout.apply(_attend(q, kv, mask, c, kept[2]) @ w["out"], c.dropout, kept[0])
    h = jax.nn.gelu(norm(x, w["norms"][1]) @ w["up"] + w["up_bias"])
    return x + dropout.apply(h @ w["down"] + w["down_bias"], c.dropout, kept[1])


def _attend(
    q: jax.Array,
    kv: jax.Array,
    mask: jax.Array,
    config: TransformerSizes,
    keep: jax.Array | None,
) -> jax.Array:
    (batch, queries, _), length = q.shape, kv.shape[1]
    q = q.reshape(batch, queries, config.heads, -1)
    k, v = jnp.split(kv.reshape(batch, length, 2 * config.heads, -1), 2, axis=2)
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=jnp.float32)
    scores = jnp.where(mask[:, None], scores * q.shape[-1] ** -0.5, -1e30)
    if keep is not None:
        keep = jnp.swapaxes(keep.reshape(batch, queries, config.heads, length), 1, 2)
    weights = dropout.apply(jax.nn.softmax(scores, -1), config.dropout, keep)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(batch, queries, -1)
