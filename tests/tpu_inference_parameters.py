"""What tpu-inference (vLLM on TPUs) reads from a folder of Qwen2.5-VL: names and shapes.

Written down from its loader (qwen2_5_vl.py, qwen2.py and utils/weight_utils.py in
tpu_inference/models/jax, commit b8692ff of August 2026). Tensors of the decoder keep their names,
those of the tower are renamed one by one, and a name that leads to no parameter ends the loading:
the names that transformers 5 gives (`model.language_model...`, `model.visual...`) do. Parameters
are transposed or divided by heads there; here is what the file holds. A `lm_head.weight` beside
tied embeddings is passed over, and none is wanted.
"""

from collections.abc import Mapping

Shape = tuple[int, ...]


def wanted(config: Mapping) -> dict[str, Shape]:
    """Tensor -> shape, of the model of a config."""
    text, tower = config["text_config"], config["vision_config"]
    hidden, mlp = text["hidden_size"], text["intermediate_size"]
    size = text.get("head_dim", hidden // text["num_attention_heads"])
    queries, pairs = (size * text[f"num_{kind}_heads"] for kind in ("attention", "key_value"))
    decoder = {
        "input_layernorm.weight": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
        "self_attn.q_proj.weight": (queries, hidden),
        "self_attn.q_proj.bias": (queries,),
        "self_attn.k_proj.weight": (pairs, hidden),
        "self_attn.k_proj.bias": (pairs,),
        "self_attn.v_proj.weight": (pairs, hidden),
        "self_attn.v_proj.bias": (pairs,),
        "self_attn.o_proj.weight": (hidden, queries),
        "mlp.gate_proj.weight": (mlp, hidden),
        "mlp.up_proj.weight": (mlp, hidden),
        "mlp.down_proj.weight": (hidden, mlp),
    }
    width, inner = tower["hidden_size"], tower["intermediate_size"]
    block = {
        "attn.proj.bias": (width,),
        "attn.proj.weight": (width, width),
        "attn.qkv.bias": (3 * width,),
        "attn.qkv.weight": (3 * width, width),
        "mlp.down_proj.bias": (width,),
        "mlp.down_proj.weight": (width, inner),
        "mlp.gate_proj.bias": (inner,),
        "mlp.gate_proj.weight": (inner, width),
        "mlp.up_proj.bias": (inner,),
        "mlp.up_proj.weight": (inner, width),
        "norm1.weight": (width,),
        "norm2.weight": (width,),
    }
    merged = width * tower["spatial_merge_size"] ** 2
    patch = (tower["temporal_patch_size"], tower["patch_size"], tower["patch_size"])
    found: dict[str, Shape] = {
        "model.embed_tokens.weight": (text["vocab_size"], hidden),
        "model.norm.weight": (hidden,),
        "visual.merger.ln_q.weight": (width,),
        "visual.merger.mlp.0.bias": (merged,),
        "visual.merger.mlp.0.weight": (merged, merged),
        "visual.merger.mlp.2.bias": (tower["out_hidden_size"],),
        "visual.merger.mlp.2.weight": (tower["out_hidden_size"], merged),
        "visual.patch_embed.proj.weight": (width, tower["in_channels"], *patch),
    }
    if not config["tie_word_embeddings"]:
        found["lm_head.weight"] = (text["vocab_size"], hidden)
    for stem, count, parts in (
        ("model.layers", text["num_hidden_layers"], decoder),
        ("visual.blocks", tower["depth"], block),
    ):
        for number in range(count):
            found |= {f"{stem}.{number}.{part}": shape for part, shape in parts.items()}
    return found
