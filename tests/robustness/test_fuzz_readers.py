"""Every reader, fed with valid files that are damaged in many ways, reads them or says in one line
why it does not: no traceback, no hang, no flood of memory.

Six to 400 damages of each run with the other tests; `make robustness FUZZ_SECONDS=600` goes on for
ten minutes a reader. A failure names the seed: `FUZZ_SEED=<seed>` begins with it.
"""

import gzip
import io
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import hostile
import numpy as np
import own_files_targets
import published_targets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import toy_items
from fuzzing import (
    SECONDS,
    SEED,
    Target,
    either,
    for_seconds,
    fuzz,
    json_lines,
    json_value,
    unpacked,
)
from mutate import damaged_bytes, damaged_json, damaged_template
from PIL import Image

import mmsrec_jax
from mmsrec_jax.data import atomic, images, item_features, item_lines, store
from mmsrec_jax.data.published import microlens
from mmsrec_jax.data.records import Histories
from mmsrec_jax.evaluation import results
from mmsrec_jax.evaluation.comparison import external
from mmsrec_jax.evaluation.metrics import Ranks
from mmsrec_jax.evaluation.protocols import Candidates
from mmsrec_jax.hf import tokenizer
from mmsrec_jax.inference.text_store import TextStore
from mmsrec_jax.inputs import chains
from mmsrec_jax.prompts import Chat, chat_template
from mmsrec_jax.retrieval import table
from mmsrec_jax.retrieval.similar import Neighbors
from mmsrec_jax.runtime.errors import UserError

GOLDEN = Path(__file__).parents[1] / "golden"


def encoded(format: str, size: tuple[int, int] = (20, 15), **options: object) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format, **options)
    return stream.getvalue()


# --- data ----------------------------------------------------------------------------------------


def _make_shop(folder: Path, *, packed: bool = False) -> None:
    root = folder / "shop"
    (root / "images").mkdir(parents=True)
    rows = "".join(f"u{i % 5}\tm{i % 7}\t{i % 5 + 1}\t{1.7e9 + i:.0f}\n" for i in range(30))
    inter = ("user_id:token\titem_id:token\trating:float\ttimestamp:float\n" + rows).encode()
    if packed:
        (root / "shop.inter.gz").write_bytes(gzip.compress(inter))
    else:
        (root / "shop.inter").write_bytes(inter)
    items = "".join(f"m{i}\tmug {i}\tred\n" for i in range(7))
    (root / "shop.item").write_text("item_id:token\ttitle:token_seq\tcolor:token\n" + items)
    for i, format in enumerate(("JPEG", "PNG")):
        (root / "images" / f"m{i}.{format.lower()}").write_bytes(encoded(format))


def _read_shop(folder: Path) -> None:
    items, histories, report = atomic.read(folder / "shop", attribute_fields=["color"])
    assert len(items) and len(histories) and report.read
    for item in items:
        if item.image is not None:
            _read_image(item.image)


def _read_image(data: bytes) -> None:
    try:
        pixels = images.decode(data)
    except images.ImageError as error:
        assert "\n" not in str(error)
    else:
        assert pixels.dtype == np.uint8 and pixels.shape[2] == 3


def _make_lines(folder: Path) -> None:
    (folder / "n.jpg").write_bytes(encoded("JPEG"))
    rows = [{"id": "a", "title": "lamp", "image": "n.jpg"}, {"id": "b", "title": "é", "x": "y"}]
    (folder / "new.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def _make_images(folder: Path) -> None:
    for format in ("JPEG", "PNG", "WEBP", "GIF"):
        (folder / f"x.{format.lower()}").write_bytes(encoded(format))
    (folder / "wide.png").write_bytes(encoded("PNG", (3, 900)))


def _read_images(folder: Path) -> None:
    for path in sorted(folder.iterdir()):
        _read_image(path.read_bytes())


def _make_store(folder: Path) -> None:
    store.write(folder / "store", toy_items.items(), toy_items.histories())


def _read_store(folder: Path) -> None:
    catalog, histories = store.open(folder / "store")
    assert len(list(catalog)) == len(catalog) and len(histories)


def _make_features(folder: Path) -> None:
    np.save(folder / "x.npy", np.arange(12, dtype=np.float32).reshape(4, 3))


# --- models --------------------------------------------------------------------------------------


def _make_model(family: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        for name in ("config.json", "preprocessor_config.json", "model.safetensors"):
            if (GOLDEN / family / name).exists():
                shutil.copy(GOLDEN / family / name, folder / name)

    return make


def _read_model(folder: Path) -> None:
    model = mmsrec_jax.load(folder)
    if model.processor is not None:
        try:
            model.processor.patchify(np.zeros((31, 17, 3), np.uint8))
        except UserError as error:
            hostile.check_line(str(error))


def _header(data: bytes, rng: random.Random) -> bytes:
    """The head of a safetensors file as JSON, of another length or with other numbers."""
    size = int.from_bytes(data[:8], "little")
    head = damaged_json(data[8 : 8 + size].decode(), rng)
    said = len(head) if rng.random() < 0.8 else rng.choice((0, 1, 2**63, len(data), len(head) + 1))
    return said.to_bytes(8, "little") + head + data[8 + size :]


def _make_tokenizer(folder: Path) -> None:
    toy_items.make_tokenizer(folder)


def _read_tokenizer(folder: Path) -> None:
    loaded = tokenizer.load(folder)
    chat = Chat(loaded)
    chat.encode(chat.head + chat.clean("a <|im_end|> lamp") + chat.middle)


_TRAINED: dict[str, object] = {}


def _make_template(folder: Path) -> None:
    (folder / "template.jinja").write_text(tokenizer.CHAT_TEMPLATE)
    if not _TRAINED:
        _TRAINED["tokenizer"] = toy_items.make_tokenizer(folder / "tokenizer")


def _template(data: bytes, rng: random.Random) -> bytes:
    return damaged_template(data.decode(), rng).encode()


def _read_template(folder: Path) -> None:
    loaded = _TRAINED["tokenizer"]
    loaded.chat_template = (folder / "template.jinja").read_text()
    Chat(loaded)


# --- texts and tables ----------------------------------------------------------------------------


def _make_texts(folder: Path) -> None:
    texts = TextStore(folder / "texts.jsonl", key="item")
    texts.append([(i, {"keywords": "red, oak"}, "hash") for i in range(5)])


def _histories() -> Histories:
    return toy_items.histories()


def _make_chains(folder: Path) -> None:
    user = str(_histories().users[0])
    rows = [{"user": user, "position": i, "chain": "Prefers oak."} for i in range(2)]
    (folder / "chains.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def _make_ranks(folder: Path) -> None:
    one = np.arange(6, dtype=np.int32)
    top = np.zeros((6, 3), np.int32)
    setting = results.Setting("data", "leave_one_out", "full", "digest")
    results.write(
        folder / "ranks-x-full.parquet",
        Ranks(one, one, one + 1, one + 9, one * 0, top),
        system="x", setting=setting, seed=0, config="c",
    )  # fmt: skip
    Candidates(np.stack([one, one], 1), np.stack([one, one + 6], 1), one * 0, 0).write(
        folder / "candidates-sampled@1.parquet"
    )
    found = Neighbors(top, top, top.astype(np.float32))
    table.write(folder / "neighbors.parquet", np.stack([one, one], 1), found)


def _read_ranks(folder: Path) -> None:
    readers: dict[str, Callable[[Path], object]] = {
        "ranks-x-full.parquet": results.read,
        "candidates-sampled@1.parquet": Candidates.read,
        "neighbors.parquet": lambda path: table.read_items(path, np.array([[1, 1]])),
    }
    for name, read in readers.items():
        try:
            read(folder / name)
        except UserError as error:
            hostile.check_line(str(error))


def _make_external(folder: Path) -> None:
    columns = {"user": ["u0", "u0", "u1"], "item": ["a", "b", "a"], "score": [0.5, 1.0, -2.0]}
    pq.write_table(pa.table(columns), folder / "scores.parquet")
    rows = "".join(f"u{i % 3},{'abc'[i % 3]},{i}.5\n" for i in range(3))
    (folder / "scores.csv").write_text("user,item,score\n" + rows)


def _read_external(folder: Path) -> None:
    for name in ("scores.parquet", "scores.csv"):
        try:
            external.read(folder / name, np.array(["u0", "u1", "u2"]), np.array(["a", "b", "c"]))
        except UserError as error:
            hostile.check_line(str(error))


_CONFIG = {"config.json": json_value, "preprocessor_config.json": json_value}
TARGETS = {
    "atomic": Target(
        _make_shop,
        _read_shop,
        {".inter": damaged_bytes, ".item": damaged_bytes, "m0.jpeg": damaged_bytes},
        150,
    ),
    "atomic_gz": Target(
        lambda folder: _make_shop(folder, packed=True), _read_shop, {".gz": unpacked}, 150
    ),
    "item_lines": Target(
        _make_lines,
        lambda folder: item_lines.read(folder / "new.jsonl"),
        {".jsonl": either(json_lines, damaged_bytes), ".jpg": damaged_bytes},
        300,
    ),
    "images": Target(
        _make_images,
        _read_images,
        dict.fromkeys((".jpeg", ".png", ".webp", ".gif"), damaged_bytes),
        200,
    ),
    "store": Target(
        _make_store,
        _read_store,
        {"manifest.json": json_value, ".parquet": damaged_bytes, "features.json": json_value,
         "dataset_info.json": json_value, "00000-of-00001": damaged_bytes},
        20,
    ),
    "features": Target(
        _make_features,
        lambda folder: item_features.read({"x": str(folder / "x.npy")}, 4),
        {".npy": damaged_bytes},
        400,
    ),
    **{
        f"model_{family}": Target(_make_model(family), _read_model, _CONFIG, 8)
        for family in ("llama", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "llava_clip", "internvl")
    },
    "safetensors": Target(
        _make_model("llama"),
        _read_model,
        {".safetensors": either(_header, damaged_bytes)},
        40,
    ),
    "tokenizer": Target(
        _make_tokenizer,
        _read_tokenizer,
        {"tokenizer.json": json_value, "tokenizer_config.json": json_value},
        10,
    ),
    "template": Target(_make_template, _read_template, {".jinja": _template}, 6),
    "texts": Target(
        _make_texts,
        lambda folder: list(TextStore(folder / "texts.jsonl", key="item")),
        {".jsonl": either(json_lines, damaged_bytes)},
        300,
    ),
    "chains": Target(
        _make_chains,
        lambda folder: chains.read(folder / "chains.jsonl", _histories()),
        {".jsonl": either(json_lines, damaged_bytes)},
        300,
    ),
    "ranks": Target(_make_ranks, _read_ranks, {".parquet": damaged_bytes}, 100),
    "external": Target(
        _make_external, _read_external, {".parquet": damaged_bytes, ".csv": damaged_bytes}, 8
    ),
    **own_files_targets.TARGETS,
    **published_targets.TARGETS,
}  # fmt: skip


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(chat_template, "_SECONDS", 1)


@pytest.fixture(autouse=True)
def no_digests(monkeypatch):
    """Files of these tests are not the published ones."""
    monkeypatch.setattr(microlens, "_DIGESTS", {})


@pytest.mark.parametrize("name", TARGETS)
def test_damaged_files_are_read_or_refused_in_one_line(name, tmp_path):
    target = TARGETS[name]
    fuzz(name, target, tmp_path, range(SEED, SEED + target.cases))


@pytest.mark.robustness
@pytest.mark.skipif(not SECONDS, reason="FUZZ_SECONDS is not set")
@pytest.mark.parametrize("name", TARGETS)
def test_for_longer(name, tmp_path):
    tried = fuzz(name, TARGETS[name], tmp_path, for_seconds(SECONDS))
    print(f"{name}: {tried} damaged files in {SECONDS:g} s")
