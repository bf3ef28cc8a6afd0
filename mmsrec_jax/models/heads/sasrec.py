"""SASRec (Kang & McAuley 2018); with full-softmax cross-entropy as in gSASRec and RecTools.

Pre-norm causal transformer over item ids, learned positions, tied item embedding. Positions count
from the start of the window (*ours*; the original pads on the left): the embedding of a prefix does
not depend on what comes after it, nor on whether it was computed alone or with the whole sequence.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from mmsrec_jax.models.heads.base import HeadConfig, HeadModule, Rows


@dataclass(frozen=True)
class SASRecConfig(HeadConfig):
    """Transformer sizes."""

    dim: int = 64
    layers: int = 2
    heads: int = 2
    mlp_dim: int = 256
    dropout: float = 0.2


class SASRec(HeadModule):
    """Sequence encoder; item i of the catalogue lives in row i + 1, row 0 is padding."""

    NO_DECAY = ("norms", "final_norm", "up_bias", "down_bias")

    def __init__(self, config: SASRecConfig, *, rngs: nnx.Rngs):
        super().__init__(config)
        c = config
        normal = nnx.initializers.normal(0.02)
        self.items = nnx.Param(normal(rngs.params(), (c.num_items + 1, c.dim)))
        self.positions = nnx.Param(normal(rngs.params(), (c.length, c.dim)))
        kernel = nnx.initializers.xavier_uniform(batch_axis=0)
        self.qkv = nnx.Param(kernel(rngs.params(), (c.layers, c.dim, 3 * c.dim)))
        self.out = nnx.Param(kernel(rngs.params(), (c.layers, c.dim, c.dim)))
        self.up = nnx.Param(kernel(rngs.params(), (c.layers, c.dim, c.mlp_dim)))
        self.up_bias = nnx.Param(jnp.zeros((c.layers, c.mlp_dim)))
        self.down = nnx.Param(kernel(rngs.params(), (c.layers, c.mlp_dim, c.dim)))
        self.down_bias = nnx.Param(jnp.zeros((c.layers, c.dim)))
        self.norms = nnx.Param(_identity_norms((c.layers, 2), c.dim))
        self.final_norm = nnx.Param(_identity_norms((), c.dim))

    def __call__(self, rows: Rows, key: jax.Array | None = None) -> jax.Array:
        """States float32[B, L, D]; [b, t] has seen tokens <= t of its own segment."""
        c = self.config
        steps = jnp.arange(rows.ids.shape[1])
        mask = rows.segments[:, :, None] == rows.segments[:, None, :]
        mask &= steps[:, None] >= steps[None, :]
        x = self.items[...][rows.ids] * c.dim**0.5 + self.positions[...][rows.positions]
        keep = None
        if key is not None and c.dropout > 0:
            x, keep = self._dropout_masks(x, key)

        def layer(x, scanned):
            w, keep = scanned
            kept = (None,) * 3 if keep is None else jnp.split(keep, (c.dim, 2 * c.dim), axis=-1)
            mixed = _attend(_norm(x, w["norms"][0]) @ w["qkv"], mask, c, kept[2]) @ w["out"]
            x = x + _dropout(mixed, c.dropout, kept[0])
            h = jax.nn.gelu(_norm(x, w["norms"][1]) @ w["up"] + w["up_bias"])
            x = x + _dropout(h @ w["down"] + w["down_bias"], c.dropout, kept[1])
            return x, None

        names = ("qkv", "out", "up", "up_bias", "down", "down_bias", "norms")
        x, _ = jax.lax.scan(layer, x, ({name: getattr(self, name)[...] for name in names}, keep))
        return _norm(x, self.final_norm[...])

    def _dropout_masks(self, x, key):
        """x after dropout; per layer bool[B, L, 2 D + heads L]: two residual masks, attention.

        One draw for all of them: every use of the generator costs seconds of compilation.
        """
        c = self.config
        batch, length, dim = x.shape
        width = 2 * dim + c.heads * length
        bits = jax.random.bits(key, (batch, length, dim + c.layers * width), jnp.uint16)
        keep = bits >= round(c.dropout * 2**16)
        layers = keep[..., dim:].reshape(batch, length, c.layers, width)
        return _dropout(x, c.dropout, keep[..., :dim]), jnp.moveaxis(layers, 2, 0)

    def table(self) -> jax.Array:
        """The input embeddings, tied: float32[items, D]."""
        return self.items[...][1:]


def _attend(qkv, mask, config, keep):
    batch, length, _ = qkv.shape
    q, k, v = jnp.split(qkv.reshape(batch, length, 3 * config.heads, -1), 3, axis=2)
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=jnp.float32)
    scores = jnp.where(mask[:, None], scores * q.shape[-1] ** -0.5, -1e30)
    if keep is not None:
        keep = jnp.swapaxes(keep.reshape(batch, length, config.heads, length), 1, 2)
    weights = _dropout(jax.nn.softmax(scores, -1), config.dropout, keep)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(batch, length, -1)


def _identity_norms(shape, dim):
    """Scale and bias of layer norms, stacked: float32[*shape, 2, dim]."""
    return jnp.broadcast_to(jnp.stack([jnp.ones(dim), jnp.zeros(dim)]), (*shape, 2, dim))


def _norm(x, scale_bias):
    x = x - x.mean(-1, keepdims=True)
    x = x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6)
    return x * scale_bias[0] + scale_bias[1]


def _dropout(x, rate, keep):
    return x if keep is None else jnp.where(keep, x / (1 - rate), 0)
