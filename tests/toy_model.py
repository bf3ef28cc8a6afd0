"""An MLLM for the toy items' tokenizer, small enough to compile in seconds."""

from flax import nnx
from tiny_mllm import randomized

from mmsrec_jax.models import lora
from mmsrec_jax.models.config import DecoderConfig, MLLMConfig, VisionConfig
from mmsrec_jax.models.mllm import MLLM


def make(tokenizer, *, rank: int = 4, seed: int = 0) -> MLLM:
    """Adapters (rank > 0) start at zero effect, as `lora.add` leaves them."""
    padded = -(-len(tokenizer) // 8) * 8  # as published models do
    text = DecoderConfig(
        vocab_size=padded, hidden=32, layers=2, heads=4, kv_heads=2, head_dim=8,
        intermediate=48, mrope_section=(2, 1, 1), rope_theta=1e4,
    )  # fmt: skip
    tower = VisionConfig(
        depth=1, hidden=16, heads=2, intermediate=24, fullatt_block_indexes=(0,), patch_size=4
    )
    start, image, end = tokenizer.convert_tokens_to_ids(
        ["<|vision_start|>", "<|image_pad|>", "<|vision_end|>"]
    )
    config = MLLMConfig(text, tower, image, start, end)
    model = randomized(nnx.eval_shape(lambda: MLLM(config, rngs=nnx.Rngs(0))), seed)
    if rank:
        lora.add(model, rank, alpha=2.0 * rank, rngs=nnx.Rngs(seed))
    return model
