"""Frozen candidate lists scored by the multimodal model."""

import functools
from collections import Counter

import jax
import numpy as np
from jax.sharding import Mesh

from mmsrec_jax.inference.forward import Compute, in_order, per_row
from mmsrec_jax.inference.yes_no import yes_no_margins
from mmsrec_jax.inputs.recommend import CandidateSource
from mmsrec_jax.models.batch import Batch
from mmsrec_jax.models.batch_tree import check_shapes
from mmsrec_jax.models.mllm import MLLM
from mmsrec_jax.runtime.progress import Progress


@functools.cache
def margins(yes_no_ids: tuple[int, int]) -> Compute:
    """What `candidate_scores` computes of each batch: ids (yes, no) to (model, batch) ->
    float32[B, C]."""

    def compute(model: MLLM, batch: Batch) -> jax.Array:
        check_shapes(batch, "suffix_ids", "answer_positions")
        assert batch.answer_positions is not None
        return yes_no_margins(model, model(batch), batch.answer_positions, yes_no_ids)

    return compute


def candidate_scores(
    model: MLLM,
    source: CandidateSource,
    *,
    name: str,
    num_candidates: int,
    batch_size: int,
    patches: int,
    workers: int,
    yes_no_ids: tuple[int, int],
    mesh: Mesh,
    counts: Counter | None = None,
) -> np.ndarray:
    """logit(yes) - logit(no) of every candidate of every row: float32[rows, num_candidates].

    It ranks as p(yes) / (p(yes) + p(no)) does, the paper's score, and has no ties where that one
    is 0 or 1 in float32. A user's history is read once for all candidates, which are suffixes.

    Arguments are those of `forward.in_order`; num_candidates: of a row.
    """
    dataset = in_order(
        source,
        mesh,
        batch_size=batch_size,
        length=source.length,
        patches=patches,
        answers=num_candidates,
        workers=workers,
        counts=counts,
        section="config.evaluation",
    )
    found = np.full((len(source), num_candidates), np.nan, np.float32)
    progress = Progress(f"score {name}", len(source), unit="lists")
    for index, values in per_row(model, dataset, margins(yes_no_ids), progress=progress, mesh=mesh):
        found[index] = values
    return found
