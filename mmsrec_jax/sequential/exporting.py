"""A sequential recommender as a program that runs without this package: histories of item ids in,
the best items out, for any batch size, on CPU, CUDA and TPU."""

import functools
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from mmsrec_jax.hf.exporting import new_folder
from mmsrec_jax.runtime import digests, files
from mmsrec_jax.runtime.errors import UserError
from mmsrec_jax.sequential import registry, standalone
from mmsrec_jax.sequential.base import SequentialConfig
from mmsrec_jax.sequential.recommender import SequentialRecommender, scores_of
from mmsrec_jax.sequential.standalone import ABOUT, FORMAT, ITEMS, PROGRAM, WEIGHTS

PLATFORMS = ("cpu", "cuda", "tpu")


def write(
    directory: Path,
    recommender: SequentialRecommender,
    ids: Sequence[str],
    *,
    top_k: int,
    card: str,
) -> None:
    """Writes the folder that `standalone.Recommender` reads; there at once or not at all.

    Beside the program are its weights, the ids of the items in the order in which the program
    counts them, `recommend.py`, which recommends from the folder, and `card` as README.md.

    Args:
      directory: does not exist yet, or is empty.
      ids: of the items, in the catalog's order.
      top_k: items that a call returns; at most as many as there are.

    Raises:
      UserError: `directory` is not empty, ids of another catalog, flatbuffers is not installed.
    """
    config = recommender.config
    if len(ids) != config.num_items:
        raise UserError(f"{len(ids)} item ids for a model of {config.num_items} items")
    if importlib.util.find_spec("flatbuffers") is None:
        raise UserError("the package flatbuffers, which jax.export needs, is not installed; run "
                        "pip install flatbuffers")  # fmt: skip
    top_k = min(top_k, config.num_items)
    weights = recommender.arrays()
    program = _program(config, weights, top_k).serialize()
    with new_folder(directory) as partial:
        np.savez(partial / WEIGHTS, **weights)  # type: ignore[arg-type]
        (partial / PROGRAM).write_bytes(program)
        files.write_json(partial / ITEMS, list(map(str, ids)))
        about = {
            "format": FORMAT,
            "model": registry.to_json(config),
            "length": config.length,
            "top_k": top_k,
            "uses_times": recommender.uses_times,
            "platforms": PLATFORMS,
            "jax": jax.__version__,
            "files": {name: digests.whole(partial / name) for name in (PROGRAM, WEIGHTS, ITEMS)},
        }
        files.write_json(partial / ABOUT, about)
        (partial / "recommend.py").write_bytes(Path(standalone.__file__).read_bytes())
        (partial / "README.md").write_text(card, encoding="utf-8")


def _program(
    config: SequentialConfig, weights: Mapping[str, np.ndarray], top_k: int
) -> export.Exported:
    """(weights, ids int32[b, length], times int32[b, length], seen int32[b, s]) -> (scores
    float32[b, top_k], items int32[b, top_k]), best first. ids are right-padded with -1; items of
    `seen`, padded with -1, are left out: their scores are -inf."""
    batch, seen = export.symbolic_shape("b, s")
    shapes = (
        {name: jax.ShapeDtypeStruct(w.shape, w.dtype) for name, w in weights.items()},
        jax.ShapeDtypeStruct((batch, config.length), jnp.int32),
        jax.ShapeDtypeStruct((batch, config.length), jnp.int32),
        jax.ShapeDtypeStruct((batch, seen), jnp.int32),
    )
    compiled = jax.jit(functools.partial(_top, config, top_k))
    return export.export(compiled, platforms=PLATFORMS)(*shapes)


def _top(
    config: SequentialConfig,
    top_k: int,
    weights: Mapping[str, jax.Array],
    ids: jax.Array,
    times: jax.Array,
    seen: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    scores = scores_of(config, weights, ids, times)
    seen = jnp.where(seen < 0, config.num_items, seen)  # which is no column: dropped
    rows = jnp.arange(scores.shape[0])[:, None]
    scores, items = jax.lax.top_k(scores.at[rows, seen].set(-jnp.inf, mode="drop"), top_k)
    return scores, items.astype(jnp.int32)
