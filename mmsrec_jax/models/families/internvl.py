"""InternVL3 (arXiv 2504.10479) as transformers stores it: InternViT, pixel unshuffle, MLP, Qwen2.

Every image is one tile (`crop_to_patches` must be off), and prompts hold its slots alone: the marks
`<img>` and `</img>` around them are in no field of config.json.
"""

from mmsrec_jax.models.families import vit

FAMILY = vit.family("internvl", ("internvl_vision",), ("image_token_id",))
