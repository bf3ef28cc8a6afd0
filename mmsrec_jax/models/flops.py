"""Floating-point operations of a forward pass and of a train step, counted from the config.

For model FLOPs utilization (MFU: PaLM, arXiv 2204.02311, appendix B): what the model requires, over
what the hardware could have done in the time. Counted are matrix products, 2mnk for [m, k] x
[k, n]; norms, activations, softmax, rope, lookups and the optimizer are not. What an implementation
does beyond that (recomputation, padding) is not counted either; `recomputed` counts the former.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from mmsrec_jax.models import lora
from mmsrec_jax.models.config import DecoderConfig, MLLMConfig, VisionConfig, VitConfig
from mmsrec_jax.models.patches import patch_hw, window_ids

Flops = dict[str, int]  # by part of the model


@dataclasses.dataclass(frozen=True)
class Row:
    """What a row of a batch holds.

    length: tokens, image slots among them.
    targets: tokens whose probability the loss reads.
    grids: rows and columns of patches of each image.
    """

    length: int
    targets: int
    grids: Sequence[tuple[int, int]] = ()


@dataclasses.dataclass(frozen=True)
class Adapters:
    """LoRA factors of `rank` on these linear maps of every decoder layer."""

    rank: int
    targets: Sequence[str] = lora.TARGETS


def forward(config: MLLMConfig, row: Row, adapters: Adapters | None = None) -> Flops:
    """Of one row, logits of its targets included.

    Parts: tower, tower_attention, connector (DeepStack's mergers included), decoder,
    decoder_attention, adapters, head. Every token of a row counts as attending to the whole row:
    causality and packing save nothing here, as in PaLM's formula. Patches attend to their image,
    in a windowed layer to their window; the patches of an image are embedded once, whatever the
    number of identical frames.
    """
    text = config.text
    sizes = linear_sizes(text)
    parts = _tower(config, row.grids) if row.grids else {}
    parts["decoder"] = text.layers * sum(2 * row.length * a * b for a, b in sizes.values())
    parts["decoder_attention"] = text.layers * _attention(row.length**2, text.heads, text.head_dim)
    if adapters is not None:
        wide = sum(sum(sizes[target]) for target in adapters.targets)
        parts["adapters"] = text.layers * 2 * row.length * adapters.rank * wide
    parts["head"] = 2 * row.targets * text.hidden * text.vocab_size
    return parts


def read(
    config: MLLMConfig, tokens: float, seen: float, grids: Sequence[tuple[int, int]] = ()
) -> Mapping[str, float]:
    """Of `tokens`, with images of `grids` among them, that attend to `seen` others and to each
    other; without logits. What ranking is made of: a prompt sees itself alone, a candidate the
    prompt and itself."""
    text = config.text
    parts: dict[str, float] = {**_tower(config, grids)} if grids else {}
    weights = sum(a * b for a, b in linear_sizes(text).values())
    parts["decoder"] = text.layers * 2 * tokens * weights
    pairs = tokens * (tokens + seen)
    parts["decoder_attention"] = text.layers * 4 * pairs * text.heads * text.head_dim
    return parts


def decode(config: MLLMConfig, slots: int, adapters: Adapters | None = None) -> Flops:
    """Of one generated token that reads a cache of `slots`, its logits included."""
    text = config.text
    parts = forward(config, Row(1, 1), adapters)
    return parts | {"decoder_attention": text.layers * _attention(slots, text.heads, text.head_dim)}


def train_step(
    config: MLLMConfig, row: Row, adapters: Adapters | None = None, *, connector: bool = False
) -> Flops:
    """Forward and backward pass of one row: all weights are trained, or only the `adapters`, the
    `connector`, or both.

    The backward pass of a product is one product for its input and one for its weight. Pixels need
    no gradient; nor do frozen weights, so that decoder and head cost one backward product then, and
    the tower none. Every row counts as passed back through the decoder, also one without an image,
    which teaches the connector nothing. Recomputation is not counted.
    """
    found = forward(config, row, adapters)
    passes = dict.fromkeys(found, 3)
    frozen = adapters is not None or connector
    if frozen:
        passes |= {"decoder": 2, "head": 2, "tower": 1, "tower_attention": 1}
        passes["connector"] = 3 if connector else 1
    parts = {part: passes[part] * n for part, n in found.items()}
    if row.grids and config.vision is not None:
        if not frozen:
            parts["tower"] -= _patch_embed(config.vision, row.grids)
        elif connector:
            parts["connector"] -= _features_backward(config.vision, config.text.hidden, row.grids)
    return parts


def recomputed(
    config: MLLMConfig, row: Row, adapters: Adapters | None = None, *, connector: bool = False
) -> Flops:
    """What rematerialization adds to `train_step`: no part of MFU.

    The chunked loss computes logits twice. `config.remat` "full" computes the layers twice, but for
    the last product of each, which no gradient needs; "dots" their attention; "none" nothing.
    """
    text, parts = config.text, forward(config, row, adapters)
    again = {"head": parts["head"]}
    if config.remat == "none":
        return again
    again["decoder_attention"] = parts["decoder_attention"]
    trained_tower = row.grids and adapters is None and not connector
    if trained_tower:
        again["tower_attention"] = parts["tower_attention"]
    if config.remat == "full":
        down = 2 * row.length * text.intermediate * text.hidden
        again["decoder"] = parts["decoder"] - text.layers * down
        if adapters is not None:
            rank = adapters.rank * ("down" in adapters.targets)
            down = 2 * row.length * rank * text.hidden
            again["adapters"] = parts["adapters"] - text.layers * down
        if trained_tower and config.vision is not None:
            again["tower"] = parts["tower"] - _patch_embed(config.vision, row.grids)
            again["tower"] -= _tower_down(config.vision, row.grids)
    return again


def linear_sizes(text: DecoderConfig) -> dict[str, tuple[int, int]]:
    """Inputs and outputs of the linear maps of a decoder layer."""
    q, kv = text.heads * text.head_dim, text.kv_heads * text.head_dim
    return {
        "q": (text.hidden, q),
        "k": (text.hidden, kv),
        "v": (text.hidden, kv),
        "o": (q, text.hidden),
        "gate": (text.hidden, text.intermediate),
        "up": (text.hidden, text.intermediate),
        "down": (text.intermediate, text.hidden),
    }


def _attention(pairs: int, heads: int, head_dim: int) -> int:
    """Scores and weighted values of so many pairs of query and key."""
    return 4 * pairs * heads * head_dim


def _tower(config: MLLMConfig, grids: Sequence[tuple[int, int]]) -> Flops:
    vision, out = config.vision, config.text.hidden
    assert vision is not None, "images have a tower"
    hidden, tokens = vision.hidden, _tower_tokens(vision, grids)
    maps = 3 if isinstance(vision, VisionConfig) and vision.gated else 2
    layer = 2 * tokens * hidden * (4 * hidden + maps * vision.intermediate)
    tower = _patch_embed(vision, grids) + vision.depth * layer
    if isinstance(vision, VitConfig):
        wide = hidden * vision.merge**2 * len(vision.feature_layers)
        slots = vision.slots * len(grids)
        connector = 2 * slots * (wide * out + out * out)
        pairs = vision.depth * sum(_tower_tokens(vision, [grid]) ** 2 for grid in grids)
    else:
        wide = hidden * vision.merge**2
        slots = tokens // vision.merge**2
        mergers = 1 + len(vision.deepstack_indexes)
        connector = mergers * 2 * slots * (wide * wide + wide * out)
        pairs = sum(_window_pairs(vision, grid) for grid in grids)
    return {
        "tower": tower,
        "tower_attention": _attention(pairs, vision.heads, vision.head_dim),
        "connector": connector,
    }


def _tower_tokens(vision: VisionConfig | VitConfig, grids: Sequence[tuple[int, int]]) -> int:
    first = isinstance(vision, VitConfig) and vision.class_token
    return sum(math.prod(grid) + first for grid in grids)


def _patch_embed(vision: VisionConfig | VitConfig, grids: Sequence[tuple[int, int]]) -> int:
    patches = sum(math.prod(grid) for grid in grids)
    return 2 * patches * vision.channels * vision.patch_size**2 * vision.hidden


def _features_backward(
    vision: VisionConfig | VitConfig, out: int, grids: Sequence[tuple[int, int]]
) -> int:
    """What a trained connector on a frozen tower saves: the product for the features, which no norm
    of the connector asks for where it has none."""
    if isinstance(vision, VisionConfig) or vision.merge > 1:
        return 0
    return 2 * vision.slots * len(grids) * vision.hidden * len(vision.feature_layers) * out


def _tower_down(vision: VisionConfig | VitConfig, grids: Sequence[tuple[int, int]]) -> int:
    tokens = _tower_tokens(vision, grids)
    return vision.depth * 2 * tokens * vision.intermediate * vision.hidden


def _window_pairs(vision: VisionConfig, grid: tuple[int, int]) -> int:
    """Pairs of patches that attend to each other, summed over the layers."""
    everything = math.prod(grid) ** 2
    if vision.window_size is None:
        return vision.depth * everything
    hw = patch_hw(grid, vision.merge)
    windows = window_ids(hw, grid, vision.patch_size, vision.window_size, vision.merge)
    inside = int(np.sum(np.bincount(windows) ** 2))
    full = len(vision.fullatt_block_indexes)
    return full * everything + (vision.depth - full) * inside
