"""What GRPO cannot work with, refused before anything runs."""

from mmsrec_jax.models import lora
from mmsrec_jax.models.mllm import MLLM
from mmsrec_jax.rl.settings import GRPOSettings
from mmsrec_jax.runtime.errors import UserError


def check(config: GRPOSettings, model: MLLM) -> None:
    """Of what rewards read, each reward checks itself.

    config: `config.summarizer`.

    Raises:
      UserError: no adapters, or sizes that split a group.
    """
    config.check("config.summarizer")
    if not lora.adapted(model):
        raise UserError(
            "config.summarizer.lora_rank: the model has no adapters, and the reference is the "
            "model without them; it must be at least 1"
        )
