"""Model directories whose fields hold what they cannot be, and whose weights are not theirs."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hostile
import numpy as np
import pytest
import toy_items
from safetensors.numpy import load_file, save_file

import mmsrec_jax
from mmsrec_jax.hf import tokenizer
from mmsrec_jax.hf.mapping import config_from_hf
from mmsrec_jax.prompts import Chat
from mmsrec_jax.runtime.errors import UserError

GOLDEN = Path(__file__).parents[1] / "golden"
VLMS = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "llava_clip", "llava_dinov2", "internvl")
FAMILIES = ("llama", "qwen2", "qwen3", *VLMS)


@pytest.fixture
def directory(tmp_path) -> Callable[[str], Path]:
    return lambda family: Path(shutil.copytree(GOLDEN / family, tmp_path / family))


def edit(path: Path, field: str, value: Any) -> str:
    """Sets a field, wherever config.json has it: at the top or in the part of its name's parent.
    Returns the dotted name."""
    raw = json.loads(path.read_text())
    *parents, name = field.split(".")
    if parents == ["text_config"] and "text_config" not in raw:
        parents = []
    part = raw
    for parent in parents:
        part = part.setdefault(parent, {})
    part[name] = value
    path.write_text(json.dumps(raw))
    return ".".join([*parents, name])


SIZES = ("num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size",
         "intermediate_size")  # fmt: skip
NO_SIZES = (0, -1, 2.0, 1e9, 10**9, "24", [24], {}, True, 2**63)


@pytest.mark.parametrize("family", FAMILIES)
def test_sizes_of_a_config(family, directory):
    folder = directory(family)
    path = folder / "config.json"
    good = path.read_text()
    fields = [f"text_config.{size}" for size in SIZES]
    if family in VLMS:
        fields += ["vision_config.hidden_size", "vision_config.patch_size"]
    for field in fields:
        for value in NO_SIZES:
            if value == [24] and field.endswith("patch_size"):
                continue  # a size of each side
            path.write_text(good)
            name = edit(path, field, value)
            with hostile.refused(str(path), name, "is expected"):
                mmsrec_jax.load(folder)


@pytest.mark.parametrize("family", FAMILIES)
def test_any_field_of_a_config_that_is_no_longer_what_it_was(family, directory):
    """Each in turn becomes a list, an object, text, null, a negative and a huge number, or goes."""
    raw = json.loads((GOLDEN / family / "config.json").read_text())

    def places(part: dict) -> list[tuple[dict, str]]:
        found = [(part, name) for name in part]
        for value in part.values():
            found += places(value) if isinstance(value, dict) else []
        return found

    for part, name in places(raw):
        before = part[name]
        for value in ([], [[1]], {}, {"a": 1}, "x", "", None, -1, 0, 2**63, 1e308, True, ...):
            if value is ...:
                del part[name]
            else:
                part[name] = value
            try:
                config_from_hf(raw)
            except UserError as error:
                hostile.check_line(str(error))
        part[name] = before


@pytest.mark.parametrize("field, value", [
    ("size", 7.5), ("size", "224"), ("size", {"shortest_edge": -4, "longest_edge": 4}),
    ("size", {"shortest_edge": 10**12, "longest_edge": 10**13}), ("size", [224, 224]),
    ("patch_size", 0), ("patch_size", [4, 4]), ("merge_size", -2), ("merge_size", 1e9),
    ("min_pixels", 0), ("max_pixels", -1), ("min_pixels", 10**15), ("resample", "bicubic"),
    ("resample", 9), ("rescale_factor", 0), ("rescale_factor", "1/255"), ("image_std", [0, 0, 0]),
    ("image_std", [1]), ("image_mean", 0.5), ("image_mean", ["a", "b", "c"]), ("do_resize", "yes"),
    ("crop_size", {"height": 10**9, "width": 10**9}), ("crop_size", -1), ("min_patches", 0),
    ("max_patches", 10**9), ("image_processor_type", ["x"]),
])  # fmt: skip
def test_fields_of_the_image_processor(field, value, directory):
    for family in ("qwen2_5_vl", "llava_clip", "internvl"):
        folder = directory(family)
        path = folder / "preprocessor_config.json"
        edit(path, field, value)
        with hostile.refused(str(path), field, "is expected"):
            mmsrec_jax.load(folder)


@pytest.mark.parametrize("content, said", [
    ("", "not valid JSON"), ("[]", "a JSON object"), ("null", "a JSON object"), ("{", "not valid"),
    ("[" * 100_000, "nested too deeply"), ('{"a": NaN}', "NaN"), ('{"a": 1e999}', "too large"),
    ('{"a": ' + "9" * 9999 + "}", "not valid JSON"), ('{"a": "\\ud800"}', "half a character"),
])  # fmt: skip
def test_files_that_are_no_json(content, said, directory):
    folder = directory("llava_clip")
    for name in ("config.json", "preprocessor_config.json", "model.safetensors.index.json"):
        path = folder / name
        before = path.read_bytes() if path.exists() else None
        path.write_text(content)
        with hostile.refused(str(path), said):
            mmsrec_jax.load(folder)
        path.unlink()
        if before is not None:
            path.write_bytes(before)


def test_files_that_are_no_files(directory):
    folder = directory("llava_clip")
    for name in ("config.json", "preprocessor_config.json", "model.safetensors"):
        path = folder / name
        kept = path.rename(folder / "kept")
        for make in (os.mkfifo, Path.mkdir, lambda path: path.symlink_to("/dev/zero"),
                     lambda path: path.symlink_to(GOLDEN / "llava_clip" / path.name)):  # fmt: skip
            make(path)
            with hostile.refused(str(path), seconds=5):
                mmsrec_jax.load(folder)
            path.rmdir() if path.is_dir() else path.unlink()
        kept.rename(path)
    mmsrec_jax.load(folder)


def test_a_snapshot_that_links_to_blobs(tmp_path):
    """The cache of huggingface_hub."""
    cache = tmp_path / "models--a--b"
    snapshot = cache / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (cache / "blobs").mkdir()
    for path in (GOLDEN / "llama").iterdir():
        shutil.copy(path, cache / "blobs" / path.name)
        (snapshot / path.name).symlink_to(f"../../blobs/{path.name}")
    mmsrec_jax.load(snapshot)


@pytest.mark.parametrize("layers", [1000, 2**24])
def test_more_layers_than_the_weights_have(layers, directory):
    for family in ("llama", "qwen2_5_vl", "internvl"):
        folder = directory(family)
        edit(folder / "config.json", "text_config.num_hidden_layers", layers)
        with hostile.refused(str(folder / "config.json"), f"{layers} text layers", seconds=10):
            mmsrec_jax.load(folder)
    folder = directory("llava_clip")
    edit(folder / "config.json", "vision_config.num_hidden_layers", layers)
    with hostile.refused(f"{layers - 1} vision layers", seconds=10):
        mmsrec_jax.load(folder)


def test_a_size_that_the_weights_do_not_have(directory):
    """It is seen before anything of that size is made."""
    folder = directory("llama")
    edit(folder / "config.json", "vocab_size", 2**24)
    edit(folder / "config.json", "intermediate_size", 2**24)
    with hostile.refused("model.safetensors", "embed_tokens.weight has shape", seconds=10):
        mmsrec_jax.load(folder)


@pytest.mark.parametrize("weight_map, said", [
    ([], "weight_map is []"), ("x", "weight_map is 'x'"), ({"a": 7}, "'a' lies in 7"),
    ({"a": "../model.safetensors"}, "'../model.safetensors'"), ({"a": "/dev/zero"}, "'/dev/zero'"),
    ({"a": ""}, "lies in ''"), ({"a": ["x"]}, "lies in ['x']"),
])  # fmt: skip
def test_an_index_that_names_no_files_beside_it(weight_map, said, directory):
    folder = directory("llama")
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": weight_map}))
    with hostile.refused(str(path), said):
        mmsrec_jax.load(folder)


def header(entries: dict | bytes, data: bytes = b"\0" * 64, size: int | None = None) -> bytes:
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return (len(text) if size is None else size).to_bytes(8, "little") + text + data


GOOD = {"dtype": "F32", "shape": [4, 4], "data_offsets": [0, 64]}


@pytest.mark.parametrize("content", [
    b"", b"\0" * 8, header({}, size=2**63), header({}, size=10**9), header(b"{" * 10_000),
    header(b"[" * 50_000), header({"a": GOOD}, data=b""), header({"a": GOOD | {"shape": [8, 8]}}),
    header({"a": GOOD | {"shape": [-4, -4]}}), header({"a": GOOD | {"shape": [2**40, 2**40]}}),
    header({"a": GOOD | {"data_offsets": [64, 0]}}), header({"a": GOOD | {"data_offsets": [0]}}),
    header({"a": GOOD | {"dtype": "X7"}}), header({"a": GOOD, "b": GOOD}), header({"a": [1]}),
    header(b'{"a":' + json.dumps(GOOD).encode() + b',"a":' + json.dumps(GOOD).encode() + b"}"),
    header(b'{"a": NaN}'), header(b"\xff" * 40),
], ids=range(18))  # fmt: skip
def test_headers_of_safetensors(content, directory):
    folder = directory("llama")
    path = folder / "model.safetensors"
    path.write_bytes(content)
    with hostile.refused(str(path), "fetch", seconds=10):
        mmsrec_jax.load(folder)


def test_weights_of_another_type(directory):
    folder = directory("llama")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.embed_tokens.weight"] = np.zeros((48, 24), np.int64)
    save_file(tensors, folder / "model.safetensors")
    with hostile.refused("model.safetensors", "embed_tokens.weight is stored as I64"):
        mmsrec_jax.load(folder)


# --- the tokenizer -------------------------------------------------------------------------------


@pytest.mark.parametrize("name, content", [
    ("tokenizer.json", "{}"), ("tokenizer.json", "[" * 9999), ("tokenizer.json", "null"),
    ("tokenizer.json", '{"model": {"type": "BPE", "vocab": {"a": -1}, "merges": [["x", "y"]]}}'),
    ("tokenizer_config.json", "[]"), ("tokenizer_config.json", '{"added_tokens_decoder": 7}'),
    ("tokenizer_config.json", '{"model_max_length": "x"}'),
    ("tokenizer_config.json", '{"tokenizer_class": ["a"]}'),
    ("tokenizer_config.json", '{"auto_map": {"AutoTokenizer": ["evil.Evil", null]}, '
     '"tokenizer_class": "Evil"}'),
])  # fmt: skip
def test_tokenizers(name, content, tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *a: pytest.fail("the user was asked"))
    toy_items.make_tokenizer(tmp_path)
    (tmp_path / "evil.py").write_text("raise SystemExit('it ran')")
    (tmp_path / name).write_text(content)
    try:
        Chat(tokenizer.load(tmp_path))
    except UserError as error:
        hostile.check_line(str(error))
    else:
        assert "auto_map" in content, "what is in it does no harm only there"
    (tmp_path / name).unlink()
    os.mkfifo(tmp_path / name)
    with hostile.refused(name, "is a FIFO", seconds=5):
        tokenizer.load(tmp_path)
