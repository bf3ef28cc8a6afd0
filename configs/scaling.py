"""One model of a scaling study: plain SFT from scratch on the toyshop, held-out loss.

    for size in 16x1 32x1 48x2 64x2 96x3; do
        python launch/train.py --config=configs/scaling.py:size=$size --workdir=runs/scaling/$size
    done
    python launch/scaling.py runs/scaling/*

All sizes see the same examples in the same order. A size is called after hidden width x layers, or
after the published model whose shape it has (those are for pods: set config.mesh).
"""

from ml_collections import ConfigDict

from configs import base
from mmsrec_jax.runtime.config_utils import choose

# hidden, layers, heads, kv_heads, intermediate; of the tower: hidden, layers, heads, intermediate
SIZES = {
    "16x1": (16, 1, 1, 1, 48, 16, 1, 1, 32),
    "32x1": (32, 1, 2, 1, 96, 24, 1, 1, 48),
    "48x2": (48, 2, 2, 1, 144, 32, 1, 1, 64),
    "64x2": (64, 2, 2, 1, 192, 48, 2, 2, 96),
    "96x3": (96, 3, 3, 1, 288, 64, 2, 2, 128),
    "128x3": (128, 3, 4, 2, 384, 96, 2, 3, 192),
    "256x6": (256, 6, 4, 2, 768, 160, 4, 4, 320),
    "512x8": (512, 8, 8, 2, 1536, 256, 8, 4, 768),
    "1024x16": (1024, 16, 16, 4, 4096, 640, 16, 8, 1728),
    "3b": (2048, 36, 16, 2, 11008, 1280, 32, 16, 3420),
    "7b": (3584, 28, 28, 4, 18944, 1280, 32, 16, 3420),
    "32b": (5120, 64, 40, 8, 27648, 1280, 32, 16, 3456),
}
_ON_CPU = 256  # widest model for a CPU


def get_config(variant: str = "size=128x3") -> ConfigDict:
    known = {f"size={name}": "" for name in SIZES}
    size = choose(variant, known, file="configs/scaling.py").removeprefix("size=")
    config = base.get_config()
    hidden, layers, heads, kv_heads, intermediate, *tower = SIZES[size]
    with config.unlocked():
        config.method = "scaling"
        config.data.source = "toyshop"
        config.data.toyshop.update(num_users=1500, num_items=600)
        config.model.tiny.update(
            hidden=hidden, layers=layers, heads=heads, kv_heads=kv_heads, intermediate=intermediate,
        )  # fmt: skip
        names = ("vision_hidden", "vision_layers", "vision_heads", "vision_intermediate")
        config.model.tiny.update(dict(zip(names, tower, strict=True)))
        if hidden <= _ON_CPU:
            config.model.update(dtype="float32", remat="none")
        config.prompts.update(
            templates="terse", history=3, history_patches=0, fields=("title",), text_tokens=16
        )
        config.sft.update(
            trainable="full", steps=100, batch_size=16, length=136, patches=32, answers=8,
            targets=64, warmup_steps=10, workers=0, look_ahead=0, checkpoint_every=50,
            log_every=10,
            learning_rate=min(0.2 / hidden, 1e-2),  # as 1 / width: muP (arXiv 2203.03466) for Adam
        )  # fmt: skip
        config.sft.tasks.update(pointwise=0.5, rank=0.0, next_keywords=0.5, align=0.0)
        config.evaluation.update(users=500, batch_size=50, workers=0)
        if hidden > _ON_CPU:  # rows for 64 chips
            config.sft.batch_size = config.evaluation.batch_size = 64
    return config.lock()
