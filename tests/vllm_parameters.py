"""What vLLM's models read from a folder: their parameters with shapes, and where each tensor of the
files goes.

Written down from what the loaders in vllm/model_executor/models do (llama.py, qwen2.py, qwen3.py,
qwen2_vl.py, qwen2_5_vl.py, qwen3_vl.py, llava.py, clip.py, interns1.py, interns1_vit.py; October
2026, Qwen2-VL November). A loader
renames a tensor by its beginning, joins what it computes in one product, and fails on a tensor that
it has no parameter for.
"""

from collections.abc import Mapping

Shape = tuple[int, ...]

_INSIDE = (
    ("model.language_model.", "language_model.model."),
    ("model.visual.", "visual."),
    ("model.vision_tower.", "vision_tower."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
    ("lm_head.", "language_model.lm_head."),
)
_BEGINNINGS = {
    "Qwen2VLForConditionalGeneration": (*_INSIDE, ("model.", "language_model.model.")),
    "Qwen2_5_VLForConditionalGeneration": (*_INSIDE, ("model.", "language_model.model.")),
    "Qwen3VLForConditionalGeneration": _INSIDE,
    "LlavaForConditionalGeneration": _INSIDE,
    "InternVLForConditionalGeneration": _INSIDE,
}
_JOINED = {  # part -> (whole, place)
    "q_proj": ("qkv_proj", 0), "k_proj": ("qkv_proj", 1), "v_proj": ("qkv_proj", 2),
    "gate_proj": ("gate_up_proj", 0), "up_proj": ("gate_up_proj", 1),
}  # fmt: skip


def loaded(config: Mapping, tensors: Mapping[str, Shape]) -> dict[str, Shape]:
    """Parameter -> shape of what the tensors of a folder fill; of a joined one the first length is
    the sum over its parts, which are all there."""
    architecture = config["architectures"][0]
    parts: dict[str, dict[int, Shape]] = {}
    for name, shape in tensors.items():
        for old, new in _BEGINNINGS.get(architecture, ()):
            if name.startswith(old):
                name = new + name.removeprefix(old)
        if _is_left_out(config, name):
            continue
        module, _, kind = name.rpartition(".")
        stem, _, last = module.rpartition(".")
        whole, place = last, 0
        if not (architecture.startswith("InternVL") and name.startswith("vision_tower.")):
            whole, place = _JOINED.get(last, (last, 0))
        parts.setdefault(f"{stem}.{whole}.{kind}".lstrip("."), {})[place] = shape
    found = {}
    for name, by_place in parts.items():
        count = {"qkv_proj": 3, "gate_up_proj": 2}.get(name.split(".")[-2], 1)
        assert sorted(by_place) == list(range(count)), f"{name}: parts {sorted(by_place)}"
        first, *rest = by_place.values()
        assert all(shape[1:] == first[1:] for shape in rest), name
        found[name] = (first[0] + sum(shape[0] for shape in rest), *first[1:])
    return found


def wanted(config: Mapping) -> dict[str, Shape]:
    """Parameter -> shape of the model of a config."""
    architecture = config["architectures"][0]
    text = config.get("text_config", config)
    inner = {
        "LlamaForCausalLM": "llama", "Qwen2ForCausalLM": "qwen2", "Qwen3ForCausalLM": "qwen3",
        "Qwen2VLForConditionalGeneration": "qwen2", "Qwen2_5_VLForConditionalGeneration": "qwen2",
        "Qwen3VLForConditionalGeneration": "qwen3",
    }.get(architecture) or text["model_type"]  # fmt: skip
    found = _decoder(text, inner, is_tied=config["tie_word_embeddings"])
    if text is config:
        return found
    found = {f"language_model.{name}": shape for name, shape in found.items()}
    towers = {
        "Qwen2VLForConditionalGeneration": _qwen2_tower,
        "Qwen2_5_VLForConditionalGeneration": _qwen2_5_tower,
        "Qwen3VLForConditionalGeneration": _qwen3_tower,
        "LlavaForConditionalGeneration": _clip_tower,
        "InternVLForConditionalGeneration": _intern_tower,
    }
    return found | towers[architecture](config)


def _is_left_out(config: Mapping, name: str) -> bool:
    """LLaVA's tower ends with the layer whose states it takes."""
    if config["architectures"][0] != "LlavaForConditionalGeneration":
        return False
    if name.startswith("vision_tower.vision_model.post_layernorm."):
        return True
    inside = name.removeprefix("vision_tower.vision_model.encoder.layers.")
    return inside != name and int(inside.partition(".")[0]) >= _clip_layers(config)


def _clip_layers(config: Mapping) -> int:
    return config["vision_config"]["num_hidden_layers"] + config["vision_feature_layer"] + 1


def _decoder(text: Mapping, kind: str, *, is_tied: bool) -> dict[str, Shape]:
    width, inner = text["hidden_size"], text["intermediate_size"]
    heads, pairs = text["num_attention_heads"], text["num_key_value_heads"]
    size = text.get("head_dim") or width // heads
    joined = (heads + 2 * pairs) * size
    found = {
        "model.embed_tokens.weight": (text["vocab_size"], width),
        "model.norm.weight": (width,),
    }
    if not is_tied:
        found["lm_head.weight"] = (text["vocab_size"], width)
    layer = {
        "input_layernorm.weight": (width,),
        "post_attention_layernorm.weight": (width,),
        "self_attn.qkv_proj.weight": (joined, width),
        "self_attn.o_proj.weight": (width, heads * size),
        "mlp.gate_up_proj.weight": (2 * inner, width),
        "mlp.down_proj.weight": (width, inner),
    }
    if kind == "qwen2":
        layer["self_attn.qkv_proj.bias"] = (joined,)
    if kind == "qwen3":
        layer |= {"self_attn.q_norm.weight": (size,), "self_attn.k_norm.weight": (size,)}
    return found | _layers("model.layers", text["num_hidden_layers"], layer)


def _qwen2_tower(config: Mapping) -> dict[str, Shape]:
    """Its product over patches is read as the convolution that the file has."""
    c = config["vision_config"]
    width, patch = c["embed_dim"], c["patch_size"]
    inner, merged = int(width * c["mlp_ratio"]), width * c["spatial_merge_size"] ** 2
    block = {
        **_norm("norm1", width), **_norm("norm2", width),
        **_linear("attn.qkv", 3 * width, width), **_linear("attn.proj", width, width),
        **_linear("mlp.fc1", inner, width), **_linear("mlp.fc2", width, inner),
    }  # fmt: skip
    return {
        "visual.patch_embed.proj.weight": (width, 3, c["temporal_patch_size"], patch, patch),
        **_norm("visual.merger.ln_q", width),
        **_linear("visual.merger.mlp.0", merged, merged),
        **_linear("visual.merger.mlp.2", c["hidden_size"], merged),
        **_layers("visual.blocks", c["depth"], block),
    }


def _qwen2_5_tower(config: Mapping) -> dict[str, Shape]:
    c = config["vision_config"]
    width, inner, patch = c["hidden_size"], c["intermediate_size"], c["patch_size"]
    merged = width * c["spatial_merge_size"] ** 2
    block = {
        "norm1.weight": (width,), "norm2.weight": (width,),
        **_linear("attn.qkv", 3 * width, width), **_linear("attn.proj", width, width),
        **_linear("mlp.gate_up_proj", 2 * inner, width), **_linear("mlp.down_proj", width, inner),
    }  # fmt: skip
    return {
        "visual.patch_embed.proj.weight": (width, 3, c["temporal_patch_size"], patch, patch),
        "visual.merger.ln_q.weight": (width,),
        **_linear("visual.merger.mlp.0", merged, merged),
        **_linear("visual.merger.mlp.2", c["out_hidden_size"], merged),
        **_layers("visual.blocks", c["depth"], block),
    }


def _qwen3_tower(config: Mapping) -> dict[str, Shape]:
    c = config["vision_config"]
    width, inner, patch = c["hidden_size"], c["intermediate_size"], c["patch_size"]
    merged, out = width * c["spatial_merge_size"] ** 2, c["out_hidden_size"]
    block = {
        **_norm("norm1", width), **_norm("norm2", width),
        **_linear("attn.qkv", 3 * width, width), **_linear("attn.proj", width, width),
        **_linear("mlp.linear_fc1", inner, width), **_linear("mlp.linear_fc2", width, inner),
    }  # fmt: skip
    mergers = _linear("linear_fc1", merged, merged) | _linear("linear_fc2", out, merged)
    deep = len(c["deepstack_visual_indexes"])
    return {
        "visual.patch_embed.proj.weight": (width, 3, c["temporal_patch_size"], patch, patch),
        "visual.patch_embed.proj.bias": (width,),
        "visual.pos_embed.weight": (c["num_position_embeddings"], width),
        **{
            f"visual.merger.{name}": shape
            for name, shape in (_norm("norm", width) | mergers).items()
        },
        **_layers("visual.deepstack_merger_list", deep, _norm("norm", merged) | mergers),
        **_layers("visual.blocks", c["depth"], block),
    }


def _clip_tower(config: Mapping) -> dict[str, Shape]:
    c, out = config["vision_config"], config["text_config"]["hidden_size"]
    width, inner, patch = c["hidden_size"], c["intermediate_size"], c["patch_size"]
    layer = {
        **_norm("layer_norm1", width), **_norm("layer_norm2", width),
        **_linear("self_attn.qkv_proj", 3 * width, width),
        **_linear("self_attn.out_proj", width, width),
        **_linear("mlp.fc1", inner, width), **_linear("mlp.fc2", width, inner),
    }  # fmt: skip
    tower = {
        "embeddings.class_embedding": (width,),
        "embeddings.patch_embedding.weight": (width, 3, patch, patch),
        "embeddings.position_embedding.weight": ((c["image_size"] // patch) ** 2 + 1, width),
        **_norm("pre_layrnorm", width),
        **_layers("encoder.layers", _clip_layers(config), layer),
    }
    return {
        **{f"vision_tower.vision_model.{name}": shape for name, shape in tower.items()},
        **_linear("multi_modal_projector.linear_1", out, width),
        **_linear("multi_modal_projector.linear_2", out, out),
    }


def _intern_tower(config: Mapping) -> dict[str, Shape]:
    c, out = config["vision_config"], config["text_config"]["hidden_size"]
    width, inner, (rows, columns) = c["hidden_size"], c["intermediate_size"], c["patch_size"]
    patches = (c["image_size"][0] // rows) * (c["image_size"][1] // columns)
    merged = width * int(1 / config["downsample_ratio"]) ** 2
    layer = {
        "lambda_1": (width,), "lambda_2": (width,),
        **_norm("layernorm_before", width), **_norm("layernorm_after", width),
        **_linear("attention.q_proj", width, width), **_linear("attention.k_proj", width, width),
        **_linear("attention.v_proj", width, width),
        **_linear("attention.projection_layer", width, width),
        **_linear("mlp.fc1", inner, width), **_linear("mlp.fc2", width, inner),
    }  # fmt: skip
    return {
        "vision_tower.embeddings.cls_token": (1, 1, width),
        "vision_tower.embeddings.position_embeddings": (1, patches + 1, width),
        "vision_tower.embeddings.patch_embeddings.projection.weight": (width, 3, rows, columns),
        "vision_tower.embeddings.patch_embeddings.projection.bias": (width,),
        **_layers("vision_tower.encoder.layer", c["num_hidden_layers"], layer),
        **_norm("multi_modal_projector.layer_norm", merged),
        **_linear("multi_modal_projector.linear_1", out, merged),
        **_linear("multi_modal_projector.linear_2", out, out),
    }


def _linear(name: str, out: int, into: int) -> dict[str, Shape]:
    return {f"{name}.weight": (out, into), f"{name}.bias": (out,)}


def _norm(name: str, width: int) -> dict[str, Shape]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _layers(name: str, count: int, layer: Mapping[str, Shape]) -> dict[str, Shape]:
    return {
        f"{name}.{number}.{part}": shape for number in range(count) for part, shape in layer.items()
    }
