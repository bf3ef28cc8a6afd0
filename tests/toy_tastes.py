"""Histories over the toy items with ratings and times in sessions, and what is written of them."""

import dataclasses

import numpy as np
import toy_items

from mmsrec_jax.data.records import Histories
from mmsrec_jax.data.windows import DAY
from mmsrec_jax.inputs.item_renderer import ItemRenderer
from mmsrec_jax.inputs.taste_prompts import TasteContext
from mmsrec_jax.inputs.tastes import PreferenceSettings, Tastes

SETTINGS = PreferenceSettings(
    window=4, step=2, max_windows=2, words=3, prompt_length=200, max_new_tokens=24
)


def histories(users: int = 6, shortest: int = 5) -> Histories:
    rng = np.random.default_rng(3)
    lengths = [shortest + u for u in range(users)]
    gaps = [np.where(rng.random(n) < 0.5, 600.0, 20 * DAY * rng.random(n)) for n in lengths]
    return Histories(
        users=np.array([f"u{u}" for u in range(users)]),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        items=np.concatenate([rng.permutation(24)[:n] for n in lengths]),
        timestamps=1e9 + np.concatenate([np.cumsum(gap) for gap in gaps]),
        ratings=rng.integers(1, 6, sum(lengths)).astype(np.float32),
    )


HISTORIES = histories()
ROWS = np.array([(u, p) for u in range(6) for p in range(1, 5 + u)], np.int32)


def tastes(prompt_config, of: Histories = HISTORIES, **options) -> Tastes:
    settings = dataclasses.replace(SETTINGS, **options.pop("settings", {}))
    renderer = ItemRenderer(toy_items.catalog(), prompt_config, toy_items.keywords())
    return Tastes(of, renderer, settings, **options)


def context(made: Tastes, rows: np.ndarray = ROWS, **changes) -> TasteContext:
    """As if a model had written what counting says."""
    windows = made.windows
    last = [windows.count(int(p)) - 1 for p in rows[:, 1]]
    last_of_rows = zip(rows[:, 0].tolist(), last, strict=True)
    known = [(u, k) for u in range(len(made.histories)) for k in range(9)]
    known = [(u, k) for u, k in known if windows.span(k)[1] <= made.histories.lengths[u]]
    given = {
        "train_end": made.histories.lengths - 1,
        "preferences": {key: made.preference(*key) for key in known},
        "profiles": {key: made.profile(*key) for key in known},
        "chains": ["" if k < 0 else made.preference(u, k) for u, k in last_of_rows],
        "offers": True,
    }  # fmt: skip
    catalog = made.renderer.catalog
    return TasteContext(
        catalog, made.histories, toy_items.keywords(), tastes=made, **given | changes
    )
