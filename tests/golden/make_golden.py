"""Makes the golden files beside this script: a tiny random Qwen2.5-VL as transformers saves it, and
the logits transformers computes for two images in one row and for a shorter row without any.

Needs torch and transformers: `python tests/golden/make_golden.py`.
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLImageProcessorPil,
)

IMAGE, VIDEO, VISION_START, VISION_END = 40, 41, 42, 43
SIZES = [(23, 41), (36, 17)]


def tiny_config(text: dict | None = None, vision: dict | None = None) -> Qwen2_5_VLConfig:
    """Grouped heads; window attention in two of three vision blocks; the arguments override."""
    text_config = {
        "vocab_size": 48,
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "max_position_embeddings": 512,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]},
    } | (text or {})
    vision_config = {
        "depth": 3,
        "hidden_size": 16,
        "out_hidden_size": text_config["hidden_size"],
        "intermediate_size": 24,
        "num_heads": 2,
        "patch_size": 4,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "window_size": 16,
        "fullatt_block_indexes": [1],
    } | (vision or {})
    return Qwen2_5_VLConfig(
        text_config=text_config,
        vision_config=vision_config,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=VISION_START,
        vision_end_token_id=VISION_END,
        tie_word_embeddings=False,
    )


def preprocessor(config: Qwen2_5_VLConfig) -> dict:
    """Fields of preprocessor_config.json: images of 16 to 100 patches."""
    patch = config.vision_config.patch_size
    area = patch * patch
    return {"patch_size": patch, "min_pixels": 16 * area, "max_pixels": 100 * area}


def tiny_model(config: Qwen2_5_VLConfig, seed: int) -> Qwen2_5_VLForConditionalGeneration:
    """Every weight, norm and bias random and large enough that logits are of order one.

    Values are exact in bfloat16, so that a bfloat16 file holds the same model.
    """
    torch.manual_seed(seed)
    model = Qwen2_5_VLForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or "ln_q" in name:
                parameter.copy_(1 + 0.3 * torch.randn_like(parameter))
            elif parameter.ndim == 1:
                parameter.copy_(0.3 * torch.randn_like(parameter))
            elif "embed_tokens" in name:
                parameter.copy_(torch.randn_like(parameter))
            else:
                parameter.copy_(torch.randn_like(parameter) / parameter[0].numel() ** 0.5)
            parameter.copy_(parameter.bfloat16().float())
    return model


def random_images(seed: int, sizes=SIZES) -> list[np.ndarray]:
    """Smooth enough to resize, different enough to matter; uint8 [H, W, 3]."""
    rng = np.random.default_rng(seed)
    coarse = [rng.integers(0, 256, (5, 5, 3), dtype=np.uint8) for _ in sizes]
    return [
        np.asarray(Image.fromarray(c).resize((w, h), Image.Resampling.BICUBIC))
        for c, (h, w) in zip(coarse, sizes, strict=True)
    ]


def row(rng: np.random.Generator, slots: list[int]) -> list[int]:
    """Random text around vision_start, `n` image slots and vision_end for every n of `slots`."""
    tokens = rng.integers(0, IMAGE, 3).tolist()
    for n in slots:
        tokens += [VISION_START, *[IMAGE] * n, VISION_END, *rng.integers(0, IMAGE, 4).tolist()]
    return tokens


def hf_logits(model, input_ids, attention_mask, images) -> torch.Tensor:
    """float32 [B, L, V] by transformers; `images` is a list per row of uint8 [H, W, 3] arrays."""
    ids = torch.tensor(input_ids)
    flat = [Image.fromarray(image) for row_images in images for image in row_images]
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.tensor(attention_mask),
        # without it M-RoPE silently falls back to text positions
        "mm_token_type_ids": (ids == model.config.image_token_id).int(),
    }
    if flat:
        processor = Qwen2VLImageProcessorPil(**preprocessor(model.config))
        inputs |= dict(processor(flat, return_tensors="pt"))
    return model(**inputs).logits.float()


def main():
    out = Path(__file__).parent / "qwen2_5_vl"
    model = tiny_model(tiny_config(), seed=0)
    processor = Qwen2VLImageProcessorPil(**preprocessor(model.config))
    images = random_images(0)
    grids = processor([Image.fromarray(image) for image in images])
    slots = (np.asarray(grids["image_grid_thw"]).prod(-1) // 4).tolist()
    rng = np.random.default_rng(0)
    rows = [row(rng, slots), rng.integers(0, IMAGE, 13).tolist()]
    length = max(map(len, rows))
    input_ids = np.zeros((2, length), np.int64)
    attention_mask = np.zeros((2, length), np.int64)
    for b, tokens in enumerate(rows):
        input_ids[b, : len(tokens)] = tokens
        attention_mask[b, : len(tokens)] = 1
    with torch.no_grad():
        logits = hf_logits(model, input_ids, attention_mask, [images, []]).numpy()
    processor.save_pretrained(out)
    model.bfloat16().save_pretrained(out)
    (out / "generation_config.json").unlink(missing_ok=True)
    np.savez_compressed(
        out / "golden.npz",
        input_ids=input_ids.astype(np.int32),
        attention_mask=attention_mask.astype(np.int32),
        image_0=images[0],
        image_1=images[1],
        logits=logits,
    )
    print(f"{out}: grids {grids['image_grid_thw']}, logits {logits.shape} std {logits.std():.2f}")


if __name__ == "__main__":
    main()
