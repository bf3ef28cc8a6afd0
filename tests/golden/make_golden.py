"""Makes the golden files beside this script: tiny random Qwen-VLs as transformers saves them, and
the logits transformers computes for two images in one row and for a shorter row without any.

Needs torch and transformers: `python tests/golden/make_golden.py qwen2_vl qwen3_vl`.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import (
    AutoModelForImageTextToText,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2_5_VLConfig,
    Qwen2VLConfig,
    Qwen2VLImageProcessorPil,
    Qwen3VLConfig,
)

IMAGE, VIDEO, VISION_START, VISION_END = 40, 41, 42, 43
SIZES = [(23, 41), (36, 17)]
ROPE = {"rope_type": "default", "rope_theta": 1e4}

# per model_type: the class, and what the text and vision configs have beyond the common fields
FAMILIES = {
    "qwen2_vl": (Qwen2VLConfig, {}, {"embed_dim": 16, "mlp_ratio": 2}),
    "qwen2_5_vl": (
        Qwen2_5_VLConfig,
        {},
        {"hidden_size": 16, "intermediate_size": 24, "window_size": 16}
        | {"fullatt_block_indexes": [1]},
    ),
    "qwen3_vl": (
        Qwen3VLConfig,
        {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
        | {"num_hidden_layers": 3, "rope_parameters": ROPE | {"mrope_section": [2, 1, 1]}},
        {"hidden_size": 16, "intermediate_size": 24, "num_position_embeddings": 25}
        | {"deepstack_visual_indexes": [0, 2]},
    ),
}


def tiny_config(
    text: dict | None = None, vision: dict | None = None, family: str = "qwen2_5_vl"
) -> PreTrainedConfig:
    """Grouped heads; windows, positions and DeepStack where there are; the arguments override."""
    kind, family_text, family_vision = FAMILIES[family]
    text_config = {
        "vocab_size": 48,
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "max_position_embeddings": 512,
        "rope_parameters": ROPE | {"mrope_section": [1, 1, 2]},
    }
    text_config |= family_text | (text or {})
    width = "hidden_size" if family == "qwen2_vl" else "out_hidden_size"
    vision_config = {
        "depth": 3,
        width: text_config["hidden_size"],
        "num_heads": 2,
        "patch_size": 4,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    }
    vision_config |= family_vision | (vision or {})
    return kind(
        text_config=text_config,
        vision_config=vision_config,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=VISION_START,
        vision_end_token_id=VISION_END,
        tie_word_embeddings=False,
    )


def preprocessor(config: PreTrainedConfig) -> dict:
    """Fields of preprocessor_config.json: images of 16 to 100 patches."""
    patch = config.vision_config.patch_size
    area = patch * patch
    if config.model_type == "qwen3_vl":
        size = {"shortest_edge": 16 * area, "longest_edge": 100 * area}
        half = [0.5, 0.5, 0.5]
        return {"patch_size": patch, "size": size, "image_mean": half, "image_std": half}
    return {"patch_size": patch, "min_pixels": 16 * area, "max_pixels": 100 * area}


def tiny_model(config: PreTrainedConfig, seed: int) -> PreTrainedModel:
    """Every weight, norm and bias random and large enough that logits are of order one.

    Values are exact in bfloat16, so that a bfloat16 file holds the same model.
    """
    torch.manual_seed(seed)
    model = AutoModelForImageTextToText.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ("norm" in name or "ln_q" in name) and name.endswith("weight"):
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


def hf_inputs(model, input_ids, attention_mask, images) -> dict[str, torch.Tensor]:
    """What transformers takes; `images` is a list per row of uint8 [H, W, 3] arrays."""
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
    return inputs


def hf_logits(model, input_ids, attention_mask, images) -> torch.Tensor:
    """float32 [B, L, V] by transformers; for the arguments see `hf_inputs`."""
    return model(**hf_inputs(model, input_ids, attention_mask, images)).logits.float()


def make(family: str):
    out = Path(__file__).parent / family
    model = tiny_model(tiny_config(family=family), seed=0)
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
    for name in sys.argv[1:] or FAMILIES:
        make(name)
