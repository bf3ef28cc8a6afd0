"""A trained sequence model, ready to score: weights, configuration, and chunked scoring."""

import dataclasses
import functools
import json
import math
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors.numpy import load_file, save_file

from mmsrec_jax.errors import UserError
from mmsrec_jax.models.heads.sasrec import SASRec, SASRecConfig
from mmsrec_jax.models.heads.sequences import right_padded
from mmsrec_jax.sharding import LOGICAL_AXES, batch_sharding

_ROWS = 512  # histories encoded at a time: one compiled shape for any number of them


class Head:
    """Encoder and weights; ids are catalogue indices, -1 is padding anywhere in a row.

    With a mesh, the rows of a chunk are split over its data axes and the weights are replicated.
    """

    name = "sasrec"

    def __init__(self, config: SASRecConfig, params, *, mesh: jax.sharding.Mesh | None = None):
        self.config, self.mesh = config, mesh
        self.params = params if mesh is None else jax.device_put(params, replicated(mesh))

    def embed(self, histories: np.ndarray, times: np.ndarray | None = None) -> np.ndarray:
        """User embeddings after the last item: float32[B, D]; histories int[B, L]; times unused."""
        chunks = self._last(right_padded(histories, self.config.length))
        return np.concatenate([np.asarray(h[:n]) for h, n in chunks])

    def scores(self, histories: np.ndarray, times: np.ndarray | None = None) -> jax.Array:
        """Scores of every item: float32[B, items]; histories int[B, L]; times unused."""
        table = self.params["items"][...]
        chunks = self._last(right_padded(histories, self.config.length))
        parts = [_dot(h, table)[:n] for h, n in chunks]
        return parts[0] if len(parts) == 1 else jnp.concatenate(parts)

    def states(self, ids: np.ndarray) -> jax.Array:
        """Embeddings after every item: right-padded int32[R, W] -> float32[R, W, D], W <= length.

        At most a few hundred rows at a time; used to embed all prefixes of a sequence in one pass.
        """
        return _encode(self.config, self.params, self._place(ids))

    def save(self, directory: str | os.PathLike) -> None:
        """Writes config.json and weights.safetensors, atomically."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        arrays = {name: np.asarray(leaf[...]) for name, leaf in self.params.items()}
        partial = directory / f".weights.{os.getpid()}"
        save_file(arrays, partial)
        os.replace(partial, directory / "weights.safetensors")
        partial.write_text(json.dumps(dataclasses.asdict(self.config), indent=1))
        os.replace(partial, directory / "config.json")

    @classmethod
    def load(cls, directory: str | os.PathLike, mesh: jax.sharding.Mesh | None = None) -> "Head":
        """Reads what `save` wrote. Raises UserError when it is not there."""
        directory = Path(directory)
        if not (directory / "config.json").is_file():
            raise UserError(f"{directory}: no saved head here; train it first")
        config = SASRecConfig(**json.loads((directory / "config.json").read_text()))
        params = abstract_params(config)
        for name, array in load_file(directory / "weights.safetensors").items():
            params[name] = params[name].replace(jnp.asarray(array))
        return cls(config, params, mesh=mesh)

    def _last(self, ids):
        for start in range(0, max(len(ids), 1), _ROWS):
            chunk = ids[start : start + _ROWS]
            rows = pad_rows(chunk, _ROWS if len(ids) > _ROWS else _power_of_two(len(chunk)))
            yield _encode_last(self.config, self.params, self._place(rows)), len(chunk)

    def _place(self, ids):
        if self.mesh is None:
            return jnp.asarray(ids)
        ids = pad_rows(ids, -(-len(ids) // row_shards(self.mesh)) * row_shards(self.mesh))
        return jax.device_put(ids, batch_sharding(self.mesh))


@functools.partial(jax.jit, static_argnums=0)
def init_params(config: SASRecConfig, seed: int):
    """Freshly initialised weights as an nnx.State of named leaves."""
    return nnx.split(SASRec(config, rngs=nnx.Rngs(jax.random.key(seed))))[1]


def abstract_params(config: SASRecConfig):
    return nnx.split(nnx.eval_shape(lambda: SASRec(config, rngs=nnx.Rngs(0))))[1]


@functools.cache
def graphdef(config: SASRecConfig):
    """Structure of the encoder, to be merged with weights inside compiled functions."""
    return nnx.split(nnx.eval_shape(lambda: SASRec(config, rngs=nnx.Rngs(0))))[0]


def pad_rows(ids: np.ndarray, rows: int) -> np.ndarray:
    """Appends empty histories up to a static number of rows."""
    return np.pad(ids, ((0, rows - len(ids)), (0, 0)), constant_values=-1)


def row_shards(mesh: jax.sharding.Mesh) -> int:
    """Over how many devices the rows of a batch are split."""
    return math.prod(mesh.shape[axis] for axis in LOGICAL_AXES["batch"])


def replicated(mesh: jax.sharding.Mesh) -> jax.sharding.NamedSharding:
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())


def _power_of_two(count: int) -> int:
    return 1 << max(count - 1, 0).bit_length()


@functools.partial(jax.jit, static_argnums=0)
def _encode(config, params, ids):
    positions = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
    model = nnx.merge(graphdef(config), params)
    return model(ids + 1, (ids >= 0).astype(jnp.int32), positions)


@functools.partial(jax.jit, static_argnums=0)
def _encode_last(config, params, ids):
    last = jnp.maximum((ids >= 0).sum(1) - 1, 0)
    return jnp.take_along_axis(_encode(config, params, ids), last[:, None, None], 1)[:, 0]


@jax.jit
def _dot(hidden, items):
    return jnp.einsum("bd,vd->bv", hidden, items[1:], preferred_element_type=jnp.float32)
