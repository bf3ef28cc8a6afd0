"""Settings with which GRPO cannot work, refused before anything runs."""

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
    if not lora.adapted(model):
        raise UserError(
            "config.summarizer.lora_rank: the model has no adapters, and the reference is the "
            "model without them; it must be at least 1"
        )
    group, micro_batch = config.num_generations, config.micro_batch
    if micro_batch % group:
        raise UserError(
            f"config.summarizer.micro_batch={micro_batch} would split a group of "
            f"config.summarizer.num_generations={group}; make it a multiple"
        )
    completions = config.batch_size * group
    if completions % micro_batch:
        raise UserError(
            f"config.summarizer.micro_batch={micro_batch} does not divide "
            f"config.summarizer.batch_size * num_generations = {completions}"
        )
