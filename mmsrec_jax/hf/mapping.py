"""What Hugging Face calls things: config.json to MLLMConfig, tensor names to our stacked leaves.

What differs between model types is in `families`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmsrec_jax.hf import families, fields
from mmsrec_jax.hf.families.base import ParamSpec, located
from mmsrec_jax.hf.processor import read_json
from mmsrec_jax.models.config import MLLMConfig
from mmsrec_jax.runtime.errors import UserError, first_line

__all__ = [
    "ParamSpec",
    "canonical",
    "config_from_hf",
    "ignored",
    "is_text_only",
    "leaves",
    "module",
    "processor_of",
]


def leaves(config: MLLMConfig) -> Iterator[ParamSpec]:
    """Every parameter of `MLLM(config)`."""
    return families.find(config.family).leaves(config)


# Published checkpoints, transformers 5 on disk and in memory put different prefixes.
_PREFIXES = (
    ("model.language_model.", "text."),
    ("language_model.model.", "text."),
    ("language_model.lm_head.", "lm_head."),
    ("model.visual.", "visual."),
    ("model.vision_tower.", "vision_tower."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
    ("model.", "text."),
)
# Parts of names that transformers has renamed since.
_RENAMED = (
    ("vision_tower.vision_model.", "vision_tower."),
    (".attention.attention.query.", ".attention.q_proj."),
    (".attention.attention.key.", ".attention.k_proj."),
    (".attention.attention.value.", ".attention.v_proj."),
    (".attention.output.dense.", ".attention.o_proj."),
)


def canonical(name: str) -> str:
    """One name for all that a tensor is called on disk: the prefix says the part it belongs to."""
    for prefix, ours in _PREFIXES:
        if name.startswith(prefix):
            name = ours + name.removeprefix(prefix)
            break
    for theirs, ours in _RENAMED:
        name = name.replace(theirs, ours)
    return name


def module(name: str, config: MLLMConfig) -> str:
    """What transformers 5 calls in memory a tensor of canonical name, as peft's files do."""
    if name.startswith("text."):
        decoder = "model." if config.vision is None else "model.language_model."
        return decoder + name.removeprefix("text.")
    return name if name.startswith("lm_head.") else "model." + name


def ignored(name: str, config: MLLMConfig) -> bool:
    """Tensors in canonical name that carry nothing the model needs: rope buffers, the copy of a
    tied head, and what the family says."""
    return (
        name.endswith("rotary_emb.inv_freq")
        or (config.text.tied and name == "lm_head.weight")
        or families.find(config.family).unused(name, config)
    )


def config_from_hf(raw: dict, processor: Any = None) -> MLLMConfig:
    """MLLMConfig of a `config.json`; its `model_type` selects the family.

    `processor`, of the same directory, gives the mean and standard deviation of pixels; without it
    they are the family's usual ones. Raises UserError for model types and settings that are not
    supported, for fields that are missing and for values that a field cannot have.
    """
    raw = fields.config(raw)
    try:
        config = families.find(raw.get("model_type")).config(raw, processor)
    except (TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
        raise UserError(
            f"config.json: its fields contradict each other ({first_line(error)}); fetch it again"
        ) from error
    if config.image_token_id is not None and config.image_token_id >= config.text.vocab_size:
        raise UserError(
            f"config.json: the image token {config.image_token_id} is none of the "
            f"{config.text.vocab_size} of vocab_size"
        )
    return config


def is_text_only(directory: str | Path) -> bool:
    """Whether the model of a Hugging Face directory has no vision tower, by its config.json.

    Raises UserError for unsupported families and settings.
    """
    path = Path(directory) / "config.json"
    with located(path):
        return config_from_hf(read_json(path)).vision is None


def processor_of(directory: str | Path) -> Any:
    """The image processor of a Hugging Face directory, by the family of its config.json; None for a
    text-only family.

    Raises UserError for an unsupported family and for unusable files.
    """
    path = Path(directory) / "config.json"
    raw = read_json(path)
    with located(path):
        family = families.find(fields.config(raw).get("model_type"))
    return family.processor(Path(directory))
