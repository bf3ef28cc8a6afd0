"""InternVL3 (arXiv 2504.10479) as transformers stores it: InternViT, pixel unshuffle, MLP, Qwen2.

Every image is one tile (`crop_to_patches` must be off), and prompts hold its slots alone: the marks
`<img>` and `</img>` around them are in no field of config.json.
"""

from pathlib import Path

from mmsrec_jax.models.config import MLLMConfig
from mmsrec_jax.models.families import vit
from mmsrec_jax.models.families.base import Family, need
from mmsrec_jax.models.fixed_size import FixedSizeProcessor

_TOWERS = ("internvl_vision",)


def _config(raw: dict, processor: FixedSizeProcessor | None) -> MLLMConfig:
    return MLLMConfig(
        text=vit.text(raw),
        vision=vit.vision(raw, processor, _TOWERS),
        image_token_id=need(raw, "image_token_id"),
        vision_start_token_id=None,
        vision_end_token_id=None,
        family=FAMILY.model_type,
    )


def _processor(directory: Path) -> FixedSizeProcessor:
    return vit.processor(directory, _TOWERS)


FAMILY = Family(
    model_type="internvl",
    config=_config,
    leaves=vit.leaves,
    processor=_processor,
    unused=vit.unused,
)
