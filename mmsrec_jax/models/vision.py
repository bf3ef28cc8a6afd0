"""The vision tower of Qwen2.5-VL (arXiv 2502.13923, section 2.1.1) over rows of packed images."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mmsrec_jax.models import rope
from mmsrec_jax.models.attention import attention, same_segment
from mmsrec_jax.models.config import VisionConfig
from mmsrec_jax.models.layers import Block, Linear, RMSNorm, normal, precision, scan_layers
from mmsrec_jax.sharding import constrain


class PatchEmbed(nnx.Module):
    """kernel [hidden, channels, frames, patch_size, patch_size], as Hugging Face stores it."""

    def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs, param_dtype, dtype):
        shape = (config.channels, config.temporal_patch_size, config.patch_size, config.patch_size)
        self.config, self.dtype = config, dtype
        self.kernel = nnx.Param(
            normal(rngs, (config.hidden, *shape), 1 / math.sqrt(math.prod(shape)), param_dtype),
            logical_axes=("vision_embed", "pixels", "pixels", "pixels", "pixels"),
        )

    def __call__(self, patches: jax.Array) -> jax.Array:
        """uint8[B, P, channels * patch_size**2] -> [B, P, hidden]; normalises the pixels."""
        pixels = self.config.patch_size**2
        mean = np.repeat(np.asarray(self.config.image_mean, np.float32), pixels)
        std = np.repeat(np.asarray(self.config.image_std, np.float32), pixels)
        x = (patches.astype(jnp.float32) / 255 - mean) / std
        # The frames of an image are identical, so the sum over frames is a sum of kernels.
        kernel = self.kernel[...].astype(jnp.float32).sum(axis=2).reshape(self.config.hidden, -1)
        return jnp.einsum(
            "bpc,dc->bpd",
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            precision=precision(self.dtype),
        )


class Merger(nnx.Module):
    """Norm, then an MLP over the merge * merge patches of a block: one image slot each."""

    def __init__(
        self, config: VisionConfig, out: int, *, gain: float, rngs: nnx.Rngs, param_dtype, dtype
    ):
        wide = config.hidden * config.merge**2
        common = dict(layers=None, bias=True, rngs=rngs, param_dtype=param_dtype, dtype=dtype)
        self.wide = wide
        self.norm = RMSNorm(config.hidden, config.norm_eps, layers=None, param_dtype=param_dtype)
        self.fc1 = Linear((wide,), (wide,), ("vision_embed", "merged"), **common)
        self.fc2 = Linear((wide,), (out,), ("merged", "vision_embed"), gain=gain, **common)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.norm(x).reshape(x.shape[0], -1, self.wide)
        return self.fc2(jax.nn.gelu(self.fc1(x), approximate=False))


class Vision(nnx.Module):
    """patch_embed, layers and merger. Window attention except in `fullatt_block_indexes`."""

    def __init__(
        self,
        config: VisionConfig,
        out: int,
        *,
        gain: float,
        remat: str,
        rngs: nnx.Rngs,
        param_dtype,
        dtype,
    ):
        common = dict(rngs=rngs, param_dtype=param_dtype, dtype=dtype)
        self.config, self.remat = config, remat
        self.patch_embed = PatchEmbed(config, **common)
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
            prefix="vision_",
            kv_axis="vision_heads",
            **common,
        )
        self.merger = Merger(config, out, gain=gain, **common)

    def __call__(
        self,
        patches: jax.Array,
        patch_hw: jax.Array,
        patch_image_ids: jax.Array,
        patch_window_ids: jax.Array,
    ) -> jax.Array:
        """Patches in merge-block order -> features [B, P / merge**2, out] of the image slots.

        patches uint8[B, P, channels * patch_size**2]; patch_hw int32[B, P, 2]; ids int32[B, P].
        """
        table = rope.vision(patch_hw, self.config.head_dim)
        x = constrain(self.patch_embed(patches), "batch", "length", "features")
        full = np.isin(np.arange(self.config.depth), self.config.fullatt_block_indexes)

        def layer(block, x, full):
            ids = jnp.where(full, patch_image_ids, patch_window_ids)
            q, k, v = block.project(x, table, False)
            return block.finish(x, attention(q, k, v, same_segment(ids, ids)), False)

        return self.merger(scan_layers(self.layers, layer, x, jnp.asarray(full), remat=self.remat))
