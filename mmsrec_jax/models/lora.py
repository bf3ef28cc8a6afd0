"""Low-rank adapters (LoRA, arXiv 2106.09685) beside the stacked kernels of the decoder.

An adapted Linear holds `lora_a` [layers, *in_shape, rank] and `lora_b` [layers, rank, *out_shape];
calling the model with `adapters=False` gives the untouched model (the reference policy of GRPO).
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from mmsrec_jax.models.layers import Linear, normal, precision
from mmsrec_jax.models.mllm import MLLM
from mmsrec_jax.runtime.errors import UserError

TARGETS = ("q", "k", "v", "o", "gate", "up", "down")


def add(
    model: MLLM,
    rank: int,
    alpha: float,
    targets: Sequence[str] = TARGETS,
    *,
    rngs: nnx.Rngs,
) -> None:
    """Adds adapters of `rank`, scaled by alpha / rank, to the decoder's layers, in place.

    They are float32 and start as a no-op: lora_a is random, lora_b zero.

    Raises:
      UserError: on an unknown target, a rank below 1, or adapters already present.
    """
    if unknown := set(targets) - set(TARGETS):
        raise UserError(f"lora: targets {sorted(unknown)} are none of {TARGETS}")
    if rank < 1:
        raise UserError(f"lora: rank={rank} must be positive")
    if adapted(model):
        raise UserError("lora: the model has adapters already; merge them first")
    for target in targets:
        linear: Linear = getattr(model.text.layers, target)
        axes = linear.kernel.get_metadata()["logical_axes"]
        layers, *shape = linear.kernel.shape
        inputs, outputs = shape[: linear.in_ndim], shape[linear.in_ndim :]
        std = 1 / math.sqrt(math.prod(inputs))
        linear.lora_a = nnx.LoRAParam(
            normal(rngs, (layers, *inputs, rank), std, jnp.float32),
            logical_axes=(*_factor(axes[: 1 + linear.in_ndim]), "lora_rank"),
        )
        linear.lora_b = nnx.LoRAParam(
            jnp.zeros((layers, rank, *outputs), jnp.float32),
            logical_axes=("layers", "lora_rank", *_factor(axes[1 + linear.in_ndim :])),
        )
        linear.lora_scale = alpha / rank


def _factor(axes: Sequence[str]) -> tuple[str, ...]:
    """Logical axes of a factor. Without the kernel's embed axis FSDP divides another one of it: the
    optimizer's moments of these factors are a few times their size."""
    if "embed" in axes:
        return tuple(axes)
    return tuple("lora_" + name if name in ("mlp", "head_dim") else name for name in axes)


def adapted(model: MLLM) -> dict[str, Linear]:
    """The decoder's layers that carry adapters, by target name."""
    linears = {target: getattr(model.text.layers, target) for target in TARGETS}
    return {target: linear for target, linear in linears.items() if linear.lora_a is not None}


def merge(model: MLLM) -> None:
    """Folds the adapters into the kernels and removes them, in place."""
    for linear in adapted(model).values():
        assert linear.lora_a is not None and linear.lora_b is not None, "see `adapted`"
        linear.kernel[...] = _folded(
            linear.kernel[...], linear.lora_a[...], linear.lora_b[...], linear.lora_scale
        )
        linear.lora_a, linear.lora_b = nnx.data(None), nnx.data(None)
        linear.lora_scale = 0.0


@jax.jit
def _folded(kernel: jax.Array, a: jax.Array, b: jax.Array, scale: float) -> jax.Array:
    def layer(weights: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        kernel, a, b = weights
        update = jnp.tensordot(a, b, 1, precision=precision(a.dtype))
        return (kernel.astype(jnp.float32) + scale * update).astype(kernel.dtype)

    return jax.lax.map(layer, (kernel, a, b))
