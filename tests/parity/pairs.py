"""What the parity tests share: models of transformers beside ours, and rows of images and text."""

import importlib

import numpy as np
import pytest

import mmsrec_jax

torch = pytest.importorskip(
    "torch", reason="live parity needs torch and transformers (make parity)"
)
transformers = importlib.import_module("transformers")
hf = importlib.import_module("golden.make_golden")

TOLERANCE = 1e-4
NO_IMAGE, ONE_IMAGE, TWO_IMAGES = [], [(24, 40)], [(37, 16), (24, 44)]
SQUARE_AND_STRIP = [(16, 16), (9, 60)]


def save(theirs, directory):
    """A directory as users have it, without a tokenizer."""
    theirs.save_pretrained(directory)
    if hf.has_tower(theirs.config):
        hf.image_processor(theirs.config).save_pretrained(directory)


def make_pair(directory, seed, name, tied=None, **fields):
    """(transformers model, ours loaded from its directory)."""
    config = hf.tiny_config(name, **fields)
    if tied is not None:
        config.tie_word_embeddings = tied
    theirs = hf.tiny_model(config, seed)
    save(theirs, directory)
    return theirs, mmsrec_jax.load(directory)


def make_rows(config, seed, layouts):
    """Random rows of text around images of the given heights and widths: (tokens, images)."""
    rng = np.random.default_rng(seed)
    scale = getattr(getattr(config, "vision_config", None), "patch_size", hf.PATCH)
    scale = (scale if isinstance(scale, int) else scale[0]) / hf.PATCH
    rows, images = [], []
    for number, sizes in enumerate(layouts):
        sizes = [(round(h * scale), round(w * scale)) for h, w in sizes]
        images.append(hf.random_images(seed + number, sizes))
        tokens = hf.row(rng, hf.slots(config, images[-1]))
        rows.append(tokens + rng.integers(1, hf.IMAGE, 3 + 2 * number).tolist())
    return rows, images


def their_logits(theirs, ids, mask, images):
    with torch.no_grad():
        return hf.hf_logits(theirs, ids, mask, images).numpy()


def distance(ours, theirs, ids, mask, images):
    """Largest difference of logits where there are tokens."""
    expected, kept = their_logits(theirs, ids, mask, images), mask.astype(bool)
    assert expected[kept].std() > 0.5  # the tolerance means something
    return np.abs(mmsrec_jax.logits(ours, ids, mask, images) - expected)[kept].max()
