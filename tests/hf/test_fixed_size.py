"""The patchifier for towers of one image size against transformers' own."""

import json
import pickle

import numpy as np
import pytest
import transformers
from PIL import Image

from mmsrec_jax.hf.fixed_size import FixedSizeProcessor
from mmsrec_jax.runtime.errors import UserError

SIZES = [(84, 112), (37, 61), (301, 199), (56, 56), (500, 33), (1, 150)]
PROCESSORS = {
    "CLIPImageProcessor": {"size": {"shortest_edge": 56}, "crop_size": {"height": 56, "width": 56}},
    "SiglipImageProcessor": {"size": {"height": 62, "width": 62}, "resample": 2},
    "ViTImageProcessor": {"size": {"height": 42, "width": 70}, "image_mean": [0.4, 0.5, 0.6]},
    "BitImageProcessor": {"size": {"shortest_edge": 64}, "crop_size": {"height": 56, "width": 42}},
    "GotOcr2ImageProcessor": {"size": {"height": 56, "width": 56}},
    "LlavaImageProcessor": {"size": {"shortest_edge": 56}, "do_pad": True, "rescale_factor": 0.01,
                            "crop_size": {"height": 56, "width": 56}},
}  # fmt: skip


def write(directory, kind, **fields):
    raw = {"image_processor_type": kind} | PROCESSORS[kind] | fields
    (directory / "preprocessor_config.json").write_text(json.dumps(raw))
    return directory


def image_of(height, width):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", PROCESSORS)
def test_patches_equal_transformers(tmp_path, kind, size):
    theirs = getattr(transformers, kind + "Pil")(**PROCESSORS[kind])
    ours = FixedSizeProcessor.from_pretrained(write(tmp_path, kind), 14)
    expected = theirs(Image.fromarray(image_of(*size)), return_tensors="np")["pixel_values"][0]
    result = ours.patchify(image_of(*size))
    rows, columns = result["grid"]
    assert result["grid"] == ours.grid(*size) and ours.num_slots((rows, columns)) == rows * columns
    assert result["hw"].tolist() == [[r, c] for r in range(rows) for c in range(columns)]

    mean, std = np.float32(ours.mean)[:, None], np.float32(ours.std)[:, None]
    pixels = result["patches"].astype(np.float32).reshape(-1, 3, 14 * 14)
    normalized = (pixels * np.float32(ours.rescale) - mean) / std
    for patch, (row, column) in zip(normalized, result["hw"], strict=True):
        cut = expected[:, row * 14 : row * 14 + 14, column * 14 : column * 14 + 14]
        np.testing.assert_allclose(patch.reshape(3, 14, 14), cut, atol=1e-5)


@pytest.mark.parametrize("bounds", [(1, 12), (3, 6), (1, 1)])
@pytest.mark.parametrize("size", [*SIZES, (56, 112), (112, 112), (400, 400), (28, 150)])
def test_tiles_equal_transformers(tmp_path, size, bounds):
    fields = {"crop_to_patches": True, "min_patches": bounds[0], "max_patches": bounds[1]}
    kind = "GotOcr2ImageProcessor"
    theirs = transformers.GotOcr2ImageProcessorPil(**PROCESSORS[kind], **fields)
    made = theirs(Image.fromarray(image_of(*size)), return_tensors="np")
    ours = FixedSizeProcessor.from_pretrained(write(tmp_path, kind, **fields), 14)
    result, count = ours.patchify(image_of(*size)), int(made["num_patches"][0])
    assert result["grid"] == ours.grid(*size) == (4 * count, 4)
    assert ours.num_slots(result["grid"]) == 16 * count
    tokens = np.full(16 * count + 2, 9)
    tokens[[0, -1]] = 1, 2
    assert ours.positions(tokens, [result["grid"]], 9).tolist() == [list(range(len(tokens)))] * 3

    mean, std = np.float32(ours.mean), np.float32(ours.std)
    pixels = result["patches"].reshape(count, 4, 4, 3, 14, 14).transpose(0, 1, 4, 2, 5, 3)
    pixels = (pixels.reshape(count, 56, 56, 3) * np.float32(ours.rescale) - mean) / std
    np.testing.assert_allclose(pixels.transpose(0, 3, 1, 2), made["pixel_values"], atol=1e-5)


def test_old_files_give_numbers(tmp_path):
    write(tmp_path, "CLIPImageProcessor", size=56, crop_size=56)
    assert FixedSizeProcessor.from_pretrained(tmp_path, 14).pixels == (56, 56)
    ours = FixedSizeProcessor.from_pretrained(write(tmp_path, "SiglipImageProcessor", size=28), 14)
    assert (ours.resize, ours.slots) == ((28, 28), 4)
    assert pickle.loads(pickle.dumps(ours)) == ours


def test_file_saved_with_the_tokenizer(tmp_path):
    expected = FixedSizeProcessor.from_pretrained(write(tmp_path, "CLIPImageProcessor"), 14)
    path = tmp_path / "preprocessor_config.json"
    whole = {"processor_class": "LlavaProcessor", "image_processor": json.loads(path.read_text())}
    (tmp_path / "processor_config.json").write_text(json.dumps(whole))
    path.unlink()
    assert FixedSizeProcessor.from_pretrained(tmp_path, 14) == expected
    (tmp_path / "processor_config.json").write_text("{}")
    with pytest.raises(UserError, match="preprocessor_config.json: no such file"):
        FixedSizeProcessor.from_pretrained(tmp_path, 14)


def test_positions_are_plain_and_slots_counted():
    ours = FixedSizeProcessor(patch_size=14, pixels=(28, 28), slots=4)
    tokens = np.array([1, 9, 9, 9, 9, 2])
    assert ours.positions(tokens, [(2, 2)], 9).tolist() == [[0, 1, 2, 3, 4, 5]] * 3
    with pytest.raises(UserError, match="4 image slots in the tokens, but the 2 images given"):
        ours.positions(tokens, [(2, 2)] * 2, 9)


@pytest.mark.parametrize(
    "kind, fields, message",
    [
        (
            "CLIPImageProcessor",
            {"crop_size": {"shortest_edge": 4}},
            "crop_size .* height and width",
        ),
        ("CLIPImageProcessor", {"do_center_crop": False}, "must come out in one size"),
        ("CLIPImageProcessor", {"do_resize": False}, "exceeds what images are resized to"),
        ("CLIPImageProcessor", {"size": {"shortest_edge": 40}}, "exceeds what images are resized"),
        ("CLIPImageProcessor", {"size": {"longest_edge": 40}}, "size .* is not supported"),
        ("SiglipImageProcessor", {"crop_to_patches": True}, "crop_to_patches is not supported"),
        (
            "GotOcr2ImageProcessor",
            {"crop_to_patches": True, "min_patches": 9, "max_patches": 4},
            "min_patches 9 must be from 1 to max_patches 4",
        ),
        ("ViTImageProcessor", {"image_processor_type": "X"}, "'X' is not supported for this model"),
    ],
)
def test_unusable_files(tmp_path, kind, fields, message):
    with pytest.raises(UserError, match=message) as error:
        FixedSizeProcessor.from_pretrained(write(tmp_path, kind, **fields), 14)
    assert "preprocessor_config.json" in str(error.value)


def test_unusable_images_and_limits(tmp_path):
    ours = FixedSizeProcessor.from_pretrained(write(tmp_path, "CLIPImageProcessor"), 14)
    with pytest.raises(UserError, match="1 x 4000 pixels is longer than 200 : 1"):
        ours.patchify(image_of(1, 4000))
    with pytest.raises(UserError, match="uint8"):
        ours.patchify(np.zeros((28, 28, 3), np.float32))
    with pytest.raises(UserError, match="one size .56 x 56."):
        ours.limited(100)
