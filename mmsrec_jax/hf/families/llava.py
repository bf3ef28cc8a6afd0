"""LLaVA (arXiv 2310.03744): CLIP, SigLIP or DINOv2, a 2-layer MLP and Llama, Qwen2 or Mistral."""

from mmsrec_jax.hf.families import vit

FAMILY = vit.family(
    "llava",
    ("clip_vision_model", "siglip_vision_model", "dinov2"),
    ("image_token_id", "image_token_index"),
)
