"""The optimizers of fine-tuning: AdamW, or Muon for the kernels inside the model (*ours*)."""

from typing import Any

import jax
import optax
from flax import nnx
from optax.contrib import MuonDimensionNumbers, muon

from mmsrec_jax.training.clipping import clip_by_global_norm

KINDS = ("adamw", "muon")

_B2 = 0.98
_RMS_OF_ADAMW = 0.2  # root mean square of its updates at a rate of 1 (arXiv 2502.16982)


def make_optimizer(
    kind: str,
    *,
    learning_rate: float,
    warmup_steps: int,
    steps: int,
    weight_decay: float,
    clip_norm: float,
) -> optax.GradientTransformation:
    """Gradients clipped by their global norm, then `kind`, one of `KINDS`, under a line up to
    `learning_rate` and a cosine down to a tenth of it.

    "muon" moves each kernel of a layer or a connector by the orthogonal factor of its momentum
    (Jordan et al. 2024), scaled so that its root mean square is that of an AdamW update (Liu et
    al., arXiv 2502.16982): one rate serves both. Embeddings, the head, norms, biases and adapters
    are updated by AdamW with Nesterov's momentum, as optax has it beside Muon.
    """
    schedule = optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=learning_rate,
        warmup_steps=warmup_steps,
        decay_steps=steps,
        end_value=0.1 * learning_rate,
    )
    if kind == "adamw":
        update = optax.adamw(schedule, b2=_B2, weight_decay=weight_decay)
    else:
        update = muon(
            schedule,
            adam_b2=_B2,
            weight_decay=weight_decay,
            adam_weight_decay=weight_decay,
            muon_weight_dimension_numbers=_matrices,
            consistent_rms=_RMS_OF_ADAMW,
        )
    return optax.chain(clip_by_global_norm(clip_norm), update)


def _matrices(params: Any) -> Any:
    """Of each variable of `params` the axes of a kernel's inputs and outputs; None: not Muon's."""
    return jax.tree.map(_matrix, params, is_leaf=lambda x: isinstance(x, nnx.Variable))


def _matrix(variable: nnx.Variable) -> MuonDimensionNumbers | None:
    known = variable.get_metadata()
    axes, inputs = known["logical_axes"], known.get("in_ndim")
    if inputs is None or "vocab" in axes:
        return None
    first = int(axes[0] == "layers")
    split = first + inputs
    return MuonDimensionNumbers(tuple(range(first, split)), tuple(range(split, len(axes))))
