"""Memory of the stored keys and values of items, from which the cached form ranks (*ours*)."""

from typing import Any

import jax.numpy as jnp
from jax.sharding import Mesh
from jax.typing import DTypeLike

from mmsrec_jax.models.config import DecoderConfig
from mmsrec_jax.runtime import sharding
from mmsrec_jax.runtime.chips import GIB

ITEMS = 1_000_000


def item_bytes(text: DecoderConfig, tokens: int, dtype: DTypeLike) -> int:
    """Of one item: keys and values of its tokens in every layer."""
    numbers = 2 * text.layers * text.kv_heads * text.head_dim * tokens
    return numbers * jnp.dtype(dtype).itemsize


def measure(
    text: DecoderConfig, tokens: int, dtype: DTypeLike, mesh: Mesh, free: float
) -> dict[str, Any]:
    """The store of `ITEMS` items of `tokens` each, divided over the shards of a batch of `mesh`.

    free: bytes of a device beside what scoring takes.
    """
    each, shards = item_bytes(text, tokens, dtype), sharding.num_batch_shards(mesh)
    return {
        "items": ITEMS,
        "tokens": tokens,
        "bytes_an_item": each,
        "bytes": each * ITEMS,
        "bytes_a_device": each * -(-ITEMS // shards),
        "items_that_fit": max(int(free // each), 0) * shards,
    }


def table(text: DecoderConfig, found: dict[str, Any], dtype: DTypeLike) -> str:
    """Lines about `measure`."""
    return (
        f"item store: {found['bytes_an_item'] / 2**10:,.0f} KiB an item "
        f"({text.layers} layers x {text.kv_heads} kv heads x {text.head_dim} x "
        f"{found['tokens']} tokens x 2 x {jnp.dtype(dtype).itemsize} bytes)\n"
        f"  {found['items']:,} items take {found['bytes'] / GIB:,.0f} GiB, "
        f"{found['bytes_a_device'] / GIB:,.2f} GiB a device; beside what scoring takes, "
        f"{found['items_that_fit']:,} items fit"
    )
