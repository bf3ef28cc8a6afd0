"""Live against transformers on CPU torch: positions, windows, logits, gradients of Qwen2.5-VL.

Run with `make parity`; skipped without torch.
"""

import importlib

import jax
import numpy as np
import pytest
from flax import nnx

from mmsrec_jax import models
from mmsrec_jax.models import api, processor
from mmsrec_jax.models.processor import ImageProcessor

torch = pytest.importorskip(
    "torch", reason="live parity needs torch and transformers (make parity)"
)
transformers = importlib.import_module("transformers")
hf = importlib.import_module("golden.make_golden")

pytestmark = pytest.mark.parity
TOLERANCE = 1e-4


def save(model, directory):
    model.save_pretrained(directory)
    fields = hf.preprocessor(model.config)
    transformers.Qwen2VLImageProcessorPil(**fields).save_pretrained(directory)
    return directory


def make_rows(config, seed, image_sizes, text_lengths=()):
    """Rows of tokens with images of the given sizes each, and rows of text alone."""
    rng = np.random.default_rng(seed)
    ours = ImageProcessor(**hf.preprocessor(config))
    images = [hf.random_images(seed + i, sizes) for i, sizes in enumerate(image_sizes)]
    rows = [
        hf.row(rng, [ours.num_slots(ours.grid(*image.shape[:2])) for image in row])
        for row in images
    ]
    rows += [rng.integers(0, hf.IMAGE, n).tolist() for n in text_lengths]
    return rows, images + [[] for _ in text_lengths]


def pad(rows, side):
    length = max(map(len, rows))
    ids = np.zeros((len(rows), length), np.int64)
    mask = np.zeros_like(ids)
    for b, tokens in enumerate(rows):
        place = slice(0, len(tokens)) if side == "right" else slice(length - len(tokens), length)
        ids[b, place], mask[b, place] = tokens, 1
    return ids, mask


def difference(ours, theirs, mask):
    return np.abs(ours - theirs)[mask.astype(bool)].max()


CONFIGS = {
    "small": {},
    "one head per key": {"text": {"num_key_value_heads": 3, "rms_norm_eps": 1e-6}},
    # head sizes, sections, patches and windows of the published models
    "published proportions": {
        "text": {
            "hidden_size": 256,
            "intermediate_size": 320,
            "num_attention_heads": 2,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e6,
                "mrope_section": [16, 24, 24],
            },
        },
        "vision": {
            "depth": 4,
            "hidden_size": 160,
            "intermediate_size": 200,
            "patch_size": 14,
            "window_size": 112,
            "fullatt_block_indexes": [1, 3],
        },
    },
}


def make_pair(directory, seed, **config):
    """(transformers model, ours loaded from its directory)."""
    theirs = hf.tiny_model(hf.tiny_config(**config), seed)
    return theirs, models.load(save(theirs, directory))


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return make_pair(tmp_path_factory.mktemp("hf"), seed=1)


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_of_images_and_text(name, tmp_path):
    theirs, ours = make_pair(tmp_path, seed=2, **CONFIGS[name])
    scale = theirs.config.vision_config.patch_size / 4
    sizes = [[(24, 40), (37, 16)], [(9, 60)], [(33, 33), (16, 16), (20, 44)]]
    sizes = [[(int(h * scale), int(w * scale)) for h, w in row] for row in sizes]
    rows, images = make_rows(theirs.config, 3, sizes, [5, 17])
    for side in ("right", "left"):
        ids, mask = pad(rows, side)
        with torch.no_grad():
            expected = hf.hf_logits(theirs, ids, mask, images).numpy()
        error = difference(models.logits(ours, ids, mask, images), expected, mask)
        spread = expected[mask.astype(bool)].std()
        print(f"{name}, {side}: max abs difference {error:.2e}, logits std {spread:.2f}")
        assert spread > 0.5
        assert error <= TOLERANCE


def test_tied_head(tmp_path):
    config = hf.tiny_config()
    config.tie_word_embeddings = True
    theirs = hf.tiny_model(config, seed=5)
    ours = models.load(save(theirs, tmp_path))
    assert ours.text.head is None
    rows, images = make_rows(config, 5, [[(24, 24)]])
    ids, mask = pad(rows, "right")
    with torch.no_grad():
        expected = hf.hf_logits(theirs, ids, mask, images).numpy()
    assert difference(models.logits(ours, ids, mask, images), expected, mask) <= TOLERANCE


def test_text_only_batch(small):
    theirs, ours = small
    rows, images = make_rows(theirs.config, 4, [], [9, 14])
    ids, mask = pad(rows, "right")
    with torch.no_grad():
        expected = hf.hf_logits(theirs, ids, mask, images).numpy()
    assert difference(models.logits(ours, ids, mask, images), expected, mask) <= TOLERANCE


def test_the_image_moves_the_logits_equally(small):
    """Another image changes both models' logits by far more than the tolerance, and alike."""
    theirs, ours = small
    rows, images = make_rows(theirs.config, 6, [[(24, 40)]])
    ids, mask = pad(rows, "right")
    other = [[255 - images[0][0]]]
    moved = models.logits(ours, ids, mask, other) - models.logits(ours, ids, mask, images)
    with torch.no_grad():
        expected = hf.hf_logits(theirs, ids, mask, other) - hf.hf_logits(theirs, ids, mask, images)
    assert np.abs(moved).max() > 1000 * TOLERANCE
    np.testing.assert_allclose(moved, expected.numpy(), atol=2 * TOLERANCE)


def test_gradients(small):
    """d loss / d weight through image and text, from the patches to the last layer."""
    theirs, ours = small
    rows, images = make_rows(theirs.config, 7, [[(24, 40), (16, 16)]], [11])
    ids, mask = pad(rows, "right")
    weights = np.random.default_rng(0).normal(size=(*ids.shape, 48)) * mask[..., None]
    weights = (weights / 48).astype(np.float32)

    logits = hf.hf_logits(theirs, ids, mask, images)
    (torch.log_softmax(logits, -1) * torch.tensor(weights)).sum().backward()

    graphdef, state = nnx.split(ours)
    batch = api.make_batch(ours, ids, mask, images)

    def loss(state):
        model = nnx.merge(graphdef, state)
        return (jax.nn.log_softmax(model.unembed(model(batch))) * weights).sum()

    grads = jax.jit(jax.grad(loss))(state)
    expected = theirs.model.visual.patch_embed.proj.weight.grad
    pairs = {
        "patches": (grads.vision.patch_embed.kernel, expected),
        "embedding": (
            grads.text.embed.embedding,
            theirs.model.language_model.embed_tokens.weight.grad,
        ),
        "vision value": (
            grads.vision.layers.v.kernel[0].reshape(16, 16),
            theirs.model.visual.blocks[0].attn.qkv.weight.grad[32:].T,
        ),
        "down": (
            grads.text.layers.down.kernel[1],
            theirs.model.language_model.layers[1].mlp.down_proj.weight.grad.T,
        ),
        "merger": (grads.vision.merger.fc1.kernel, theirs.model.visual.merger.mlp[0].weight.grad.T),
    }
    for name, (mine, reference) in pairs.items():
        mine, reference = np.asarray(mine), reference.numpy()
        assert np.linalg.norm(reference) > 1e-2, name
        error = np.linalg.norm(mine - reference) / np.linalg.norm(reference)
        assert error < 1e-4, (name, error)


@pytest.mark.parametrize("side", ["right", "left"])
def test_mrope_positions_equal_rope_index(side):
    config = hf.tiny_config()
    rows, images = make_rows(config, 8, [[(24, 40), (37, 16)], [(9, 60)]], [12])
    ids, mask = pad(rows, side)
    ours = ImageProcessor(**hf.preprocessor(config))
    grids = [[ours.grid(*image.shape[:2]) for image in row] for row in images]
    model = transformers.Qwen2_5_VLModel(config)
    types = torch.tensor(ids == hf.IMAGE).int()
    thw = torch.tensor([[1, *grid] for row in grids for grid in row])
    expected, _ = model.get_rope_index(
        torch.tensor(ids), types, image_grid_thw=thw, attention_mask=torch.tensor(mask)
    )
    for b, tokens in enumerate(rows):
        positions = processor.mrope_positions(np.array(tokens), grids[b], hf.IMAGE, 2)
        np.testing.assert_array_equal(positions, expected[:, b, mask[b].astype(bool)].numpy())


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
