"""Candidates scored by this package: suffixes on a shared prefix, one forward a batch of users."""

import contextlib
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.accelerator import timing
from benchmarks.accelerator.peers import ours, side
from benchmarks.accelerator.peers.pieces import YES_NO
from benchmarks.accelerator.peers.users import CANDIDATES, KINDS, Users, allowed, speeds, users
from benchmarks.accelerator.record import Ask, OutOfTime, attempt
from mmsrec_jax.inference import forward, scoring
from mmsrec_jax.inputs import batch as batches
from mmsrec_jax.inputs import example
from mmsrec_jax.models import attention
from mmsrec_jax.models.batch import Batch
from mmsrec_jax.runtime.arrays import to_devices

# Kind of candidates and implementation of attention (None: what the package chooses) of each case.
_Cases = dict[str, tuple[str, attention.Implementation | None]]
_GROUP_SECONDS = 45.0  # that the other implementations of attention may take on an H100


def measure_ours(ask: Ask) -> None:
    """Both kinds with the attention that the package chooses, then with every other one."""
    defaults: _Cases = {f"ours, {kind}": (kind, None) for kind in KINDS}
    others: _Cases = {
        f"ours, {kind}, attention {name}": (kind, name)
        for kind in KINDS
        for name in ours.IMPLEMENTATIONS
        if name != attention.implementation(jnp.bfloat16, queries=1024)  # the package's choice
    }
    if defaults.keys() | others.keys() <= ask.done:
        return
    mesh, programs = ours.mesh(), ours.Programs()
    model, seconds = ours.load(ask.tiny)
    attempt(ask, "ours, reading weights", functools.partial(dict, load_seconds=seconds))
    graphdef, weights = nnx.split(model)
    work = {kind: users(ask.tiny, kind) for kind in KINDS}
    batch = {kind: to_devices(user_batch(work[kind]), mesh) for kind in KINDS}

    def lower(kind: str, name: attention.Implementation | None) -> Any:
        # A graph of its own: `forward.compiled` remembers what it traced for one.
        compute = functools.partial(scoring.margins(YES_NO))
        run: Any = forward.compiled(graphdef, compute, mesh)
        forced = contextlib.nullcontext() if name is None else attention.force(name)
        with jax.set_mesh(mesh), forced:
            return run.lower(weights, batch[kind])

    def row(case: str, kind: str) -> dict[str, Any]:
        compiled, compile_seconds = programs.take(case)
        call = functools.partial(compiled, weights, batch[kind])
        scores = np.asarray(call()[1])
        default = side.kept(ask, f"ours,_{kind}")
        if default is not None and case not in defaults:
            apart = float(np.abs(scores - default["scores"]).max())
            side.need_agreement("distance of scores", apart, 0.0, allowed(ask.tiny))
        side.keep(ask, case.replace(" ", "_"), scores=scores)
        seconds = timing.seconds(call, jax.block_until_ready, samples=3 if ask.tiny else 5)
        return speeds(work[kind], seconds) | {
            "memory_gib": ours.program_gib(compiled),
            "compile_seconds": compile_seconds,
        }

    for group in (defaults, others):
        if not ask.tiny and group is others and ask.seconds_left() < _GROUP_SECONDS:
            raise OutOfTime("before other implementations of attention")
        waiting = {case: value for case, value in group.items() if case not in ask.done}
        for case, (kind, name) in waiting.items():
            programs.start(case, functools.partial(lower, kind, name))
        programs.wait()
        for case, (kind, _) in waiting.items():
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
