"""The patchifier against transformers' own, positions against a case worked by hand."""

import json
import pickle
import subprocess
import sys

import numpy as np
import pytest
import transformers
from PIL import Image

from mmsrec_jax.hf import processor
from mmsrec_jax.hf.processor import ImageProcessor
from mmsrec_jax.models.config import VisionConfig
from mmsrec_jax.runtime.errors import UserError

SIZES = [(84, 112), (37, 61), (301, 199), (1, 150), (28, 28), (500, 33), (64, 640)]
TOWERS = [
    {"min_pixels": 56 * 56, "max_pixels": 112 * 140},
    {"size": {"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 9}, "patch_size": 16,
     "image_mean": [0.5] * 3, "image_std": [0.25, 0.5, 0.75], "resample": 2},
    # as published with Qwen3-VL
    {"size": {"shortest_edge": 65536, "longest_edge": 16777216}, "patch_size": 16,
     "temporal_patch_size": 2, "merge_size": 2, "image_mean": [0.5] * 3, "image_std": [0.5] * 3},
]  # fmt: skip


def write(directory, preprocessor, config=None):
    (directory / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    if config is not None:
        (directory / "config.json").write_text(json.dumps(config))
    return directory


def image_of(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("size", SIZES)
def test_patches_equal_transformers(tmp_path, tower, size):
    theirs = transformers.Qwen2VLImageProcessorPil(**tower)
    ours = ImageProcessor.from_pretrained(write(tmp_path, tower))
    image = image_of(*size)
    expected = theirs(Image.fromarray(image), return_tensors="np")
    result = ours.patchify(image)
    assert [1, *result["grid"]] == expected["image_grid_thw"][0].tolist()
    assert result["grid"] == ours.grid(*size)
    assert ours.num_slots(result["grid"]) == expected["image_grid_thw"].prod() // 4

    pixels = result["patches"].astype(np.float32).reshape(-1, 3, ours.patch_size**2)
    mean, std = np.float32(ours.mean)[:, None], np.float32(ours.std)[:, None]
    normalized = (pixels * np.float32(ours.rescale) - mean) / std
    frames = expected["pixel_values"].reshape(len(pixels), 3, 2, ours.patch_size**2)
    np.testing.assert_allclose(normalized, frames[:, :, 0], atol=1e-6, rtol=0)
    np.testing.assert_array_equal(frames[:, :, 0], frames[:, :, 1])


def test_a_picture_gives_the_patches_of_its_pixels():
    pixels = np.random.default_rng(0).integers(0, 256, (61, 90, 3), np.uint8)
    picture = Image.fromarray(pixels)
    for made in (ImageProcessor(), ImageProcessor(max_pixels=56 * 56)):
        ours, wanted = made.patchify(picture), made.patchify(pixels)
        assert ours["grid"] == wanted["grid"] and (ours["patches"] == wanted["patches"]).all()
    with pytest.raises(UserError, match="must be RGB, got L"):
        ImageProcessor().patchify(picture.convert("L"))


def test_patch_rows_and_columns_point_at_the_pixels():
    ours = ImageProcessor(patch_size=4, merge_size=2, do_resize=False)
    image = image_of(24, 16)
    result = ours.patchify(image)
    for patch, (row, column) in zip(result["patches"], result["hw"], strict=True):
        cut = image[row * 4 : row * 4 + 4, column * 4 : column * 4 + 4]
        np.testing.assert_array_equal(patch.reshape(3, 4, 4), cut.transpose(2, 0, 1))
    assert result["hw"][:4].tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]


@pytest.mark.parametrize("grid", [(4, 4), (6, 10), (10, 6), (2, 8), (12, 14)])
@pytest.mark.parametrize("window", [56, 84, 112])
def test_windows_are_squares_of_merged_patches(grid, window):
    hw = processor.patch_hw(grid, 2)
    ids = processor.window_ids(hw, grid, 14, window, 2)
    side = window // 28 * 2
    same = ids[:, None] == ids[None, :]
    np.testing.assert_array_equal(same, (hw[:, None] // side == hw[None, :] // side).all(-1))
    assert set(ids.tolist()) == set(range(1, ids.max() + 1))


def test_without_window_size_an_image_is_one_window():
    assert set(ImageProcessor().patchify(image_of(84, 84))["window_ids"]) == {1}


def test_mrope_positions_by_hand():
    # two text tokens, 2 x 3 merged patches, one text token, 1 x 1 merged patch, one text token
    tokens = np.array([5, 6, 9, 9, 9, 9, 9, 9, 7, 9, 8])
    positions = processor.mrope_positions(tokens, [(4, 6), (2, 2)], 9, 2)
    assert positions.dtype == np.int32
    assert positions.tolist() == [
        [0, 1, 2, 2, 2, 2, 2, 2, 5, 6, 7],
        [0, 1, 2, 2, 2, 3, 3, 3, 5, 6, 7],
        [0, 1, 2, 3, 4, 2, 3, 4, 5, 6, 7],
    ]


def test_mrope_positions_divide_adjacent_images():
    positions = processor.mrope_positions(np.array([9, 9, 9, 1]), [(2, 4), (2, 2)], 9, 2)
    assert positions.tolist() == [[0, 0, 2, 3], [0, 0, 2, 3], [0, 1, 2, 3]]


def test_mrope_positions_of_text_are_arange():
    np.testing.assert_array_equal(
        processor.mrope_positions(np.array([3, 1, 2]), [], 9, 2), np.tile(np.arange(3), (3, 1))
    )


def test_mrope_positions_reject_disagreement():
    with pytest.raises(UserError, match="5 image slots.*need 4"):
        processor.mrope_positions(np.array([9] * 5), [(4, 4)], 9, 2)
    with pytest.raises(UserError, match="interrupted"):
        processor.mrope_positions(np.array([9, 9, 1, 9, 9]), [(4, 4)], 9, 2)


def test_window_comes_from_the_model_config_and_survives_pickle(tmp_path):
    ours = ImageProcessor.from_pretrained(
        write(tmp_path, TOWERS[0], {"vision_config": {"window_size": 56, "patch_size": 14}})
    )
    assert ours.window_size == 56
    assert pickle.loads(pickle.dumps(ours)) == ours


def test_saved_processor_reads_back_here_and_in_transformers(tmp_path):
    tower = VisionConfig(depth=1, hidden=8, heads=1, intermediate=8, fullatt_block_indexes=(),
                         patch_size=8, window_size=32, image_mean=(0.5, 0.4, 0.3))  # fmt: skip
    ours = ImageProcessor.for_tower(tower, min_pixels=256, max_pixels=4096)
    ours.save_pretrained(tmp_path)
    assert ImageProcessor.from_pretrained(tmp_path) == ours
    assert (ours.patch_size, ours.window_size, ours.mean) == (8, 32, (0.5, 0.4, 0.3))
    theirs = transformers.Qwen2VLImageProcessorPil.from_pretrained(tmp_path)
    expected = theirs(image_of(50, 30), return_tensors="np")["image_grid_thw"][0, 1:]
    assert ours.grid(50, 30) == tuple(expected)


def test_errors_say_what_to_do(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        ImageProcessor.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(UserError, match="patch_size is 14, but config.json says 16"):
        ImageProcessor.from_pretrained(write(tmp_path, {}, {"vision_config": {"patch_size": 16}}))
    with pytest.raises(UserError, match="uint8"):
        ImageProcessor().patchify(np.zeros((28, 28, 3), np.float32))
    for size in ((1, 4000), (4000, 1)):
        with pytest.raises(UserError, match=f"{size[0]} x {size[1]} .* 200 : 1; crop it"):
            ImageProcessor().patchify(image_of(*size))
    with pytest.raises(UserError, match="does not divide by 28"):
        ImageProcessor(do_resize=False).grid(30, 56)


def test_input_workers_stay_free_of_jax():
    code = "import sys, mmsrec_jax.hf.processor; sys.exit('jax' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
