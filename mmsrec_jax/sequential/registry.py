"""The kinds of sequential recommender, one file each: settings, a config and a module."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from mmsrec_jax.runtime.config_utils import choose_name
from mmsrec_jax.runtime.errors import UserError
from mmsrec_jax.sequential import bert4rec, gru4rec, hm4sr, molar, sasrec
from mmsrec_jax.sequential.base import (
    CATEGORIES,
    SequentialConfig,
    SequentialModule,
    SequentialSettings,
)


@dataclasses.dataclass(frozen=True)
class SequentialModel:
    """A model by its parts; `name` is also that of its section in a config."""

    name: str
    settings: type[SequentialSettings]
    config: type[SequentialConfig]
    module: type[SequentialModule]


_ALL = (
    SequentialModel("sasrec", sasrec.SASRecSettings, sasrec.SASRecConfig, sasrec.SASRec),
    SequentialModel(
        "bert4rec", bert4rec.BERT4RecSettings, bert4rec.BERT4RecConfig, bert4rec.BERT4Rec
    ),
    SequentialModel("gru4rec", gru4rec.GRU4RecSettings, gru4rec.GRU4RecConfig, gru4rec.GRU4Rec),
    SequentialModel("molar", molar.MolarSettings, molar.MolarConfig, molar.Molar),
    SequentialModel("hm4sr", hm4sr.HM4SRSettings, hm4sr.HM4SRConfig, hm4sr.HM4SR),
)
MODELS = {kind.name: kind for kind in _ALL}


def find(name: str) -> SequentialModel:
    """The kind of this name. Raises UserError that names the nearest one."""
    return MODELS[choose_name(name, MODELS, what="config.sequential_model")]


def contents(kind: SequentialModel) -> frozenset[str]:
    """The item features that it can read, except those made from the catalog."""
    return frozenset(kind.module.FEATURES) - {CATEGORIES}


def of(config: SequentialConfig | SequentialSettings) -> SequentialModel:
    """The kind that a config or settings belong to."""
    return next(kind for kind in MODELS.values() if type(config) in (kind.config, kind.settings))


def configure(
    settings: SequentialSettings, num_items: int, features: Mapping[str, np.ndarray]
) -> SequentialConfig:
    """The config that the settings of a kind of model give on one catalog.

    features: float32[items, width] by name; of these the kind takes those that it can read.
    Raises UserError when a kind that reads content gets none.
    """
    kind = of(settings)
    readable = contents(kind)
    if readable and not readable.intersection(features):
        raise UserError(
            f"{kind.name} reads item features: give it one of {', '.join(sorted(readable))}"
        )
    fixed = {"num_items", "features"}
    sizes = {field.name for field in dataclasses.fields(kind.config)} - fixed
    found = (name for name in kind.module.FEATURES if name in features)
    widths = tuple((name, features[name].shape[1]) for name in found)
    return kind.config(num_items, widths, **{name: getattr(settings, name) for name in sizes})


def to_json(config: SequentialConfig) -> dict[str, Any]:
    """What `from_json` reads."""
    return {"kind": of(config).name, **dataclasses.asdict(config)}


def from_json(stored: Mapping[str, Any]) -> SequentialConfig:
    """The config that `to_json` wrote."""
    values = {name: _tuples(value) for name, value in stored.items() if name != "kind"}
    return find(stored["kind"]).config(**values)


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
