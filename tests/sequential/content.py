"""What the tests of both content models share: tiny configs, weights away from zero, packed
rows."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from mmsrec_jax.sequential import registry
from mmsrec_jax.sequential.base import Rows
from mmsrec_jax.sequential.recommender import init_params, merge, place_features

ITEMS, LENGTH = 20, 8
SIZES = dict(length=LENGTH, dim=8, layers=1, dropout=0.0)
_RNG = np.random.default_rng(5)
FEATURES = {
    name: _RNG.normal(size=(ITEMS, width)).astype(np.float32)
    for name, width in (("item", 5), ("text", 4), ("image", 3))
} | {"categories": (_RNG.random((ITEMS, 3)) < 0.4).astype(np.float32)}


@functools.cache
def weights(kind: str, names: tuple[str, ...], **options):
    """Config, weights (drawn by numpy: nothing to compile) and features of a model."""
    given = {name: FEATURES[name] for name in names}
    sizes = SIZES if kind == "gru4rec" else SIZES | dict(heads=2, mlp_dim=12)
    config = registry.configure(registry.MODELS[kind].settings(**sizes | options), ITEMS, given)
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: init_params(config, 0))
    params = jax.tree.map(lambda x: jnp.array(rng.normal(0, 0.3, x.shape), x.dtype), shapes)
    return config, params, place_features(config, given)


def module(kind: str, names: tuple[str, ...], **options):
    return merge(*weights(kind, names, **options))


def packed(*sequences, times=None) -> Rows:
    """One row of these sequences side by side, each item's target is the one after it."""
    arrays = {name: np.zeros((1, LENGTH), np.int32) for name in Rows._fields}
    arrays["targets"] -= 1
    at = 0
    for number, items in enumerate(sequences, 1):
        span = slice(at, at + len(items))
        arrays["ids"][0, span] = np.asarray(items) + 1
        arrays["segments"][0, span] = number
        arrays["positions"][0, span] = np.arange(len(items))
        arrays["targets"][0, span] = [*items[1:], items[0]]
        if times is not None:
            arrays["times"][0, span] = times[number - 1]
        at += len(items)
    return Rows(**{name: jnp.array(array) for name, array in arrays.items()})
