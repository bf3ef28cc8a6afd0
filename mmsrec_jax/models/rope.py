"""Rotary position embeddings: 1-D, M-RoPE in chunks (Qwen2-VL, Qwen2.5-VL) or interleaved
(Qwen3-VL), and 2-D for vision.

Tables are computed once per forward pass, in float32, and enter the layer scan as constants.
"""

import jax
import jax.numpy as jnp
import numpy as np

from mmsrec_jax.models.config import DecoderConfig, RopeScaling

Rope = tuple[jax.Array, jax.Array]  # cos, sin: float32[B, L, 1, head_dim / 2]


def _frequencies(dim: int, theta: float) -> np.ndarray:
    exponents = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    return (np.float32(1) / np.float32(theta) ** exponents).astype(np.float32)


def _scaled(frequencies: np.ndarray, scaling: RopeScaling) -> np.ndarray:
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    turns = scaling.original_length * frequencies / (2 * np.pi)
    kept = np.clip((turns - low) / (high - low), 0, 1)
    return (frequencies * (kept + (1 - kept) / scaling.factor)).astype(np.float32)


def _table(angles: jax.Array) -> Rope:
    return jnp.cos(angles)[:, :, None], jnp.sin(angles)[:, :, None]


def text(positions: jax.Array, config: DecoderConfig) -> Rope:
    """Table for positions int32[B, 3, L] (time, row, column); kind "1d" reads the first only."""
    frequencies = _frequencies(config.head_dim, config.rope_theta)
    if config.rope_scaling is not None:
        frequencies = _scaled(frequencies, config.rope_scaling)
    positions = jnp.swapaxes(positions, 1, 2).astype(jnp.float32)
    return _table(positions[:, :, _axes(config)] * frequencies)


def _axes(config: DecoderConfig) -> np.ndarray:
    """int[head_dim / 2]: which of time (0), row (1) and column (2) each frequency turns with."""
    if config.rope_kind == "mrope":
        return np.repeat(np.arange(3), config.mrope_section)
    axes = np.zeros(config.head_dim // 2, np.int64)
    if config.rope_kind == "mrope_interleaved":  # t r c t r c ..., then t where r and c are spent
        for axis in (1, 2):
            axes[axis : 3 * config.mrope_section[axis] : 3] = axis
    return axes


def vision(patch_hw: jax.Array, head_dim: int) -> Rope:
    """Table for patch_hw int32[B, P, 2] (row, column), half of the frequencies for each."""
    frequencies = _frequencies(head_dim // 2, 1e4)
    angles = patch_hw.astype(jnp.float32)[..., None] * frequencies
    return _table(angles.reshape(*patch_hw.shape[:2], head_dim // 2))


def apply(x: jax.Array, rope: Rope) -> jax.Array:
    """Rotates x [B, L, heads, head_dim] in float32; the pairs are (i, i + head_dim / 2)."""
    cos, sin = rope
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)
