"""Exports a run's model to a Hugging Face directory.

    python launch/export.py --workdir=runs/shop --out=DIR --merge          # for transformers
    python launch/export.py --workdir=runs/shop --out=DIR --adapter_only   # for peft
    python launch/export.py --workdir=runs/shop --out=DIR --step=sasrec    # for jax alone

A run that trained every weight takes neither flag. Works on the host alone, tensor by tensor.
"""

import jax
from absl import flags, logging

from mmsrec_jax.runtime import startup
from mmsrec_jax.runtime.buckets import outputs
from mmsrec_jax.runtime.buckets import run as buckets

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run, or gs://BUCKET/FOLDER.")
flags.DEFINE_string("local_dir", None, startup.LOCAL_DIR)
_OUT = flags.DEFINE_string("out", None, "New folder for the model, or gs://BUCKET/FOLDER.")
_STEP = flags.DEFINE_enum(
    "step",
    None,
    ["sft", "cached", "plain_sft", "text_sft", "summarizer", "warmup"]
    + ["sasrec", "bert4rec", "gru4rec", "molar", "hm4sr"],
    "Whose model. By default sft, or cached in a run that trains that form alone.",
)
_ADAPTER_ONLY = flags.DEFINE_bool("adapter_only", False, "The adapters alone, in peft's format.")
_MERGE = flags.DEFINE_bool("merge", False, "The whole model, adapters merged into it.")
_DTYPE = flags.DEFINE_enum(
    "dtype", None, ["bfloat16", "float32"], "Of the tensors; by default the run's."
)
_MAX_SHARD_GIB = flags.DEFINE_float(
    "max_shard_gib", None, "Size of a safetensors file; 4 if not set.", 0.001, 1_000_000.0
)
_TOP_K = flags.DEFINE_integer(
    "top_k", None, "Items that an exported sequential model returns; 100 if not set.", 1, 1_000_000
)
_LICENSE = flags.DEFINE_string("license", "", "License in the model card, e.g. apache-2.0.")
_BASE_MODEL = flags.DEFINE_string(
    "base_model",
    "",
    "Name of the base model on the Hugging Face Hub, e.g. Qwen/Qwen2.5-VL-3B-Instruct: for the "
    "model card, and for peft to find it.",
)


def main(argv: list[str]) -> None:
    startup.no_arguments(argv)
    jax.config.update("jax_platforms", "cpu")  # leaves accelerators to those who train on them
    from mmsrec_jax.methods import export

    with (
        buckets.reading(_WORKDIR.value) as workdir,
        outputs.folder(_OUT.value, new=True, last=export.READ_FIRST) as out,
    ):
        step = export.export(
            workdir.resolve(),
            out.resolve(),
            step=_STEP.value,
            adapter_only=_ADAPTER_ONLY.value,
            merge=_MERGE.value,
            dtype=_DTYPE.value,
            max_shard_bytes=int(_MAX_SHARD_GIB.value * 2**30) if _MAX_SHARD_GIB.value else None,
            top_k=_TOP_K.value,
            license=_LICENSE.value,
            base_model=_BASE_MODEL.value,
        )
    logging.info("export: %s of %s is in %s", step, _WORKDIR.value, _OUT.value)


if __name__ == "__main__":
    startup.launch(main, required=["workdir", "out"])
