"""Compiles every step of an experiment for an absent machine and reports what it needs.

    pip install "jax[tpu]"   # the compiler; no TPU is needed
    python launch/compile.py --config=configs/beauty.py --topology=v5e:8x8
    python launch/compile.py --config=configs/beauty.py:mllm_srec --topology=v5e:8x8
    python launch/compile.py --config=configs/beauty.py:cached --topology=v5e:8x8 \\
        --steps=cached,catalog --model=qwen2.5-vl-3b --config.mesh.fsdp=64 \\
        --config.cached.num_users=64   # also the memory of stored keys and values of 1M items
    python launch/compile.py --config=configs/beauty.py --topology=v5p:4x4x4 --slices=2 \\
        --model=qwen2.5-vl-32b --config.mesh.data=2 --config.mesh.fsdp=-1 \\
        --config.sft.batch_size=128 --steps=sft --out=sft.json

Only shapes are used, no weights: --model is a folder with a config.json or a published name. When a
step does not fit into the memory of a device, changes of the config are compiled too (at most
--tries), and a paragraph names the cheapest that fits; the exit status is 1. A step that writes and
waits for weights over the network is compiled on meshes that gather them once.
"""

import os
from contextlib import nullcontext

os.environ["JAX_PLATFORMS"] = "cpu"  # leaves accelerators to those who train on them
from absl import flags
from ml_collections import config_flags

from mmsrec_jax.runtime import startup

_CONFIG = config_flags.DEFINE_config_file("config", None, "Experiment.", lock_config=True)
_TOPOLOGY = flags.DEFINE_string(
    "topology", None, "Chips: v5e:8x8 (also v4, v5p, v6e, tpu7x), h100:1x1x8 or cpu:8."
)
_SLICES = flags.DEFINE_integer(
    "slices", 1, "Slices of that topology, on the slower network.", 1, 1024
)
_STEPS = flags.DEFINE_list(
    "steps", [], "Those to compile: sft, grpo, rollout, rank, cached, catalog, visual_answers, "
    "item_texts, writer, preferences. By default what the method and its forms need."
)  # fmt: skip
_MODEL = flags.DEFINE_string("model", "", "A folder with a config.json, or a published name.")
_HBM_GIB = flags.DEFINE_float(
    "hbm_gib", None, "Memory of a device, by default the chip's.", 0.001, 1_000_000.0
)
_QUICK = flags.DEFINE_bool(
    "quick", False, "Compile in half the time or less: the network is nearly the same, memory can "
    "be 30% less than training will need, traffic through HBM is more.",
)  # fmt: skip
_TRIES = flags.DEFINE_integer(
    "tries", 6, "Changes that are compiled at most for each step: to find one by which it fits, or "
    "by which one that writes is faster.", 0, 100,
)  # fmt: skip
_OUT = flags.DEFINE_string("out", None, "JSON file with everything, also gs://BUCKET/FILE.")
flags.DEFINE_string("local_dir", None, startup.LOCAL_DIR)


def main(argv: list[str]) -> int:
    startup.no_arguments(argv)
    from mmsrec_jax.methods.settings import Settings
    from mmsrec_jax.planning import report
    from mmsrec_jax.runtime.buckets import outputs
    from mmsrec_jax.runtime.settings import from_config

    config = _CONFIG.value
    if _MODEL.value:
        config.model.path = _MODEL.value
    with outputs.file(_OUT.value) if _OUT.value else nullcontext() as out:
        fits = report.run(
            from_config(Settings, config),
            topology=_TOPOLOGY.value,
            slices=_SLICES.value,
            steps=_STEPS.value,
            hbm_gib=_HBM_GIB.value,
            quick=_QUICK.value,
            tries=_TRIES.value,
            out=out,
        )
    return 0 if fits else 1


if __name__ == "__main__":
    startup.launch(main, required=["config", "topology"])
