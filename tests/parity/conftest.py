"""Every family's tiny random model, in transformers and here."""

import importlib

import pytest

NAMES = (
    "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "llava_clip", "llava_siglip", "llava_dinov2",
    "llava_several_layers", "internvl",
)  # fmt: skip


@pytest.fixture(scope="module", params=NAMES)
def pair(request, tmp_path_factory):
    """(transformers model, ours loaded from its directory)."""
    pairs = importlib.import_module("pairs")
    directory = tmp_path_factory.mktemp(request.param)
    return pairs.make_pair(directory, seed=1, name=request.param)
