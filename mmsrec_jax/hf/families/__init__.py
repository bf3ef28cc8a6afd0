"""The supported families, one file each: a config reader, a name map and an image processor.

A text-only family has neither tower nor image processor. A new family is such a file, a line in
`FAMILIES` and, unless one of ours fits, a tower (`mllm.TOWERS`). `hf.mapping` is the face to
the rest of the code.
"""

from mmsrec_jax.hf.families import (
    internvl,
    llama,
    llava,
    qwen2,
    qwen2_5_vl,
    qwen2_vl,
    qwen3,
    qwen3_vl,
)
from mmsrec_jax.hf.families.base import Family
from mmsrec_jax.runtime.errors import UserError

_MODULES = (qwen2_vl, qwen2_5_vl, qwen3_vl, llava, internvl, llama, qwen2, qwen3)
FAMILIES: dict[str, Family] = {module.FAMILY.model_type: module.FAMILY for module in _MODULES}


def find(model_type: str | None) -> Family:
    """The family of a `model_type`. Raises UserError that lists the supported ones."""
    if model_type not in FAMILIES:
        raise UserError(
            f"config.json: model_type {model_type!r} is not supported; "
            f"supported: {', '.join(FAMILIES)}"
        )
    return FAMILIES[model_type]
