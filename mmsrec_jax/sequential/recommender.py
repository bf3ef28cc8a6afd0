"""A trained model, ready to score: weights, configuration, and chunked scoring."""

import functools
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors.numpy import load_file, save_file

from mmsrec_jax.data.sequences import power_of_two, right_padded, seconds
from mmsrec_jax.runtime import arrays, disk, files, processes
from mmsrec_jax.runtime.errors import UserError
from mmsrec_jax.runtime.sharding import batch_sharding, num_batch_shards, replicated
from mmsrec_jax.sequential import registry
from mmsrec_jax.sequential.base import Features, Rows, SequentialConfig, SequentialModule

_ROWS = 512  # histories encoded at a time: one compiled shape for any number of them
_NARROWEST = 8  # a chunk of short histories is cut to the power of two that holds its longest


class SequentialRecommender:
    """A model of any kind with its weights; ids are catalog indices, -1 is padding at any position.

    With a mesh, the rows of a chunk are split over its data axes and the weights are replicated.
    `times` are seconds since 1970, float64[B, L] beside the histories; only models that look at the
    clock read them.
    """

    def __init__(
        self,
        config: SequentialConfig,
        params: nnx.State,
        features: nnx.State | None = None,
        *,
        mesh: jax.sharding.Mesh | None = None,
    ):
        """features: as from `place_features`; None for a kind that reads none."""
        kind = registry.of(config)
        self.config, self.mesh = config, mesh
        self.name, module = kind.name, kind.module
        self.causal, self.uses_times = module.CAUSAL, module.USES_TIMES
        features = place_features(config, {}) if features is None else features
        weights = (params, features)
        if mesh is not None:
            weights = arrays.put(weights, replicated(mesh))
        self.params, self.features = weights

    @functools.cached_property
    def dim(self) -> int:
        """Width of an embedding."""
        return self._output[0].shape[1]

    def embed(self, histories: np.ndarray, times: np.ndarray | None = None) -> np.ndarray:
        """User embeddings after the last item: float32[B, dim]; histories int[B, L]."""
        return np.concatenate([arrays.fetch(h)[:n] for h, n in self._last(histories, times)])

    def scores(self, histories: np.ndarray, times: np.ndarray | None = None) -> jax.Array:
        """Scores of every item: float32[B, items]; histories int[B, L]."""
        parts = [_dot(h, *self._output)[:n] for h, n in self._last(histories, times)]
        return parts[0] if len(parts) == 1 else jnp.concatenate(parts)

    def states(self, ids: np.ndarray, times: np.ndarray | None = None) -> jax.Array:
        """Embeddings after every item: right-padded int32[R, W] -> float32[R, W, dim], W <= length.

        Of causal models only. At most a few hundred rows at a time; used to embed all prefixes of a
        sequence in one pass.
        """
        return _encode(self.config, self.params, self.features, *self._place(ids, times))

    def save(self, directory: str | os.PathLike) -> None:
        """Writes config.json (with the kind) and weights.safetensors, atomically; the main process
        does, and the others wait."""
        if processes.is_main():
            self._save(Path(directory))
        processes.barrier()

    def arrays(self) -> dict[str, np.ndarray]:
        """Weights and item features by name, on the host."""
        return {**_arrays(self.params), **_arrays(self.features)}

    def _save(self, directory: Path) -> None:
        stored = self.arrays()
        files.write(directory / "weights.safetensors", lambda partial: save_file(stored, partial))
        files.write_json(directory / "config.json", registry.to_json(self.config))

    @classmethod
    def load(
        cls, directory: str | os.PathLike, mesh: jax.sharding.Mesh | None = None
    ) -> "SequentialRecommender":
        """Reads what `save` wrote. Raises UserError when it is not there."""
        directory = Path(directory)
        about, weights = directory / "config.json", directory / "weights.safetensors"
        if not about.is_file():
            raise UserError(f"{directory}: no saved model here; train it first")
        remedy = f"delete {directory.parent} and run launch/train.py, which trains it"
        raw = disk.read_json(about, remedy)
        with disk.readable(about, remedy):
            config = registry.from_json(raw)
            _, params, features = _abstract(config)
        with disk.readable(weights, remedy):
            stored = load_file(weights)
            filled = _filled(params, stored), _filled(features, stored)
        return cls(config, *filled, mesh=mesh)

    @functools.cached_property
    def _output(self) -> tuple[jax.Array, jax.Array]:
        return _output(self.config, self.params, self.features)

    def _last(
        self, histories: np.ndarray, times: np.ndarray | None
    ) -> Iterator[tuple[jax.Array, int]]:
        """States float32[n, dim] of a chunk of histories, and how many of its rows count."""
        times = times if self.uses_times else None
        ids, times = right_padded(histories, self.config.length, times)
        longest = (ids >= 0).sum(1)
        for start in range(0, max(len(ids), 1), _ROWS):
            part = slice(start, start + _ROWS)
            rows = _ROWS if len(ids) > _ROWS else power_of_two(len(ids[part]))
            width = max(power_of_two(longest[part].max(initial=1)), _NARROWEST)
            chunk = pad_rows(ids[part, :width], rows)
            clock = None if times is None else pad_rows(times[part, :width], rows)
            placed = self._place(chunk, clock)
            yield _encode_last(self.config, self.params, self.features, *placed), len(ids[part])

    def _place(self, ids: np.ndarray, times: np.ndarray | None) -> tuple[jax.Array, jax.Array]:
        times = times if self.uses_times else None
        clock = np.zeros_like(ids) if times is None else seconds(times)
        if self.mesh is None:
            return jnp.asarray(ids), jnp.asarray(clock)
        rows = -(-len(ids) // num_batch_shards(self.mesh)) * num_batch_shards(self.mesh)
        padded = (pad_rows(np.asarray(ids), rows), pad_rows(np.asarray(clock), rows))
        return arrays.put(padded, batch_sharding(self.mesh))


@functools.partial(jax.jit, static_argnums=0)
def init_params(config: SequentialConfig, seed: int) -> nnx.State:
    """Freshly initialized weights."""
    return nnx.state(_build(config, nnx.Rngs(jax.random.key(seed))), nnx.Param)


def place_features(config: SequentialConfig, arrays: Mapping[str, np.ndarray]) -> nnx.State:
    """Features float32[items, width] by name, in the form in which a module holds them."""
    stored = {f"features.{name}": array for name, array in arrays.items()}
    return _filled(_abstract(config)[2], stored)


def merge(config: SequentialConfig, params: nnx.State, features: nnx.State) -> SequentialModule:
    """The module with these weights; for use inside compiled functions."""
    return nnx.merge(_abstract(config)[0], params, features)


def scores_of(
    config: SequentialConfig, stored: Mapping[str, jax.Array], ids: jax.Array, times: jax.Array
) -> jax.Array:
    """Scores of every item after the last one of each row: float32[B, items]; for use inside
    compiled functions.

    stored: as from `SequentialRecommender.arrays`; ids, times int32[B, config.length],
    right-padded.
    """
    _, params, features = _abstract(config)
    params, features = _filled(params, stored), _filled(features, stored)
    last = merge(config, params, features).last(_rows(ids, times))
    return _dot(last, *_output(config, params, features))


def pad_rows(ids: np.ndarray, rows: int) -> np.ndarray:
    """Appends empty histories up to a static number of rows."""
    return np.pad(ids, ((0, rows - len(ids)), (0, 0)), constant_values=-1)


def _build(config: SequentialConfig, rngs: nnx.Rngs) -> SequentialModule:
    return registry.of(config).module(config, rngs=rngs)


@functools.cache
def _abstract(config: SequentialConfig) -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
    module = nnx.eval_shape(lambda: _build(config, nnx.Rngs(0)))
    graphdef, params, *others = nnx.split(module, nnx.Param, Features)
    return graphdef, params, others[0]


def _arrays(state: nnx.State) -> dict[str, np.ndarray]:
    return {_name(path): np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(state)}


def _filled(state: nnx.State, stored: Mapping[str, Any]) -> nnx.State:
    """`state` with the arrays of its names. Raises ValueError for one that is not there, or of
    another shape or type."""
    filled = []
    for path, leaf in nnx.to_flat_state(state):
        array = stored.get(_name(path))
        if array is None or (array.shape, array.dtype) != (leaf.shape, leaf.dtype):
            raise ValueError(f"{_name(path)} is missing or of another shape")
        filled.append((path, leaf.replace(jnp.asarray(array))))
    return nnx.from_flat_state(filled)


def _name(path: tuple) -> str:
    return ".".join(map(str, path))


def _rows(ids: jax.Array, times: jax.Array) -> Rows:
    positions = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
    no_targets = jnp.full_like(ids, -1)
    return Rows(ids + 1, (ids >= 0).astype(jnp.int32), positions, times, no_targets)


@functools.partial(jax.jit, static_argnums=0)
def _encode(
    config: SequentialConfig,
    params: nnx.State,
    features: nnx.State,
    ids: jax.Array,
    times: jax.Array,
) -> jax.Array:
    return merge(config, params, features)(_rows(ids, times))


@functools.partial(jax.jit, static_argnums=0)
def _encode_last(
    config: SequentialConfig,
    params: nnx.State,
    features: nnx.State,
    ids: jax.Array,
    times: jax.Array,
) -> jax.Array:
    return merge(config, params, features).last(_rows(ids, times))


@functools.partial(jax.jit, static_argnums=0)
def _output(
    config: SequentialConfig, params: nnx.State, features: nnx.State
) -> tuple[jax.Array, jax.Array]:
    module = merge(config, params, features)
    table, bias = module.table(), module.bias()
    return table, jnp.zeros(table.shape[0]) if bias is None else bias


@jax.jit
def _dot(hidden: jax.Array, table: jax.Array, bias: jax.Array) -> jax.Array:
    return jnp.einsum("bd,vd->bv", hidden, table, preferred_element_type=jnp.float32) + bias
