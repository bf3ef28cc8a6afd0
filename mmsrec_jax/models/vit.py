"""Plain ViT towers over images of one size: CLIP (arXiv 2103.00020), SigLIP (2303.15343), DINOv2
(2304.07193) and InternViT (2312.14238), with the projector of LLaVA or InternVL."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from mmsrec_jax.models.attention import attention, everything
from mmsrec_jax.models.config import VitConfig
from mmsrec_jax.models.layers import Block, LayerNorm, Linear, normal, scan_layers
from mmsrec_jax.models.vision import PatchEmbed
from mmsrec_jax.runtime.sharding import constrain

# InternVL's projector has torch's default, whatever the tower's is.
_PROJECTOR_NORM_EPS = 1e-5


class Embeddings(nnx.Module):
    """patch_embed, positions [count, hidden] and, where the kind has one, class_token [hidden].

    DINOv2 and InternViT store the two with leading axes of size one; we do too. The class token's
    position is the first.
    """

    def __init__(
        self, config: VitConfig, *, rngs: nnx.Rngs, param_dtype: DTypeLike, dtype: DTypeLike
    ):
        self.config, self.dtype = config, dtype
        self.patch_embed = PatchEmbed(config, rngs=rngs, param_dtype=param_dtype, dtype=dtype)
        lead = (1,) if config.interpolates else ()

        def table(*shape: int) -> nnx.Param:
            axes = (*("positions",) * (len(shape) - 1), "vision_embed")
            return nnx.Param(normal(rngs, shape, 0.02, param_dtype), logical_axes=axes)

        count = config.position_grid**2 + config.class_token
        self.positions = table(*lead, count, config.hidden)
        self.class_token = nnx.data(None)
        if config.class_token:
            self.class_token = table(*lead, *lead, config.hidden)

    def __call__(self, patches: jax.Array) -> jax.Array:
        """uint8[N, rows * columns, pixels] -> [N, tokens, hidden]."""
        config = self.config
        x = self.patch_embed(patches)
        if self.class_token is not None:
            token = self.class_token[...].astype(x.dtype)
            token = jnp.broadcast_to(token, (x.shape[0], 1, config.hidden))
            x = jnp.concatenate([token, x], axis=1)
        table = self.positions[...].astype(jnp.float32).reshape(-1, config.hidden)
        if config.grid != (config.position_grid,) * 2:
            table = self._resampled(table)
        return x + table.astype(x.dtype)

    def _resampled(self, table: jax.Array) -> jax.Array:
        own, first = (self.config.position_grid,) * 2, int(self.config.class_token)
        rows, columns = map(bicubic, self.config.grid, own)
        square = table[first:].reshape(*own, -1)
        square = jnp.einsum("ri,cj,ijd->rcd", rows, columns, square, precision="highest")
        return jnp.concatenate([table[:first], square.reshape(-1, square.shape[-1])])


def bicubic(new: int, old: int) -> np.ndarray:
    """float32[new, old]: cubic convolution (Keys 1981, a = -0.75) from `old` to `new` samples.

    Edges to edges, borders repeated, without a filter against aliasing: as torch's `interpolate`.
    """

    def near(t: np.ndarray) -> np.ndarray:
        return (1.25 * t - 2.25) * t * t + 1

    def far(t: np.ndarray) -> np.ndarray:
        return ((-0.75 * t + 3.75) * t - 6) * t + 3

    place = (np.arange(new) + 0.5) * old / new - 0.5
    low = np.floor(place)
    share = place - low
    weights = np.zeros((new, old))
    for tap, weight in enumerate((far(share + 1), near(share), near(1 - share), far(2 - share))):
        index = np.clip(low.astype(int) + tap - 1, 0, old - 1)
        np.add.at(weights, (np.arange(new), index), weight)
    return weights.astype(np.float32)


class Projector(nnx.Module):
    """MLP from the features of a slot to the decoder, after a norm where it has several patches."""

    def __init__(
        self,
        config: VitConfig,
        out: int,
        *,
        gain: float,
        rngs: nnx.Rngs,
        param_dtype: DTypeLike,
        dtype: DTypeLike,
    ):
        wide = config.hidden * config.merge**2 * len(config.feature_layers)
        common: dict[str, Any] = dict(
            layers=None, bias=config.projector_bias, rngs=rngs, param_dtype=param_dtype, dtype=dtype
        )
        self.norm = nnx.data(None)
        if config.merge > 1:
            self.norm = LayerNorm(wide, _PROJECTOR_NORM_EPS, layers=None, param_dtype=param_dtype)
        self.fc1 = Linear((wide,), (out,), ("vision_embed", "merged"), **common)
        self.fc2 = Linear((out,), (out,), ("merged", "vision_embed"), gain=gain, **common)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, slots, features] -> [N, slots, out]."""
        x = x if self.norm is None else self.norm(x)
        return self.fc2(jax.nn.gelu(self.fc1(x), approximate=False))


class Vit(nnx.Module):
    """embeddings, optional pre_norm, layers and projector; no image sees another."""

    CONNECTOR = ("projector",)  # what maps its features to the decoder's width

    def __init__(
        self,
        config: VitConfig,
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
        self.embeddings = Embeddings(config, **common)
        self.pre_norm = nnx.data(None)
        if config.pre_norm:
            self.pre_norm = LayerNorm(
                config.hidden, config.norm_eps, layers=None, param_dtype=param_dtype
            )
        self.layers = Block(
            layers=config.depth,
            hidden=config.hidden,
            heads=config.heads,
            kv_heads=config.heads,
            head_dim=config.head_dim,
            intermediate=config.intermediate,
            qkv_bias=config.qkv_bias,
            bias=True,
            qk_norm=False,
            norm_eps=config.norm_eps,
            norm="layer",
            activation=config.activation,
            gated=False,
            layer_scale=config.layer_scale,
            prefix="vision_",
            kv_axis="vision_heads",
            **common,
        )
        self.projector = Projector(config, out, gain=gain, **common)

    def __call__(
        self,
        patches: jax.Array,
        patch_hw: jax.Array,
        patch_image_ids: jax.Array,
        patch_window_ids: jax.Array,
    ) -> tuple[jax.Array, None]:
        """Patches -> features [B, images * slots, out] of the image slots; no DeepStack.

        patches uint8[B, P, channels * patch_size**2], the images of a row one after the other, each
        row by row. All images have one grid, so places and ids carry nothing here. A row has room
        for P // (rows * columns) images, and what an absent one gives is for no slot.

        Raises:
          ValueError: when P is below one image.
        """
        each = self.config.grid[0] * self.config.grid[1]
        rows, count = patches.shape[0], patches.shape[1] // each
        if count == 0:
            raise ValueError(f"{patches.shape[1]} patches a row; one image has {each}")
        patches = patches[:, : count * each].reshape(rows * count, each, -1)
        x = self._project(self.features(patches))
        return x.reshape(rows, -1, x.shape[-1]), None

    def features(self, patches: jax.Array) -> jax.Array:
        """uint8[N, rows * columns, pixels] -> [N, tokens, hidden * feature layers], all tokens."""
        x = constrain(self.embeddings(patches), "batch", "length", "features")
        if self.pre_norm is not None:
            x = self.pre_norm(x)
        rows, length, _ = x.shape
        visible = everything(rows, length, x.dtype)

        def layer(block: Block, x: jax.Array, _: None) -> jax.Array:
            q, k, v = block.project(x, None, False)
            return block.finish(x, attention(q, k, v, visible, block.axes[:2]), False)

        taken = {}
        for start, stop in itertools.pairwise(sorted({0, *self.config.feature_layers})):
            x = scan_layers(_between(self.layers, start, stop), layer, x, None, remat=self.remat)
            taken[stop] = x
        return jnp.concatenate([taken[i] for i in self.config.feature_layers], axis=-1)

    def _project(self, x: jax.Array) -> jax.Array:
        config = self.config
        if not config.keep_first:
            x = x[:, 1:]
        if config.merge > 1:
            x = unshuffle(x, config.grid, config.merge)
        return self.projector(x)


def unshuffle(x: jax.Array, grid: tuple[int, int], merge: int) -> jax.Array:
    """[N, rows * columns, D] -> [N, rows * columns / merge**2, merge**2 * D]: blocks to features.

    Row by row within a block and among blocks, as InternVL's pixel unshuffle.
    """
    rows, columns = (n // merge for n in grid)
    x = x.reshape(len(x), rows, merge, columns, merge, -1)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(len(x), rows * columns, -1)


def _between(stack: Block, start: int, stop: int) -> Block:
    graphdef, state = nnx.split(stack)
    return nnx.merge(graphdef, jax.tree.map(lambda x: x[start:stop], state))
