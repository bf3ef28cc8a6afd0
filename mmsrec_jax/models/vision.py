"""The vision towers of Qwen2-VL (arXiv 2409.12191), Qwen2.5-VL (2502.13923) and Qwen3-VL
(2511.21631) over rows of packed images."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from mmsrec_jax.models import rope
from mmsrec_jax.models.attention import attention, same_segment, within_either
from mmsrec_jax.models.config import VisionConfig, VitConfig
from mmsrec_jax.models.layers import NORMS, Block, Linear, normal, precision, scan_layers
from mmsrec_jax.runtime.sharding import constrain


class PatchEmbed(nnx.Module):
    """kernel [hidden, channels, frames, patch_size, patch_size], as Hugging Face stores it (without
    frames where `temporal_patch_size` is None), and an optional bias [hidden]."""

    def __init__(
        self,
        config: VisionConfig | VitConfig,
        *,
        rngs: nnx.Rngs,
        param_dtype: DTypeLike,
        dtype: DTypeLike,
    ):
        frames = () if config.temporal_patch_size is None else (config.temporal_patch_size,)
        shape = (config.channels, *frames, config.patch_size, config.patch_size)
        self.config, self.dtype = config, dtype
        self.kernel = nnx.Param(
            normal(rngs, (config.hidden, *shape), 1 / math.sqrt(math.prod(shape)), param_dtype),
            logical_axes=("vision_embed", *("pixels",) * len(shape)),
        )
        self.bias = nnx.data(None)
        if config.patch_bias:
            self.bias = nnx.Param(
                jnp.zeros(config.hidden, param_dtype), logical_axes=("vision_embed",)
            )

    def __call__(self, patches: jax.Array) -> jax.Array:
        """uint8[B, P, channels * patch_size**2] -> [B, P, hidden]; normalizes the pixels."""
        pixels = self.config.patch_size**2
        mean = np.repeat(np.asarray(self.config.image_mean, np.float32), pixels)
        std = np.repeat(np.asarray(self.config.image_std, np.float32), pixels)
        x = (patches.astype(jnp.float32) / 255 - mean) / std
        kernel = self.kernel[...].astype(jnp.float32)
        if self.config.temporal_patch_size is not None:
            # The frames of an image are identical, so the sum over frames is a sum of kernels.
            kernel = kernel.sum(axis=2)
        kernel = kernel.reshape(self.config.hidden, -1)
        x = jnp.einsum(
            "bpc,dc->bpd",
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            precision=precision(self.dtype),
        )
        return x if self.bias is None else x + self.bias[...].astype(self.dtype)


class PositionGrid(nnx.Module):
    """Learned positions table [side**2, hidden] of a square, resampled to the grid of an image."""

    def __init__(
        self, side: int, hidden: int, *, rngs: nnx.Rngs, param_dtype: DTypeLike, dtype: DTypeLike
    ):
        self.side, self.dtype = side, dtype
        self.table = nnx.Param(
            normal(rngs, (side**2, hidden), 0.02, param_dtype),
            logical_axes=("positions", "vision_embed"),
        )

    def __call__(self, patch_hw: jax.Array, patch_image_ids: jax.Array) -> jax.Array:
        """Bilinear, corners on corners: patch_hw int32[B, P, 2], ids int32[B, P] -> [B, P, hidden].

        The grid of an image is as large as its largest row and column say.
        """
        same = same_segment(patch_image_ids, patch_image_ids)
        last = [jnp.max(jnp.where(same, patch_hw[:, None, :, i], 0), axis=2) for i in (0, 1)]
        place = patch_hw.astype(jnp.float32) * (self.side - 1) / jnp.maximum(jnp.stack(last, -1), 1)
        low = jnp.floor(place)
        share = jnp.stack([1 - (place - low), place - low])  # [2, B, P, 2] of low and high
        low = low.astype(jnp.int32)
        index = jnp.stack([low, jnp.minimum(low + 1, self.side - 1)])
        table = constrain(self.table[...].astype(jnp.float32), "positions", "features")
        taps = [
            share[i, ..., 0, None]
            * share[j, ..., 1, None]
            * jnp.take(table, index[i, ..., 0] * self.side + index[j, ..., 1], axis=0)
            for i in (0, 1)
            for j in (0, 1)
        ]
        return sum(taps[1:], taps[0]).astype(self.dtype)


class Merger(nnx.Module):
    """Norm and an MLP over the merge * merge patches of a block: one image slot each.

    The norm is over each patch, or with `wide_norm` over the block. `layers` mergers are stacked
    unless None.
    """

    def __init__(
        self,
        config: VisionConfig,
        out: int,
        *,
        layers: int | None = None,
        wide_norm: bool = False,
        gain: float,
        rngs: nnx.Rngs,
        param_dtype: DTypeLike,
        dtype: DTypeLike,
    ):
        wide = config.hidden * config.merge**2
        common: dict[str, Any] = dict(
            layers=layers, bias=True, rngs=rngs, param_dtype=param_dtype, dtype=dtype
        )
        self.wide, self.wide_norm = wide, wide_norm
        self.norm = NORMS[config.norm](
            wide if wide_norm else config.hidden,
            config.norm_eps,
            layers=layers,
            param_dtype=param_dtype,
        )
        self.fc1 = Linear((wide,), (wide,), ("vision_embed", "merged"), **common)
        self.fc2 = Linear((wide,), (out,), ("merged", "vision_embed"), gain=gain, **common)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, P, hidden] -> [B, P / merge**2, out]."""
        blocks = (x.shape[0], -1, self.wide)
        x = self.norm(x.reshape(blocks)) if self.wide_norm else self.norm(x).reshape(blocks)
        return self.fc2(jax.nn.gelu(self.fc1(x), approximate=False))


class Vision(nnx.Module):
    """patch_embed, optional positions, layers, merger and optional deepstack mergers."""

    CONNECTOR = ("merger", "deepstack")  # what maps its features to the decoder's width

    def __init__(
        self,
        config: VisionConfig,
        out: int,
        *,
        gain: float,
        remat: str,
        rngs: nnx.Rngs,
        param_dtype: DTypeLike,
        dtype: DTypeLike,
    ):
        common: dict[str, Any] = dict(rngs=rngs, param_dtype=param_dtype, dtype=dtype)
        self.config, self.remat = config, remat
        self.patch_embed = PatchEmbed(config, **common)
        self.positions: PositionGrid | None = nnx.data(None)
        self.deepstack: Merger | None = nnx.data(None)
        if config.position_grid:
            self.positions = PositionGrid(config.position_grid, config.hidden, **common)
        self.layers = Block(
            layers=config.depth,
            hidden=config.hidden,
            heads=config.heads,
            kv_heads=config.heads,
            head_dim=config.head_dim,
            intermediate=config.intermediate,
            qkv_bias=True,
            bias=True,
            qk_norm=False,
            norm_eps=config.norm_eps,
            norm=config.norm,
            activation=config.activation,
            gated=config.gated,
            prefix="vision_",
            kv_axis="vision_heads",
            **common,
        )
        self.merger = Merger(config, out, gain=gain, **common)
        if count := len(config.deepstack_indexes):
            self.deepstack = Merger(config, out, layers=count, wide_norm=True, gain=gain, **common)

    def __call__(
        self,
        patches: jax.Array,
        patch_hw: jax.Array,
        patch_image_ids: jax.Array,
        patch_window_ids: jax.Array,
    ) -> tuple[jax.Array, jax.Array | None]:
        """Patches in merge-block order -> features [B, P / merge**2, out] of the image slots, and
        those of DeepStack [K, B, P / merge**2, out], None without.

        patches uint8[B, P, channels * patch_size**2]; patch_hw int32[B, P, 2]; ids int32[B, P].
        """
        config = self.config
        table = rope.vision(patch_hw, config.head_dim)
        x = self.patch_embed(patches)
        if self.positions is not None:
            x = x + self.positions(patch_hw, patch_image_ids)
        x = constrain(x, "batch", "length", "features")
        layers = np.arange(config.depth)
        full = np.isin(layers, config.fullatt_block_indexes) | (config.window_size is None)
        taps = len(config.deepstack_indexes)
        # Layer i is kept in place slot[i]; the place after the last one takes all other layers.
        slot = np.full(config.depth, taps)
        slot[list(config.deepstack_indexes)] = np.arange(taps)

        visible = within_either(patch_image_ids, patch_window_ids, x.dtype)

        def layer(
            block: Block,
            carry: tuple[jax.Array, jax.Array | None],
            inputs: tuple[jax.Array, jax.Array],
        ) -> tuple[jax.Array, jax.Array | None]:
            x, kept = carry
            full, slot = inputs
            q, k, v = block.project(x, table, False)
            x = block.finish(x, attention(q, k, v, visible(full), block.axes[:2]), False)
            if kept is not None:
                kept = jax.lax.dynamic_update_index_in_dim(kept, x, slot, axis=0)
            return x, kept

        kept = jnp.zeros((taps + 1, *x.shape), x.dtype) if taps else None
        inputs = jnp.asarray(full), jnp.asarray(slot)
        x, kept = scan_layers(self.layers, layer, (x, kept), inputs, remat=self.remat)
        if kept is None:
            return self.merger(x), None
        assert self.deepstack is not None, "taps have a merger each"
        graphdef, state = nnx.split(self.deepstack)
        return self.merger(x), jax.vmap(lambda s, x: nnx.merge(graphdef, s)(x))(state, kept[:taps])
