"""Blocks shared by the decoder and the vision tower; layers are stacked on axis 0 and scanned."""

import contextvars
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike

from mmsrec_jax.models import rope as rope_lib
from mmsrec_jax.runtime.sharding import constrain, platform, weight

Carry = TypeVar("Carry")
_KEPT = "kept"  # names what remat keeps
_remat: contextvars.ContextVar[str] = contextvars.ContextVar("remat", default="full")


def precision(dtype: DTypeLike) -> jax.lax.Precision | None:
    """float32 matmuls are exact on every platform (TPU would round to bf16); others are default."""
    return jax.lax.Precision.HIGHEST if dtype == jnp.float32 else None


_standard_normal = jax.jit(jax.random.normal, static_argnums=1)


def normal(rngs: nnx.Rngs, shape: Sequence[int], std: float, dtype: DTypeLike) -> jax.Array:
    """Random values of `shape`, cut from a power of two of them: few generators to compile."""
    size = math.prod(shape)
    values = _standard_normal(rngs.params(), (1 << (size - 1).bit_length(),))
    return (values[:size].reshape(shape) * std).astype(dtype)


class Linear(nnx.Module):
    """x [..., *in_shape] -> [..., *out_shape], with an optional bias and optional LoRA factors.

    Parameters, with a leading axis of `layers` unless None: kernel [*in_shape, *out_shape],
    bias [*out_shape], lora_a [*in_shape, rank], lora_b [rank, *out_shape].
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        out_shape: Sequence[int],
        axes: Sequence[str],
        *,
        layers: int | None,
        bias: bool,
        gain: float = 1.0,
        rngs: nnx.Rngs,
        param_dtype: DTypeLike,
        dtype: DTypeLike,
    ):
        stack, stack_axes = ((), ()) if layers is None else ((layers,), ("layers",))
        self.in_ndim, self.dtype = len(in_shape), dtype
        self.kernel = nnx.Param(
            normal(
                rngs,
                (*stack, *in_shape, *out_shape),
                gain / math.sqrt(math.prod(in_shape)),
                param_dtype,
            ),
            logical_axes=(*stack_axes, *axes),
            in_ndim=self.in_ndim,
        )
        self.bias = nnx.data(None)
        if bias:
            self.bias = nnx.Param(
                jnp.zeros((*stack, *out_shape), param_dtype),
                logical_axes=(*stack_axes, *axes[self.in_ndim :]),
            )
        self.lora_a: nnx.LoRAParam | None = nnx.data(None)
        self.lora_b: nnx.LoRAParam | None = nnx.data(None)
        self.lora_scale = 0.0

    def __call__(self, x: jax.Array, *, adapters: bool = False) -> jax.Array:
        bias = 0 if self.bias is None else self.bias[...].astype(self.dtype)
        if not adapters or self.lora_a is None or self.lora_b is None:
            return self._dot(x, self.kernel, self.in_ndim) + bias
        # In this order what is small is computed first, here and in the backward pass, and large
        # products are added to it: they do so at no cost. The small factor is scaled, since its
        # product is as large as that of the kernel.
        low = kept(self._dot(x, self.lora_a, self.in_ndim))
        update = self._dot(low, self.lora_b, 1, self.lora_scale) + bias
        return self._dot(x, self.kernel, self.in_ndim) + update

    def _dot(
        self, x: jax.Array, param: nnx.Param, contracted: int, scale: float | None = None
    ) -> jax.Array:
        over = (range(x.ndim - contracted, x.ndim), range(contracted))
        kernel = param[...] if scale is None else param[...] * scale
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        # Inside a scan the parameter has lost its axis of layers, and kept its name.
        kernel = weight(kernel, param.get_metadata()["logical_axes"][-kernel.ndim :])
        return jax.lax.dot_general(x, kernel, (over, ((), ())), precision=precision(self.dtype))


class RMSNorm(nnx.Module):
    """Root-mean-square norm over the last axis, in float32; scale [size] or [layers, size]."""

    def __init__(self, size: int, eps: float, *, layers: int | None, param_dtype: DTypeLike):
        shape, axes = (
            ((size,), ("norm",)) if layers is None else ((layers, size), ("layers", "norm"))
        )
        self.eps = eps
        self.scale = nnx.Param(jnp.ones(shape, param_dtype), logical_axes=axes)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.eps)
        return (y * self.scale[...].astype(jnp.float32)).astype(x.dtype)


class LayerNorm(nnx.Module):
    """Layer norm over the last axis, in float32; scale and bias [size] or [layers, size]."""

    def __init__(self, size: int, eps: float, *, layers: int | None, param_dtype: DTypeLike):
        shape, axes = (
            ((size,), ("norm",)) if layers is None else ((layers, size), ("layers", "norm"))
        )
        self.eps = eps
        self.scale = nnx.Param(jnp.ones(shape, param_dtype), logical_axes=axes)
        self.bias = nnx.Param(jnp.zeros(shape, param_dtype), logical_axes=axes)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = x.astype(jnp.float32)
        y = y - jnp.mean(y, axis=-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.eps)
        y = y * self.scale[...].astype(jnp.float32) + self.bias[...].astype(jnp.float32)
        return y.astype(x.dtype)


Norm = RMSNorm | LayerNorm
NORMS: dict[str, type[RMSNorm] | type[LayerNorm]] = {"rms": RMSNorm, "layer": LayerNorm}

_ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "silu": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_pytorch_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
}


class Block(nnx.Module):
    """A stack of pre-norm transformer layers: attention with rope, then an MLP.

    The MLP is down(activation(gate(x)) * up(x)), or down(activation(up(x))) when not gated.

    Split in two so that the caller owns attention (and its cache): `project`, then `finish`.
    `prefix` selects the rows of the sharding table ("" for the decoder, "vision_"). `layer_scale`
    multiplies what attention and the MLP add, feature by feature.
    """

    def __init__(
        self,
        *,
        layers: int,
        hidden: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
        intermediate: int,
        qkv_bias: bool,
        bias: bool,
        qk_norm: bool,
        norm_eps: float,
        norm: str = "rms",
        activation: str = "silu",
        gated: bool = True,
        layer_scale: bool = False,
        prefix: str,
        kv_axis: str,
        rngs: nnx.Rngs,
        param_dtype: DTypeLike,
        dtype: DTypeLike,
    ):
        embed, head, mlp = (prefix + name for name in ("embed", "heads", "mlp"))
        residual = 1 / math.sqrt(2 * layers)  # keeps the residual stream at variance one
        common: dict[str, Any] = dict(
            layers=layers, rngs=rngs, param_dtype=param_dtype, dtype=dtype
        )

        def project(n: int, axis: str) -> Linear:
            axes = (embed, axis, "head_dim")
            return Linear((hidden,), (n, head_dim), axes, bias=qkv_bias, **common)

        def make_norm(size: int) -> RMSNorm | LayerNorm:
            return NORMS[norm](size, norm_eps, layers=layers, param_dtype=param_dtype)

        self.attn_norm, self.mlp_norm = make_norm(hidden), make_norm(hidden)
        self.q, self.k, self.v = (
            project(heads, head),
            project(kv_heads, kv_axis),
            project(kv_heads, kv_axis),
        )
        self.q_norm: Norm | None = nnx.data(make_norm(head_dim) if qk_norm else None)
        self.k_norm: Norm | None = nnx.data(make_norm(head_dim) if qk_norm else None)
        self.o = Linear(
            (heads, head_dim),
            (hidden,),
            (head, "head_dim", embed),
            bias=bias,
            gain=residual,
            **common,
        )
        self.activation = _ACTIVATIONS[activation]
        self.gate: Linear | None = nnx.data(None)
        if gated:
            self.gate = Linear((hidden,), (intermediate,), (embed, mlp), bias=bias, **common)
        self.up = Linear((hidden,), (intermediate,), (embed, mlp), bias=bias, **common)
        self.down = Linear(
            (intermediate,), (hidden,), (mlp, embed), bias=bias, gain=residual, **common
        )
        self.attn_scale, self.mlp_scale = nnx.data(None), nnx.data(None)
        if layer_scale:
            self.attn_scale, self.mlp_scale = (
                nnx.Param(jnp.ones((layers, hidden), param_dtype), logical_axes=("layers", "norm"))
                for _ in range(2)
            )
        self.axes = (head, kv_axis, mlp)

    def project(
        self, x: jax.Array, rope: rope_lib.Rope | None, adapters: bool
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """x [B, L, hidden] -> q [B, L, heads, head_dim], k and v [B, L, kv_heads, head_dim].

        q and k are rotated unless rope is None.
        """
        y = self.attn_norm(x)
        q, k, v = (kept(linear(y, adapters=adapters)) for linear in (self.q, self.k, self.v))
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if rope is not None:
            q, k = rope_lib.apply(q, rope), rope_lib.apply(k, rope)
        heads, kv_heads, _ = self.axes
        q = constrain(q, "batch", "length", heads, "head_dim")
        k, v = (constrain(a, "batch", "length", kv_heads, "head_dim") for a in (k, v))
        return q, k, v

    def finish(self, x: jax.Array, attended: jax.Array, adapters: bool) -> jax.Array:
        """Adds to x [B, L, hidden] the attention's output [B, L, heads, head_dim], then the MLP."""
        x = kept(x + _scaled(self.o(attended, adapters=adapters), self.attn_scale))
        y = self.mlp_norm(x)
        up = kept(self.up(y, adapters=adapters))
        if self.gate is None:
            y = self.activation(up)
        else:
            y = self.activation(kept(self.gate(y, adapters=adapters))) * up
        y = constrain(y, "batch", "length", self.axes[2])
        return constrain(
            x + _scaled(self.down(y, adapters=adapters), self.mlp_scale),
            "batch",
            "length",
            "features",
        )


def _scaled(x: jax.Array, scale: nnx.Param | None) -> jax.Array:
    return x if scale is None else checkpoint_name(x, _KEPT) * scale[...].astype(x.dtype)


def kept(x: jax.Array) -> jax.Array:
    """x, kept for the backward pass by the remat policy "dots"."""
    apart = platform() == "gpu" and _remat.get() != "full"
    return _kept_apart(x) if apart else checkpoint_name(x, _KEPT)


@jax.custom_jvp
def _kept_apart(x: jax.Array) -> jax.Array:
    return x


@_kept_apart.defjvp
def _kept_apart_jvp(
    primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    # XLA for GPUs would compute a product twice that is both used and kept in the stack of all
    # layers, once straight into the stack. Where nothing is differentiated there is no barrier.
    return checkpoint_name(jax.lax.optimization_barrier(primals[0]), _KEPT), tangents[0]


_CHECKPOINT: dict[str, Callable[[Callable], Callable]] = {
    "none": lambda step: step,
    "full": lambda step: jax.checkpoint(step, prevent_cse=False),
    "dots": lambda step: jax.checkpoint(
        step,
        prevent_cse=False,
        # By name: of an adapted map the sum is kept, and not the products of kernel and adapter.
        policy=jax.checkpoint_policies.save_only_these_names(_KEPT),
    ),
}


def scan_layers(
    stack: nnx.Module, body: Callable[..., Carry], carry: Carry, xs: Any, *, remat: str
) -> Carry:
    """carry = body(layer, carry, x) over `stack`'s layers: axis 0 of its parameters and of xs."""

    def without_output(layer: Any, carry: Carry, x: Any) -> tuple[Carry, None]:
        return body(layer, carry, x), None

    return collect_layers(stack, without_output, carry, xs, remat=remat)[0]


def collect_layers(
    stack: nnx.Module, body: Callable[..., tuple[Carry, Any]], carry: Carry, xs: Any, *, remat: str
) -> tuple[Carry, Any]:
    """`scan_layers` with (carry, y) = body(layer, carry, x): also returns the y, stacked."""
    graphdef, state = nnx.split(stack)

    def step(carry: Carry, inputs: tuple[nnx.State, Any]) -> tuple[Carry, Any]:
        layer, x = inputs
        token = _remat.set(remat)
        try:
            return body(nnx.merge(graphdef, layer), carry, x)
        finally:
            _remat.reset(token)

    return jax.lax.scan(_CHECKPOINT[remat](step), carry, (state, xs))
