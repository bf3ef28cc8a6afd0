"""What every sequential recommender has in common: rows of items in, one vector a place out.

A kind of model is a file of this package with a config (`SequentialConfig`), a module
(`SequentialModule`) and a line in `registry.MODELS`. Training (`sequential.train`) and scoring
(`SequentialRecommender`) know no more of it than stands here.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from mmsrec_jax.sequential.losses import ItemLoss

CATEGORIES = "categories"  # the one feature that is made of the catalog: float 0 or 1


class Rows(NamedTuple):
    """Packed histories; every array is int32[B, L].

    ids: item i of the catalog is i + 1, padding is 0. segments: 0 padding, 1.. the sequence that
    a token belongs to. positions: within the sequence, from 0. times: seconds since 1970 (positions
    where the data has no clock). targets: the next item, counted from 0; -1 where there is none.
    """

    ids: jax.Array
    segments: jax.Array
    positions: jax.Array
    times: jax.Array
    targets: jax.Array


@dataclass(frozen=True)
class SequentialConfig:
    """num_items: catalog size; length: longest window of a history; features: (name, width) of
    the frozen item features that it reads, in the order of the module's `FEATURES`."""

    num_items: int
    features: tuple[tuple[str, int], ...] = ()
    length: int = 50


class Features(nnx.Variable):
    """Frozen item features, float32[items, width]: stored with the weights, never trained."""


def last_position(rows: Rows) -> jax.Array:
    """Where the last item of each row's one right-padded sequence stands: int32[B]."""
    return jnp.maximum((rows.ids > 0).sum(1) - 1, 0)


def take_position(x: jax.Array, places: jax.Array) -> jax.Array:
    """One place of each row: [B, L, D] -> [B, 1, D]; places int32[B]."""
    return jnp.take_along_axis(x, places[:, None, None], 1)


class SequentialModule(nnx.Module):
    """Base of all models; built as `Module(config, rngs=rngs)`.

    Weights are `nnx.Param`s; random numbers come in as keys, so that a module holds no generator.

    Attributes:
      FEATURES: names of the item features that it can read; those in `config.features` are there
        as `self.features[name]`, each a `Features`.
      NO_DECAY: names of parameters, at any depth, that weight decay leaves alone.
      SHIFTED: training rows end one item early and carry that shift as `targets` (next item).
        False: rows hold every training item, `targets` is -1 throughout, the module masks.
      USES_TIMES: it reads `Rows.times`; elsewhere they are 0.
      CAUSAL: the state at a place does not depend on later ones, so that one pass embeds every
        prefix of a sequence.
    """

    FEATURES: ClassVar[tuple[str, ...]] = ()
    NO_DECAY: ClassVar[tuple[str, ...]] = ()
    SHIFTED: ClassVar[bool] = True
    USES_TIMES: ClassVar[bool] = False
    CAUSAL: ClassVar[bool] = True

    def __init__(self, config: SequentialConfig, *, rngs: nnx.Rngs):
        self.config = config
        if config.features:
            self.features = nnx.Dict(
                {name: Features(jnp.zeros((config.num_items, d))) for name, d in config.features}
            )

    def __call__(self, rows: Rows, key: jax.Array | None = None) -> jax.Array:
        """States float32[B, L, D]; key for dropout, None to switch it off."""
        raise NotImplementedError

    def table(self) -> jax.Array:
        """Output embeddings of the catalog, float32[items, D]: scores = state @ table.T."""
        raise NotImplementedError

    def bias(self) -> jax.Array | None:
        """Added to the scores: float32[items], None for nothing."""
        return None

    def last(self, rows: Rows) -> jax.Array:
        """State after the last item of each row, float32[B, D].

        Rows hold one right-padded sequence each and are at most `config.length` wide.
        """
        return take_position(self(rows), last_position(rows))[:, 0]

    def loss(
        self, rows: Rows, key: jax.Array, item_loss: ItemLoss
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Scalar that training minimizes, and the parts of it worth a curve (scalars by name)."""
        states = self(rows, key)
        negatives = jax.random.fold_in(key, 1)
        return item_loss(states, self.table(), rows.targets, negatives, self.bias()), {}
