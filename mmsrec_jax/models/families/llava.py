"""LLaVA (arXiv 2310.03744): CLIP, SigLIP or DINOv2, a 2-layer MLP and Llama, Qwen2 or Mistral."""

from pathlib import Path

from mmsrec_jax.models.config import MLLMConfig
from mmsrec_jax.models.families import vit
from mmsrec_jax.models.families.base import Family, need
from mmsrec_jax.models.fixed_size import FixedSizeProcessor

_TOWERS = ("clip_vision_model", "siglip_vision_model", "dinov2")


def _config(raw: dict, processor: FixedSizeProcessor | None) -> MLLMConfig:
    return MLLMConfig(
        text=vit.text(raw),
        vision=vit.vision(raw, processor, _TOWERS),
        image_token_id=raw.get("image_token_id") or need(raw, "image_token_index"),
        vision_start_token_id=None,
        vision_end_token_id=None,
        family=FAMILY.model_type,
    )


def _processor(directory: Path) -> FixedSizeProcessor:
    return vit.processor(directory, _TOWERS)


FAMILY = Family(
    model_type="llava",
    config=_config,
    leaves=vit.leaves,
    processor=_processor,
    unused=vit.unused,
)
