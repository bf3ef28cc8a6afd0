"""Live against transformers on CPU torch, what only Qwen-VLs have: M-RoPE positions and windows;
logits at the proportions of the published models, and with tied heads.

Run with `make parity`; skipped without torch.
"""

import importlib

import numpy as np
import pytest
from pairs import (
    NO_IMAGE,
    ONE_IMAGE,
    SQUARE_AND_STRIP,
    TOLERANCE,
    TWO_IMAGES,
    distance,
    hf,
    make_pair,
    make_rows,
    torch,
)

from mmsrec_jax.api import _logits
from mmsrec_jax.hf import processor

pytestmark = pytest.mark.parity
FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")

# head sizes, sections, activations and patches of the published models
ROPE = {"rope_type": "default", "rope_theta": 1e6}
TEXT = {
    "hidden_size": 256,
    "intermediate_size": 320,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "rope_parameters": ROPE | {"mrope_section": [16, 24, 24]},
}
PUBLISHED = {
    "qwen2_vl": {
        "text": TEXT,
        "vision": {"depth": 4, "embed_dim": 160, "mlp_ratio": 4, "patch_size": 14},
    },
    "qwen2_5_vl": {
        "text": TEXT,
        "vision": {
            "depth": 4,
            "hidden_size": 160,
            "intermediate_size": 200,
            "patch_size": 14,
            "window_size": 112,
            "fullatt_block_indexes": [1, 3],
        },
    },
    "qwen3_vl": {
        "text": TEXT
        | {"num_attention_heads": 4, "head_dim": 128}
        | {"num_hidden_layers": 4, "rope_parameters": ROPE | {"mrope_section": [24, 20, 20]}},
        "vision": {
            "depth": 6,
            "hidden_size": 144,
            "intermediate_size": 200,
            "patch_size": 16,
            "num_position_embeddings": 48**2,
            "deepstack_visual_indexes": [1, 2, 4],
        },
    },
}


@pytest.mark.parametrize("family", PUBLISHED)
def test_logits_at_published_proportions(family, tmp_path):
    theirs, ours = make_pair(tmp_path, seed=3, name=family, **PUBLISHED[family])
    rows, images = make_rows(theirs.config, 4, [TWO_IMAGES, NO_IMAGE, [(9, 60)]])
    error = distance(ours, theirs, *hf.pad(rows), images)
    print(f"{family}: max abs difference {error:.2e}")
    assert error <= TOLERANCE


@pytest.mark.parametrize("family", FAMILIES)
def test_tied_head_and_one_head_per_key(family, tmp_path):
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4, "rms_norm_eps": 1e-6}
    theirs, ours = make_pair(tmp_path, seed=5, name=family, tied=True, text=heads)
    assert ours.text.head is None
    rows, images = make_rows(theirs.config, 5, [ONE_IMAGE])
    assert distance(ours, theirs, *hf.pad(rows), images) <= TOLERANCE


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("family", FAMILIES)
def test_positions_equal_rope_index(family, side, tmp_path):
    theirs, ours = make_pair(tmp_path, seed=1, name=family)
    rows, images = make_rows(theirs.config, 8, [TWO_IMAGES, SQUARE_AND_STRIP, NO_IMAGE])
    ids, mask = hf.pad(rows, side)
    inputs = hf.hf_inputs(theirs, ids, mask, images)
    expected, _ = theirs.model.get_rope_index(
        inputs["input_ids"],
        inputs["mm_token_type_ids"],
        image_grid_thw=inputs["image_grid_thw"],
        attention_mask=inputs["attention_mask"],
    )
    positions = _logits.make_batch(ours, ids, mask, images).positions.swapaxes(0, 1)
    kept = mask.astype(bool)
    np.testing.assert_array_equal(positions[:, kept], expected[:, kept].numpy())


@pytest.mark.parametrize("grid", [(2, 2), (4, 4), (6, 10), (10, 6), (16, 18), (2, 30)])
@pytest.mark.parametrize("window", [56, 84, 112])
def test_windows_equal_window_index(grid, window):
    ids = processor.window_ids(processor.patch_hw(grid, 2), grid, 14, window, 2)
    vision_utils = importlib.import_module("transformers.vision_utils")
    order, boundaries = vision_utils.get_vision_window_index(
        torch.tensor([[1, *grid]]), 2, window, 14
    )
    permuted = ids.reshape(-1, 4)[order.numpy()].reshape(-1)
    expected = np.searchsorted(boundaries.numpy(), np.arange(len(ids)), side="right")
    np.testing.assert_array_equal(permuted, expected)
