"""Frozen candidate lists scored by the multimodal model."""

import functools

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from mmsrec_jax import sharding
from mmsrec_jax.decoding.candidates import verdict_margins
from mmsrec_jax.inputs import pipeline
from mmsrec_jax.inputs.sources import CandidateSource
from mmsrec_jax.models.mllm import MLLM
from mmsrec_jax.progress import Progress


def candidate_scores(
    model: MLLM,
    source: CandidateSource,
    *,
    name: str,
    num_candidates: int,
    batch_size: int,
    patches: int,
    workers: int,
    verdicts: tuple[int, int],
    mesh: Mesh,
) -> np.ndarray:
    """logit(yes) - logit(no) of every candidate of every row: float32[rows, num_candidates].

    It ranks as p(yes) / (p(yes) + p(no)) does, the paper's score, and has no ties where that one
    is 0 or 1 in float32. A user's history is read once for all candidates, which are branches.
    """
    graphdef, state = nnx.split(model)
    dataset = pipeline.batches(
        source,
        batch_size=batch_size,
        length=source.length,
        patches=patches,
        answers=num_candidates,
        shuffle=False,
        repeat=False,
        pack=False,
        workers=workers,
    )

    @functools.partial(jax.jit)
    def margins(state, batch):
        model = nnx.merge(graphdef, state)
        return verdict_margins(model, model(batch), batch["answer_positions"], verdicts)

    rows = sharding.batch_sharding(mesh)
    found = np.full((len(source), num_candidates), np.nan, np.float32)
    progress = Progress(f"score {name}", len(source), unit="users")
    with jax.set_mesh(mesh):
        state = jax.device_put(state, sharding.shardings(state, mesh))
        iterator = iter(dataset)
        try:
            for batch in iterator:
                index = batch.pop("index")
                real = index >= 0
                placed = {key: jax.device_put(value, rows) for key, value in batch.items()}
                found[index[real]] = np.asarray(margins(state, placed))[real]
                progress.update(int(real.sum()))
        finally:
            iterator.close()
    return found
