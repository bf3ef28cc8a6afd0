"""Makes the golden files beside this script: tiny random models as transformers saves them, and the
logits transformers computes for two images in one row and for a shorter row without any, or for two
rows of text.

Needs torch and transformers: `python tests/golden/make_golden.py qwen2_vl internvl`.
"""

import sys
from pathlib import Path

import numpy as np
import torch
import transformers
from PIL import Image
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedConfig,
    PreTrainedModel,
)

IMAGE, VIDEO, VISION_START, VISION_END = 40, 41, 42, 43
SIZES = [(23, 41), (36, 17)]
ROPE = {"rope_type": "default", "rope_theta": 1e4}
TEXT = {
    "vocab_size": 48,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "eos_token_id": None,
}

# per model_type: the class, and what the text and vision configs have beyond the common fields
QWEN = {
    "qwen2_vl": (
        transformers.Qwen2VLConfig,
        {"num_key_value_heads": 1, "rope_parameters": ROPE | {"mrope_section": [1, 1, 1]}},
        {"embed_dim": 16, "mlp_ratio": 2},
    ),
    "qwen2_5_vl": (
        transformers.Qwen2_5_VLConfig,
        {"rope_parameters": ROPE | {"mrope_section": [1, 1, 1]}},
        {"hidden_size": 16, "intermediate_size": 24, "window_size": 16}
        | {"fullatt_block_indexes": [1]},
    ),
    "qwen3_vl": (
        transformers.Qwen3VLConfig,
        {"head_dim": 8, "num_hidden_layers": 3}
        | {"rope_parameters": ROPE | {"mrope_section": [2, 1, 1]}},
        {"hidden_size": 16, "intermediate_size": 24, "num_position_embeddings": 25}
        | {"deepstack_visual_indexes": [0, 2]},
    ),
}

SIDE, PATCH, TILES = 16, 4, 3  # pixels, pixels, at most so many for an image
VIT = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 3, "patch_size": PATCH}
MLP = {"intermediate_size": 24, "image_size": SIDE}

# per name: tower, decoder, what config.json says beyond them
VITS = {
    "llava_clip": (
        transformers.CLIPVisionConfig(**VIT, **MLP),
        transformers.LlamaConfig,
        {"vision_feature_layer": -2, "vision_feature_select_strategy": "default"},
    ),
    "llava_siglip": (
        transformers.SiglipVisionConfig(**VIT, **MLP),
        transformers.Qwen2Config,
        {"vision_feature_layer": -1, "vision_feature_select_strategy": "full"},
    ),
    # positions of 6 x 6 patches, resampled to 4 x 4; without the window rows may be of any length
    "llava_dinov2": (
        transformers.Dinov2Config(**VIT, mlp_ratio=2, image_size=24),
        transformers.MistralConfig,
        {"vision_feature_layer": -1, "vision_feature_select_strategy": "default",
         "tie_word_embeddings": True},
    ),
    "llava_several_layers": (
        transformers.CLIPVisionConfig(**VIT, **MLP),
        transformers.Qwen2Config,
        {"vision_feature_layer": [3, -2], "vision_feature_select_strategy": "full",
         "multimodal_projector_bias": False},
    ),
    "internvl": (
        transformers.InternVLVisionConfig(**VIT, **MLP, attention_bias=True),
        transformers.Qwen2Config,
        {},
    ),
}  # fmt: skip

# per model_type without a tower: the class, and what it has beyond the common fields
LLAMA3_ROPE = ROPE | {
    # of the three frequencies one stays, one is divided and one lies between
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 256,
}  # fmt: skip
TEXT_ONLY = {
    "llama": (transformers.LlamaConfig, {"rope_parameters": LLAMA3_ROPE}),
    "qwen2": (transformers.Qwen2Config, {"tie_word_embeddings": True}),
    "qwen3": (transformers.Qwen3Config, {"head_dim": 8}),
}
MODELS = (*QWEN, *VITS)
GOLDEN = (*QWEN, "llava_clip", "llava_dinov2", "internvl", *TEXT_ONLY)


def tiny_config(
    name: str = "qwen2_5_vl", text: dict | None = None, vision: dict | None = None
) -> PreTrainedConfig:
    """The config of one of MODELS or TEXT_ONLY: grouped heads; windows, learned positions,
    DeepStack where there are. `text` overrides fields of the Qwen-VLs and of TEXT_ONLY, `vision`
    of the Qwen-VLs."""
    if name in TEXT_ONLY:
        kind, fields = TEXT_ONLY[name]
        return kind(**TEXT | {"rope_parameters": ROPE} | fields | (text or {}))
    if name in VITS:
        tower, decoder, fields = VITS[name]
        window = {"sliding_window": None} if decoder is transformers.MistralConfig else {}
        kind = transformers.InternVLConfig if name == "internvl" else transformers.LlavaConfig
        return kind(
            vision_config=tower,
            text_config=decoder(**TEXT, rope_parameters=ROPE, **window),
            image_token_id=IMAGE,
            **{"tie_word_embeddings": False} | fields,
        )
    kind, family_text, family_vision = QWEN[name]
    text_config = TEXT | family_text | (text or {})
    width = "hidden_size" if name == "qwen2_vl" else "out_hidden_size"
    vision_config = {
        "depth": 3,
        width: text_config["hidden_size"],
        "num_heads": 2,
        "patch_size": PATCH,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    }
    return kind(
        text_config=text_config,
        vision_config=vision_config | family_vision | (vision or {}),
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=VISION_START,
        vision_end_token_id=VISION_END,
        tie_word_embeddings=False,
    )


def has_tower(config: PreTrainedConfig) -> bool:
    return config.model_type not in TEXT_ONLY


def auto_class(config: PreTrainedConfig) -> type:
    """What makes and loads a model of such a config."""
    return AutoModelForImageTextToText if has_tower(config) else AutoModelForCausalLM


def image_processor(config: PreTrainedConfig):
    """Of 16 to 100 patches for Qwen-VLs; in tiles for InternVL; resized and cropped for CLIP,
    resized to the square for the other towers."""
    if config.model_type in QWEN:
        patch = config.vision_config.patch_size
        fields = {"patch_size": patch, "min_pixels": 16 * patch**2, "max_pixels": 100 * patch**2}
        if config.model_type == "qwen3_vl":
            size = {"shortest_edge": 16 * patch**2, "longest_edge": 100 * patch**2}
            half = [0.5, 0.5, 0.5]
            fields = {"patch_size": patch, "size": size, "image_mean": half, "image_std": half}
        return transformers.Qwen2VLImageProcessorPil(**fields)
    square = {"height": SIDE, "width": SIDE}
    if config.model_type == "internvl":
        return transformers.GotOcr2ImageProcessorPil(
            size=square, crop_to_patches=True, max_patches=TILES
        )
    if config.vision_config.model_type == "clip_vision_model":
        return transformers.CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=square)
    return transformers.SiglipImageProcessorPil(size=square)


def slots(config: PreTrainedConfig, images: list[np.ndarray]) -> list[int]:
    """Image slots of each of the uint8 [H, W, 3] images, as transformers counts them."""
    if not images:
        return []
    made = image_processor(config)([Image.fromarray(image) for image in images])
    if "image_grid_thw" in made:
        return (np.asarray(made["image_grid_thw"]).prod(-1) // 4).tolist()
    patches = (SIDE // PATCH) ** 2
    if "num_patches" in made:
        return [int(tiles) * patches // 4 for tiles in made["num_patches"]]
    class_token = config.vision_config.model_type != "siglip_vision_model"
    dropped = config.vision_feature_select_strategy == "default"
    return [patches + class_token - dropped] * len(images)


def tiny_model(config: PreTrainedConfig, seed: int) -> PreTrainedModel:
    """Every weight, norm and bias random and large enough that logits are of order one.

    Values are exact in bfloat16, so that a bfloat16 file holds the same model.
    """
    torch.manual_seed(seed)
    model = auto_class(config).from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ("norm" in name or "ln_q" in name) and name.endswith("weight"):
                parameter.copy_(1 + 0.3 * torch.randn_like(parameter))
            elif parameter.ndim == 1:
                parameter.copy_(0.3 * torch.randn_like(parameter))
            elif "embed_tokens" in name and not config.tie_word_embeddings:
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
    tokens = rng.integers(1, IMAGE, 3).tolist()
    for n in slots:
        tokens += [VISION_START, *[IMAGE] * n, VISION_END, *rng.integers(1, IMAGE, 4).tolist()]
    return tokens


def pad(rows: list[list[int]], side: str = "right") -> tuple[np.ndarray, np.ndarray]:
    """input_ids and attention_mask, int64 [B, L]."""
    length = max(map(len, rows))
    ids = np.zeros((len(rows), length), np.int64)
    mask = np.zeros_like(ids)
    for b, tokens in enumerate(rows):
        place = slice(0, len(tokens)) if side == "right" else slice(length - len(tokens), length)
        ids[b, place], mask[b, place] = tokens, 1
    return ids, mask


def hf_inputs(model, input_ids, attention_mask, images) -> dict[str, torch.Tensor]:
    """What transformers takes; `images` is a list per row of uint8 [H, W, 3] arrays."""
    ids = torch.tensor(input_ids)
    inputs = {"input_ids": ids, "attention_mask": torch.tensor(attention_mask)}
    if model.config.model_type in QWEN:
        # without it M-RoPE silently falls back to text positions
        inputs["mm_token_type_ids"] = (ids == IMAGE).int()
    flat = [Image.fromarray(image) for row_images in images for image in row_images]
    if flat:
        inputs |= dict(image_processor(model.config)(flat, return_tensors="pt"))
        inputs.pop("num_patches", None)
    return inputs


def hf_logits(model, input_ids, attention_mask, images) -> torch.Tensor:
    """float32 [B, L, V] by transformers; for the arguments see `hf_inputs`."""
    return model(**hf_inputs(model, input_ids, attention_mask, images)).logits.float()


def make(name: str):
    out = Path(__file__).parent / name
    model = tiny_model(tiny_config(name), seed=0)
    images = random_images(0) if has_tower(model.config) else []
    rng = np.random.default_rng(0)
    counts = slots(model.config, images)
    input_ids, attention_mask = pad([row(rng, counts), rng.integers(1, IMAGE, 13).tolist()])
    with torch.no_grad():
        logits = hf_logits(model, input_ids, attention_mask, [images, []]).numpy()
    if images:
        image_processor(model.config).save_pretrained(out)
    model.bfloat16().save_pretrained(out)
    (out / "generation_config.json").unlink(missing_ok=True)
    np.savez_compressed(
        out / "golden.npz",
        input_ids=input_ids.astype(np.int32),
        attention_mask=attention_mask.astype(np.int32),
        logits=logits,
        **{f"image_{number}": image for number, image in enumerate(images)},
    )
    print(f"{out}: slots {counts}, logits {logits.shape} std {logits.std():.2f}")


if __name__ == "__main__":
    for argument in sys.argv[1:] or GOLDEN:
        make(argument)
