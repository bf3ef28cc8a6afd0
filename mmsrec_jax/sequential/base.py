"""What every sequential recommender has in common: rows of items in, one vector per position
out.

A kind of model is a file of this package with its sizes (`Sizes`), a config (these and
`SequentialConfig`), settings (these and `SequentialSettings`), a module (`SequentialModule`) and a
line in `registry.MODELS`. Training (`sequential.train`) and scoring
(`SequentialRecommender`) use only what this file declares.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from mmsrec_jax.runtime.errors import UserError
from mmsrec_jax.runtime.settings import Section, seed_setting, setting
from mmsrec_jax.sequential.losses import BCE, SAMPLED_SOFTMAX, SOFTMAX, ItemLoss

FEATURE_FILE = "A .npy, one row per item of the prepared catalog. Empty: `model.path` makes it."
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
class Sizes(Section):
    """What the settings of a model and its config have in common."""

    length: int = setting(50, "Latest items of a history that are read.", low=1, high=1_000_000)


@dataclass(frozen=True)
class CatalogShape:
    """num_items: catalog size; features: (name, width) of the frozen item features that the model
    reads, in the order of the module's `FEATURES`."""

    num_items: int
    features: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class SequentialConfig(Sizes, CatalogShape):
    """What a module is built from and compiled for; hashable."""


@dataclass(frozen=True)
class SequentialSettings(Section):
    """How a model is trained; the settings of each model add its sizes to these."""

    loss: str = setting(
        SOFTMAX,
        "Softmax over the catalog, sampled softmax, or binary cross-entropy with one negative.",
        choices=(SOFTMAX, SAMPLED_SOFTMAX, BCE),
    )
    negatives: int = setting(
        ItemLoss.negatives,
        "Uniformly drawn items that a batch shares (sampled_softmax).",
        low=1,
        high=1_000_000,
    )
    loss_chunk: int = setting(
        ItemLoss.chunk,
        "Targets whose logits are in the memory of a device at once (softmax).",
        low=1,
        high=10_000_000,
    )
    learning_rate: float = setting(1e-3, "Constant after the warm-up (AdamW).", low=1e-10, high=1)
    warmup_steps: int = setting(
        100, "Steps until the learning rate is reached.", low=0, high=1_000_000_000
    )
    weight_decay: float = setting(
        0.01, "Of AdamW; biases and norms are left alone.", low=0, high=10
    )
    batch_size: int = setting(
        128, "Rows of `length` items into which histories are packed.", low=1, high=1_000_000
    )
    steps: int = setting(
        10_000,
        "Most updates, rounded up to a multiple of `evaluate_every`.",
        low=1,
        high=1_000_000_000,
    )
    evaluate_every: int = setting(200, "Steps between two validations.", low=1, high=1_000_000_000)
    patience: int = setting(
        10,
        "Training ends after so many validations without a better NDCG@10.",
        low=1,
        high=1_000_000,
    )
    validation_rows: int = setting(
        0, "Size of a random subset of the validation targets. 0 is all.", low=0, high=1_000_000_000
    )
    log_every: int = setting(100, "Steps between two lines of metrics.", low=1, high=1_000_000_000)
    seed: int = seed_setting("Of the weights, the order, dropout and negatives.")


@dataclass(frozen=True)
class ContentSettings(SequentialSettings):
    """Of a model that reads item features."""

    contents: tuple[str, ...] = setting((), "Item features that are read.")

    def check(self, name: str) -> None:
        super().check(name)
        if not self.contents:
            raise UserError(f"{name}.contents={self.contents}: name one or more")


class Features(nnx.Variable):
    """Frozen item features, float32[items, width]: stored with the weights, never trained."""


def last_position(rows: Rows) -> jax.Array:
    """Where the last item of each row's one right-padded sequence stands: int32[B]."""
    return jnp.maximum((rows.ids > 0).sum(1) - 1, 0)


def take_position(x: jax.Array, positions: jax.Array) -> jax.Array:
    """One position of each row: [B, L, D] -> [B, 1, D]; positions int32[B]."""
    return jnp.take_along_axis(x, positions[:, None, None], 1)


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
      CAUSAL: the state at a position does not depend on later ones, so that one pass embeds every
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
        """Scalar that training minimizes, and its parts for the log (scalars by name)."""
        states = self(rows, key)
        negatives = jax.random.fold_in(key, 1)
        return item_loss(states, self.table(), rows.targets, negatives, self.bias()), {}
