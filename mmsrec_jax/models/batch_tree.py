"""Batches as JAX sees them: pytrees, checked where compiled functions begin."""

import chex
import jax

from mmsrec_jax.models.batch import Batch, Patches, fields_of
from mmsrec_jax.models.pair_batch import PairBatch

for _struct in (Patches, Batch, PairBatch):
    jax.tree_util.register_dataclass(_struct)


def check_shapes(batch: Batch, *needed: str) -> None:
    """Checks every field against its annotation in `Batch`; while tracing, so it costs no run time.

    needed: fields that must not be None.

    Raises:
      AssertionError: names the field.
    """
    sizes: dict[str, int] = {}
    for name in needed:
        if getattr(batch, name) is None:
            raise AssertionError(f"batch.{name} is None")
    for name, array, spec in fields_of(batch):
        message = f"batch.{name} must be {spec}"
        dtype, _, dims = spec.removesuffix("]").partition("[")
        names = dims.split(", ")
        chex.assert_rank(array, len(names), custom_message=message)
        known = [int(dim) if dim.isdigit() else sizes.get(dim) for dim in names]
        if sizes:
            found = ", ".join(f"{dim}={size}" for dim, size in sizes.items())
            message += f" with {found} of the fields before it"
        chex.assert_shape(array, known, custom_message=message)
        chex.assert_type(array, dtype, custom_message=message)
        sizes |= {dim: n for dim, n in zip(names, array.shape, strict=True) if not dim.isdigit()}
