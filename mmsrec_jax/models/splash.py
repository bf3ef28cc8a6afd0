"""Splash attention, JAX's flash attention kernel for TPU (FlashAttention-2, arXiv 2307.08691).

The kernel knows a static mask (causal or full) and one segment id a token. That is all a packed row
without suffixes needs. Suffixes are not: a token of a suffix sees two groups, prefix and suffix,
and ids are only compared for equality. They take the kernel's other form, a mask of booleans, one
per pair of tokens but not per head, from which blocks that nobody sees are skipped.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel as kernel_lib,
)
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_mask as mask_lib,
)

BLOCKS = (512, 256, 128)
SHORTEST = BLOCKS[-1]  # the kernel's smallest block


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Segments:
    """Self-attention within segments int32[B, L] (padding is one more), causal or not."""

    ids: jax.Array
    causal: bool = dataclasses.field(metadata={"static": True})


class Pairs(NamedTuple):
    """Kernel inputs made of a mask bool[B, T, S]: every leaf has the batch first."""

    infos: tuple


def pairs(mask: jax.Array) -> Pairs:
    """From bool[B, T, S]. Made once per forward pass, outside of the layers."""
    _, queries, keys = mask.shape
    mask = jnp.pad(mask, [(0, 0), (0, _missing(queries)), (0, _missing(keys))])
    # The kernel divides by the sum of the weights, also for queries that see nothing.
    blind = ~jnp.any(mask, axis=2)
    mask = mask.at[:, :, 0].set(mask[:, :, 0] | blind)
    sizes = _block_sizes(queries, keys)

    def infos(mask: jax.Array) -> tuple:
        made = kernel_lib.make_splash_mha(
            mask[None], block_sizes=sizes, head_shards=1, q_seq_shards=1
        )
        infos = made.fwd_mask_info, made.dq_mask_info, made.dkv_mask_info
        # A flag for sharding only; as an array of a traced batch it could not be read.
        return tuple(info._replace(is_dynamic_mask=None) for info in infos)

    return Pairs(jax.vmap(infos)(mask))


def attention(
    q: jax.Array, k: jax.Array, v: jax.Array, visible: Segments | Pairs, *, interpret: bool
) -> jax.Array:
    """As `models.attention.attention`, on one device; lengths are padded to blocks.

    interpret: run the kernel as plain JAX, on any platform.
    """
    length = q.shape[1]
    if isinstance(visible, Segments):
        row, shared = _segments_row(visible.causal, interpret), visible.ids
    else:
        row, shared = _pairs_row(_block_sizes(length, k.shape[1]), interpret), visible.infos
    q = (q * q.shape[-1] ** -0.5).astype(k.dtype)
    # Batch, head, length, head_dim is the kernel's order.
    q, k, v = (
        jnp.pad(x, [(0, 0), (0, _missing(x.shape[1])), (0, 0), (0, 0)]).swapaxes(1, 2)
        for x in (q, k, v)
    )
    return jax.vmap(row)(q, k, v, shared).swapaxes(1, 2)[:, :length]


def _segments_row(causal: bool, interpret: bool) -> Callable[..., jax.Array]:
    def row(q: jax.Array, k: jax.Array, v: jax.Array, ids: jax.Array) -> jax.Array:
        heads, length, _ = q.shape
        mask = (mask_lib.CausalMask if causal else mask_lib.FullMask)((length, length))
        kernel = kernel_lib.make_splash_mha(
            mask_lib.MultiHeadMask([mask] * heads),
            block_sizes=_block_sizes(len(ids), len(ids)),
            head_shards=1,
            q_seq_shards=1,
            interpret=interpret,
        )
        ids = jnp.pad(ids, (0, length - len(ids)))
        return kernel(q, k, v, segment_ids=kernel_lib.SegmentIds(ids, ids))

    return row


def _pairs_row(sizes: kernel_lib.BlockSizes, interpret: bool) -> Callable[..., jax.Array]:
    def row(q: jax.Array, k: jax.Array, v: jax.Array, infos: tuple) -> jax.Array:
        kernel = kernel_lib.SplashAttentionKernel(
            *infos,
            block_sizes=sizes,
            is_mqa=False,
            save_residuals=False,
            mask_value=kernel_lib.DEFAULT_MASK_VALUE,
            attn_logits_soft_cap=None,
            residual_checkpoint_name=None,
            mask_function=None,
            interpret=interpret,
        )
        return kernel(q, k, v)

    return row


def _block(length: int) -> int:
    """The largest block that pads a row by at most an eighth, else the smallest."""
    fits = (block for block in BLOCKS if -length % block <= length // 8)
    return next(fits, BLOCKS[-1])


def _missing(length: int) -> int:
    return -length % _block(length)


def _block_sizes(queries: int, keys: int) -> kernel_lib.BlockSizes:
    q, kv = _block(queries), _block(keys)
    return kernel_lib.BlockSizes(
        block_q=q,
        block_kv=kv,
        block_q_dkv=q,
        block_kv_dkv=kv,
        block_q_dq=q,
        block_kv_dq=kv,
    )
