"""Rollouts of this package: `rl.rollout`, one prefill a prompt and one compiled loop."""

import functools
from typing import Any

import jax
import numpy as np
from flax import nnx

from benchmarks.accelerator import timing
from benchmarks.accelerator.peers import ours, side
from benchmarks.accelerator.peers.prompts import KEPT, Prompts, prompts
from benchmarks.accelerator.record import Ask, attempt
from mmsrec_jax.inference.sampler import Generation, Sampling
from mmsrec_jax.inputs import batch as batches
from mmsrec_jax.inputs import example
from mmsrec_jax.models.batch import Batch
from mmsrec_jax.rl import rollout
from mmsrec_jax.runtime.arrays import to_devices

SAMPLED, GREEDY = "ours, sampled", "ours, greedy"
_NOTHING = np.zeros(0, np.int32)


def measure_ours(ask: Ask) -> None:
    """Sampled and greedy; what they write is kept for `rollouts_theirs`."""
    if {SAMPLED, GREEDY} <= ask.done:
        return
    work, mesh, programs = prompts(ask.tiny), ours.mesh(), ours.Programs()
    model, seconds = ours.load(ask.tiny)
    attempt(ask, "ours, reading weights", functools.partial(dict, load_seconds=seconds))
    graphdef, adapters, *others = nnx.split(model, nnx.LoRAParam, ...)
    with jax.set_mesh(mesh):
        batch = to_devices(prompt_batch(work), mesh)
        items = np.arange(len(work.pieces), dtype=np.int32)
        for case, temperature in ((SAMPLED, 1.0), (GREEDY, 0.0)):
            sampling = Sampling(
                num_generations=work.samples, max_new_tokens=work.new_tokens, eos_ids=(),
                pad_id=0, gather_weights=False, temperature=temperature, suppress=work.suppress,
            )  # fmt: skip
            roll: Any = rollout.make_rollout(graphdef, sampling, seed=0)
            programs.start(
                case, functools.partial(roll.lower, adapters, others[0], batch, items, 0)
            )
    programs.wait()
    written: dict[str, np.ndarray] = {}

    def row(case: str) -> dict[str, Any]:
        compiled, compile_seconds = programs.take(case)
        call = functools.partial(compiled, adapters, others[0], batch, items, 0)
        found: Generation = call()
        assert (np.asarray(found.lengths) == work.new_tokens).all()
        name = case.removeprefix("ours, ")
        written[f"{name}_tokens"] = np.asarray(found.tokens)
        written[f"{name}_logprobs"] = np.asarray(found.logprobs)
        seconds = timing.seconds(call, jax.block_until_ready, samples=3 if ask.tiny else 5)
        return {
            "seconds": seconds,
            "tokens_per_second": work.tokens / seconds,
            "memory_gib": ours.program_gib(compiled),
            "compile_seconds": compile_seconds,
        }

    for case in (SAMPLED, GREEDY):
        attempt(ask, case, functools.partial(row, case))
    side.keep(ask, KEPT, **written)


def prompt_batch(work: Prompts) -> Batch:
    """One prompt a row, padded on the right."""
    examples = [example.sequence(piece, _NOTHING, index=i) for i, piece in enumerate(work.pieces)]
    room = batches.Room(
        rows=len(examples),
        length=max(map(len, examples)),
        targets=0,
        patches=max(each.num_patches for each in examples),
        patch_width=examples[0].images[0]["patches"].shape[1],
        packed=False,
    )
    return batches.collate([[each] for each in examples], room).model_inputs()
