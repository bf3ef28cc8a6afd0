"""A folder as a reader of the docs has it: raw files, a finished run on them, a tiny model."""

from pathlib import Path

import jax

from configs import base
from mmsrec_jax.data import toyshop
from mmsrec_jax.data.records import Histories, Item
from mmsrec_jax.data.toyshop import ToyshopSettings
from mmsrec_jax.hf import exporting, tiny_init
from mmsrec_jax.methods.sequential import Sequential
from mmsrec_jax.methods.settings import Settings
from mmsrec_jax.runtime import sharding
from mmsrec_jax.runtime.settings import from_config
from mmsrec_jax.runtime.workdir import run_steps

SHOP = ToyshopSettings(num_users=150, num_items=60, num_groups=3)


def make(folder: Path) -> None:
    """shop/ (atomic files), runs/shop (SASRec, finished) and models/tiny (a Qwen2.5-VL)."""
    items, histories, _ = toyshop.generate(SHOP)
    write_atomic(folder / "shop", items, histories)
    write_model(folder / "models" / "tiny", items)
    settings = from_config(Settings, sequential_config(folder / "shop"))
    workdir, mesh = folder / "runs" / "shop", sharding.make_mesh(devices=jax.devices()[:1])
    workdir.mkdir(parents=True)
    run_steps(workdir, Sequential(settings, workdir, mesh).steps())


def write_atomic(root: Path, items: list[Item], histories: Histories) -> None:
    (root / "images").mkdir(parents=True)
    lines = ["user_id:token\titem_id:token\ttimestamp:float"]
    for user, item, time in zip(
        histories.users[histories.user_of_row], histories.items, histories.timestamps, strict=True
    ):
        lines.append(f"{user}\t{items[item].id}\t{time}")
    (root / f"{root.name}.inter").write_text("\n".join(lines) + "\n")
    lines = ["item_id:token\ttitle:token_seq\tdescription:token_seq"]
    for item in items:
        lines.append(f"{item.id}\t{item.text['title']}\t{item.text['description']}")
        (root / "images" / f"{item.id}.png").write_bytes(item.image)
    (root / f"{root.name}.item").write_text("\n".join(lines) + "\n")


def write_model(directory: Path, items: list[Item]) -> None:
    settings = tiny_init.TinySettings(
        vocab_size=600, hidden=32, layers=2, intermediate=48, vision_layers=1, vision_hidden=24,
        vision_intermediate=32,
    )  # fmt: skip
    shape = directory.with_name("shape")
    tiny_init.write_directory(shape, settings, [item.text["title"] for item in items], [])
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    model = tiny_init.init(shape, dtype="float32", seed=0, mesh=mesh)
    exporting.write_model(directory, exporting.of_model(model), shape, dtype="float32")


def sequential_config(root: Path):
    config = base.get_config("sasrec")
    config.data.update(root=str(root), user_core=3, item_core=1)
    config.sasrec.update(
        length=8, dim=16, layers=1, mlp_dim=16, steps=20, evaluate_every=10, batch_size=8,
    )  # fmt: skip
    config.evaluation.update(negatives=(5,), k=(1, 5))
    return config
