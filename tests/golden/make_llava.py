"""Makes golden files as make_golden.py does, for the families with ViT towers of one image size.

Needs torch and transformers: `PYTHONPATH=tests python -m golden.make_llava`.
"""

import sys
from pathlib import Path

import numpy as np
import torch
import transformers
from golden.make_golden import IMAGE, random_images, tiny_model
from PIL import Image
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    Dinov2Config,
    InternVLConfig,
    LlamaConfig,
    LlavaConfig,
    MistralConfig,
    PreTrainedConfig,
    Qwen2Config,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
)

SIDE, PATCH = 16, 4  # pixels
VISION = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 3, "patch_size": PATCH}
MLP = {"intermediate_size": 24, "image_size": SIDE}

# per name: tower, decoder, what config.json says beyond them
MODELS = {
    "llava_clip": (
        CLIPVisionConfig(**VISION, **MLP),
        LlamaConfig,
        {"vision_feature_layer": -2, "vision_feature_select_strategy": "default"},
    ),
    "llava_siglip": (
        SiglipVisionConfig(**VISION, **MLP),
        Qwen2Config,
        {"vision_feature_layer": -1, "vision_feature_select_strategy": "full"},
    ),
    # positions of 6 x 6 patches, resampled to 4 x 4; without the window rows may be of any length
    "llava_dinov2": (
        Dinov2Config(**VISION, mlp_ratio=2, image_size=24),
        MistralConfig,
        {"vision_feature_layer": -1, "vision_feature_select_strategy": "default",
         "tie_word_embeddings": True},
    ),
    "llava_several_layers": (
        CLIPVisionConfig(**VISION, **MLP),
        Qwen2Config,
        {"vision_feature_layer": [3, -2], "vision_feature_select_strategy": "full",
         "multimodal_projector_bias": False},
    ),
    "internvl": (
        transformers.InternVLVisionConfig(**VISION, **MLP, attention_bias=True),
        Qwen2Config,
        {},
    ),
}  # fmt: skip
GOLDEN = ("llava_clip", "llava_dinov2", "internvl")


def tiny_config(name: str) -> PreTrainedConfig:
    """The config of one of MODELS, with a decoder of two layers and grouped heads."""
    vision, text, fields = MODELS[name]
    text_config = text(
        vocab_size=48,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=3,
        num_key_value_heads=1,
        max_position_embeddings=512,
        pad_token_id=0,
        eos_token_id=None,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4},
        **({"sliding_window": None} if text is MistralConfig else {}),
    )
    kind = InternVLConfig if name == "internvl" else LlavaConfig
    fields = {"tie_word_embeddings": False} | fields
    return kind(vision_config=vision, text_config=text_config, image_token_id=IMAGE, **fields)


def image_processor(name: str):
    """Resizes and crops for CLIP, resizes to the square for the others."""
    if "clip" in name or "layers" in name:
        crop = {"height": SIDE, "width": SIDE}
        return CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=crop)
    return SiglipImageProcessorPil(size={"height": SIDE, "width": SIDE})


def slots(config: PreTrainedConfig) -> int:
    """Image slots of one image."""
    patches = (SIDE // PATCH) ** 2
    if config.model_type == "internvl":
        return patches // 4
    first = config.vision_config.model_type != "siglip_vision_model"
    return patches + first - (config.vision_feature_select_strategy == "default")


def row(rng: np.random.Generator, images: int, each: int) -> list[int]:
    """Random text around `images` images of `each` slots."""
    tokens = rng.integers(1, IMAGE, 3).tolist()
    for _ in range(images):
        tokens += [*[IMAGE] * each, *rng.integers(1, IMAGE, 4).tolist()]
    return tokens


def hf_inputs(name: str, input_ids, attention_mask, images) -> dict[str, torch.Tensor]:
    """What transformers takes; `images` is a list per row of uint8 [H, W, 3] arrays."""
    inputs = {"input_ids": torch.tensor(input_ids), "attention_mask": torch.tensor(attention_mask)}
    flat = [Image.fromarray(image) for row_images in images for image in row_images]
    if flat:
        inputs |= dict(image_processor(name)(flat, return_tensors="pt"))
    return inputs


def hf_logits(model, name: str, input_ids, attention_mask, images) -> torch.Tensor:
    """float32 [B, L, V] by transformers; for the arguments see `hf_inputs`."""
    return model(**hf_inputs(name, input_ids, attention_mask, images)).logits.float()


def make(name: str):
    out = Path(__file__).parent / name
    model = tiny_model(tiny_config(name), seed=0)
    images = random_images(0)
    rng = np.random.default_rng(0)
    rows = [row(rng, 2, slots(model.config)), rng.integers(1, IMAGE, 13).tolist()]
    length = max(map(len, rows))
    input_ids = np.zeros((2, length), np.int64)
    attention_mask = np.zeros((2, length), np.int64)
    for b, tokens in enumerate(rows):
        input_ids[b, : len(tokens)] = tokens
        attention_mask[b, : len(tokens)] = 1
    with torch.no_grad():
        logits = hf_logits(model, name, input_ids, attention_mask, [images, []]).numpy()
    image_processor(name).save_pretrained(out)
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
    print(f"{out}: logits {logits.shape} std {logits.std():.2f}")


if __name__ == "__main__":
    for argument in sys.argv[1:] or GOLDEN:
        make(argument)
