"""The multimodal language model: vision features fill the image slots of a decoder."""

import math
from typing import Any, overload

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from mmsrec_jax.models.batch import Batch
from mmsrec_jax.models.batch_tree import check_shapes
from mmsrec_jax.models.config import MLLMConfig, VisionConfig, VitConfig
from mmsrec_jax.models.decoder import Decoder, unembed
from mmsrec_jax.models.kv_cache import KVCache
from mmsrec_jax.models.vision import Vision
from mmsrec_jax.models.vit import Vit
from mmsrec_jax.runtime.sharding import constrain

# The vision tower of each kind of vision config; `CONNECTOR` names the parts of it that map its
# features to the decoder's width.
TOWERS: dict[type, Any] = {VisionConfig: Vision, VitConfig: Vit}


class MLLM(nnx.Module):
    """text: Decoder; vision: one of `TOWERS` or None. Computes in `dtype`, holds `param_dtype`."""

    processor: Any  # of images or None; hf.loading puts the one of the directory here

    def __init__(
        self,
        config: MLLMConfig,
        *,
        rngs: nnx.Rngs,
        param_dtype: DTypeLike = "float32",
        dtype: DTypeLike = "float32",
    ):
        self.config, self.dtype = config, jnp.dtype(dtype)
        common: dict[str, Any] = dict(
            remat=config.remat, rngs=rngs, param_dtype=jnp.dtype(param_dtype), dtype=self.dtype
        )
        self.text = Decoder(config.text, **common)
        self.vision = nnx.data(None)
        if config.vision is not None:
            # Image features start at the scale of the token embeddings.
            gain = 1 / math.sqrt(config.text.hidden) if config.text.tied else 0.5
            tower = TOWERS[type(config.vision)]
            self.vision = tower(config.vision, config.text.hidden, gain=gain, **common)

    @overload
    def __call__(self, batch: Batch, *, cache: None = None, adapters: bool = True) -> jax.Array: ...
    @overload
    def __call__(
        self, batch: Batch, *, cache: KVCache, adapters: bool = True
    ) -> tuple[jax.Array, KVCache]: ...
    def __call__(
        self, batch: Batch, *, cache: KVCache | None = None, adapters: bool = True
    ) -> jax.Array | tuple[jax.Array, KVCache]:
        """Final-normed hidden states [B, L, hidden]; with a cache (prefill, decode) also the cache.

        adapters: False leaves them out (the reference policy of GRPO).

        Raises:
          ValueError: when the batch holds images and the model has no vision tower.
          AssertionError: a field of the batch has another shape or dtype than `Batch` says.
        """
        check_shapes(batch)
        x, deepstack = self._embed(batch)
        hidden, cache = self.text(
            x,
            batch.positions,
            batch.segment_ids,
            batch.suffix_ids,
            deepstack=deepstack,
            cache=cache,
            adapters=adapters,
        )
        return hidden if cache is None else (hidden, cache)

    def keys_values(self, batch: Batch, *, adapters: bool = True) -> tuple[jax.Array, jax.Array]:
        """Keys and values of every decoder layer: [layers, B, L, kv_heads, head_dim] each.

        The batch has no suffixes. Raises as a call does.
        """
        check_shapes(batch)
        assert batch.suffix_ids is None, "keys of suffixes depend on their prefix"
        x, deepstack = self._embed(batch)
        return self.text.keys_values(
            x, batch.positions, batch.segment_ids, deepstack=deepstack, adapters=adapters
        )

    def unembed(self, hidden: jax.Array) -> jax.Array:
        """float32 logits [..., vocab]; for decoding and gathered positions, never a whole batch."""
        return unembed(hidden, self.text.head_kernel())

    def _embed(self, batch: Batch) -> tuple[jax.Array, jax.Array | None]:
        """Embeddings [B, L, hidden] with features in the image slots, and DeepStack's
        [K, B, L, hidden], zero elsewhere."""
        tokens, images = batch.tokens, batch.images
        x = self.text.embed(tokens)
        if images is None:
            return x, None
        if self.vision is None:
            raise ValueError("the batch holds image patches, but the model has no vision tower")
        features, deepstack = self.vision(
            images.pixels, images.hw, images.image_ids, images.window_ids
        )
        features = constrain(features, "batch", "length", "features")
        # The k-th slot of a row takes its k-th feature.
        slot = (tokens == self.config.image_token_id) & (batch.segment_ids > 0)
        index = jnp.clip(jnp.cumsum(slot, axis=1) - 1, 0, features.shape[1] - 1)

        def fill(features: jax.Array, x: jax.Array) -> jax.Array:
            filled = jnp.take_along_axis(features.astype(x.dtype), index[..., None], axis=1)
            return constrain(jnp.where(slot[..., None], filled, x), "batch", "length", "features")

        if deepstack is not None:
            deepstack = jax.vmap(fill, (0, None))(deepstack, jnp.zeros_like(x))
        return fill(features, x), deepstack
