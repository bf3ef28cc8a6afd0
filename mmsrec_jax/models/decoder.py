"""The text decoder: Llama, Qwen2, Qwen2.5 and Qwen3 by config flags."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from mmsrec_jax.models import kv_cache as cache_lib
from mmsrec_jax.models import rope
from mmsrec_jax.models.attention import Layout, attention, causal
from mmsrec_jax.models.config import DecoderConfig
from mmsrec_jax.models.layers import (
    Block,
    Linear,
    RMSNorm,
    collect_layers,
    normal,
    precision,
    scan_layers,
)
from mmsrec_jax.runtime.sharding import constrain, weight


class Embed(nnx.Module):
    """Token embedding [vocab, hidden]."""

    def __init__(
        self, config: DecoderConfig, *, rngs: nnx.Rngs, param_dtype: DTypeLike, dtype: DTypeLike
    ):
        # Tied, the table is also the head: logits start with variance one.
        std = 1 / math.sqrt(config.hidden) if config.tied else 0.5
        self.dtype = dtype
        self.embedding = nnx.Param(
            normal(rngs, (config.vocab_size, config.hidden), std, param_dtype),
            logical_axes=("vocab", "embed"),
        )

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """int32[B, L] -> [B, L, hidden] in the compute dtype.

        Every device looks up the columns that it holds, for the rows of all, and these are
        exchanged: less to send than the table.
        """
        tokens = constrain(tokens, "replica_batch", "length")
        x = jnp.take(weight(self.embedding[...], ("vocab", "embed")), tokens, axis=0)
        x = constrain(x.astype(self.dtype), "replica_batch", "length", "embed")
        return constrain(x, "batch", "length", "features")

    def table(self) -> jax.Array:
        """[vocab, hidden] in the compute dtype, gathered over FSDP as kernels are before use."""
        table = self.embedding[...].astype(self.dtype)
        return weight(table, ("vocab", "embed"), ("vocab", "features"))


class Decoder(nnx.Module):
    """embed, layers, norm and (unless tied) head. Works on embeddings, so images can enter."""

    def __init__(
        self,
        config: DecoderConfig,
        *,
        remat: str,
        rngs: nnx.Rngs,
        param_dtype: DTypeLike,
        dtype: DTypeLike,
    ):
        common: dict[str, Any] = dict(rngs=rngs, param_dtype=param_dtype, dtype=dtype)
        self.config, self.remat, self.dtype = config, remat, dtype
        self.embed = Embed(config, **common)
        self.layers = Block(
            layers=config.layers,
            hidden=config.hidden,
            heads=config.heads,
            kv_heads=config.kv_heads,
            head_dim=config.head_dim,
            intermediate=config.intermediate,
            qkv_bias=config.qkv_bias,
            bias=False,
            qk_norm=config.qk_norm,
            norm_eps=config.norm_eps,
            prefix="",
            kv_axis="kv_heads",
            **common,
        )
        self.norm = RMSNorm(config.hidden, config.norm_eps, layers=None, param_dtype=param_dtype)
        head = (config.hidden,), (config.vocab_size,), ("embed", "vocab")
        self.head = nnx.data(
            None if config.tied else Linear(*head, layers=None, bias=False, **common)
        )

    def __call__(
        self,
        x: jax.Array,
        positions: jax.Array,
        segment_ids: jax.Array,
        suffix_ids: jax.Array | None,
        *,
        deepstack: jax.Array | None = None,
        cache: cache_lib.KVCache | None,
        adapters: bool,
    ) -> tuple[jax.Array, cache_lib.KVCache | None]:
        """Embeddings x [B, L, hidden] -> final-normed hidden states, and the cache after them.

        positions int32[B, 3, L]; segment_ids, suffix_ids int32[B, L], None without suffixes (on TPU
        the cheaper way). deepstack [K, B, L, hidden] is added to the outputs of the first K layers
        (DeepStack, arXiv 2406.04334).
        """
        table = rope.text(positions, self.config)
        slots = jnp.broadcast_to(jnp.arange(x.shape[1]), segment_ids.shape)
        indices = jnp.arange(self.config.layers)

        if cache is None:
            visible = causal(Layout(segment_ids, suffix_ids, slots), None, x.dtype)

            def layer(block: Block, x: jax.Array, index: jax.Array) -> jax.Array:
                q, k, v = block.project(x, table, adapters)
                x = block.finish(x, attention(q, k, v, visible), adapters)
                return _add_features(x, deepstack, index)

            x = scan_layers(self.layers, layer, x, indices, remat=self.remat)
            return self.norm(x), None

        if suffix_ids is None:
            suffix_ids = jnp.zeros_like(segment_ids)
        start = cache.length
        cache = cache_lib.extend(cache, segment_ids, suffix_ids)
        key_slots = jnp.broadcast_to(
            jnp.arange(cache.segment_ids.shape[1]), cache.segment_ids.shape
        )
        visible = causal(
            Layout(segment_ids, suffix_ids, start + slots),
            Layout(cache.segment_ids, cache.suffix_ids, key_slots),
            cache.k.dtype,
        )

        def cached_layer(
            block: Block, carry: tuple[jax.Array, jax.Array, jax.Array], index: jax.Array
        ) -> tuple[jax.Array, jax.Array, jax.Array]:
            x, all_k, all_v = carry
            q, k, v = block.project(x, table, adapters)
            all_k, k = cache_lib.write(all_k, index, start, k)
            all_v, v = cache_lib.write(all_v, index, start, v)
            x = block.finish(x, attention(q, k, v, visible), adapters)
            return _add_features(x, deepstack, index), all_k, all_v

        x, k, v = scan_layers(
            self.layers, cached_layer, (x, cache.k, cache.v), indices, remat=self.remat
        )
        return self.norm(x), dataclasses.replace(cache, k=k, v=v)

    def keys_values(
        self,
        x: jax.Array,
        positions: jax.Array,
        segment_ids: jax.Array,
        *,
        deepstack: jax.Array | None,
        adapters: bool,
    ) -> tuple[jax.Array, jax.Array]:
        """Keys and values of every layer, [layers, B, L, kv_heads, head_dim] each, rotated.

        Arguments as for a call; of the last layer nothing else is computed.
        """
        table, last = rope.text(positions, self.config), self.config.layers - 1
        slots = jnp.broadcast_to(jnp.arange(x.shape[1]), segment_ids.shape)
        visible = causal(Layout(segment_ids, None, slots), None, x.dtype)

        def layer(
            block: Block, x: jax.Array, index: jax.Array
        ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
            q, k, v = block.project(x, table, adapters)

            def finish() -> jax.Array:
                after = block.finish(x, attention(q, k, v, visible), adapters)
                return _add_features(after, deepstack, index)

            return jax.lax.cond(index < last, finish, lambda: x), (k, v)

        indices = jnp.arange(self.config.layers)
        return collect_layers(self.layers, layer, x, indices, remat=self.remat)[1]

    def head_kernel(self) -> jax.Array:
        """[hidden, vocab] in the compute dtype, gathered over FSDP."""
        if self.head is None:
            return self.embed.table().T
        kernel = self.head.kernel[...].astype(self.dtype)
        return weight(kernel, ("embed", "vocab"), ("features", "vocab"))


def _add_features(x: jax.Array, deepstack: jax.Array | None, layer: jax.Array) -> jax.Array:
    # Picked inside the scan: inputs to it, padded to all layers, would be as many hidden states.
    if deepstack is None:
        return x
    count = deepstack.shape[0]
    features = jax.lax.dynamic_index_in_dim(deepstack, jnp.minimum(layer, count - 1), 0, False)
    return x + jnp.where(layer < count, features, 0)


def unembed(hidden: jax.Array, kernel: jax.Array) -> jax.Array:
    """float32 logits [..., vocab] of hidden [..., hidden] and `Decoder.head_kernel()`."""
    return jax.lax.dot_general(
        hidden.astype(kernel.dtype),
        kernel,
        (((hidden.ndim - 1,), (0,)), ((), ())),
        precision=precision(kernel.dtype),
        preferred_element_type=jnp.float32,
    )
