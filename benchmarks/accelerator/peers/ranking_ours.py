"""Candidates scored by this package: suffixes on a shared prefix, one forward a batch of users."""

import functools
from typing import Any

import jax
import numpy as np
from flax import nnx

from benchmarks.accelerator import timing
from benchmarks.accelerator.peers import ours, side
from benchmarks.accelerator.peers.pieces import YES_NO
from benchmarks.accelerator.peers.users import CANDIDATES, KINDS, Users, speeds, users
from benchmarks.accelerator.record import Ask, attempt
from mmsrec_jax.inference import forward, scoring
from mmsrec_jax.inputs import batch as batches
from mmsrec_jax.inputs import example
from mmsrec_jax.models.batch import Batch
from mmsrec_jax.runtime.arrays import to_devices


def measure_ours(ask: Ask) -> None:
    """Both kinds of candidates."""
    cases = {f"ours, {kind}": kind for kind in KINDS}
    if cases.keys() <= ask.done:
        return
    mesh, programs = ours.mesh(), ours.Programs()
    model, seconds = ours.load(ask.tiny)
    attempt(ask, "ours, reading weights", functools.partial(dict, load_seconds=seconds))
    graphdef, weights = nnx.split(model)
    work = {kind: users(ask.tiny, kind) for kind in KINDS}
    batch = {kind: to_devices(user_batch(work[kind]), mesh) for kind in KINDS}

    def lower(kind: str) -> Any:
        run: Any = forward.compiled(graphdef, scoring.margins(YES_NO), mesh)
        with jax.set_mesh(mesh):
            return run.lower(weights, batch[kind])

    def row(case: str, kind: str) -> dict[str, Any]:
        compiled, compile_seconds = programs.take(case)
        call = functools.partial(compiled, weights, batch[kind])
        side.keep(ask, case.replace(" ", "_"), scores=np.asarray(call()[1]))
        seconds = timing.seconds(call, jax.block_until_ready, samples=3 if ask.tiny else 5)
        return speeds(work[kind], seconds) | {
            "memory_gib": ours.program_gib(compiled),
            "compile_seconds": compile_seconds,
        }

    waiting = {case: kind for case, kind in cases.items() if case not in ask.done}
    for case, kind in waiting.items():
        programs.start(case, functools.partial(lower, kind))
    programs.wait()
    for case, kind in waiting.items():
        attempt(ask, case, functools.partial(row, case, kind))


def user_batch(work: Users) -> Batch:
    """A row a user: prefix, then candidates that do not see each other."""
    labels = [1] + [0] * (CANDIDATES - 1)
    examples = [
        example.with_suffixes(
            user.prefix, user.candidates, labels, yes_no_ids=YES_NO, positive_weight=1.0, index=i
        )
        for i, user in enumerate(work.users)
    ]
    images = [image for each in examples for image in each.images]
    room = batches.Room(
        rows=len(examples),
        length=max(map(len, examples)),
        targets=CANDIDATES,
        patches=max(each.num_patches for each in examples),
        patch_width=images[0]["patches"].shape[1] if images else 0,
        answers=CANDIDATES,
        packed=False,
    )
    return batches.collate([[each] for each in examples], room)
