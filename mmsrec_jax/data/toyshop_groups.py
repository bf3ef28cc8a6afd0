"""Where the items of a toyshop lead, as far as training transitions tell it (*ours*).

Everything else of the world taken as known, what is unknown of an item is the occasion that its
group leads to. Expectation-maximization: histories are filtered with the present belief about every
item; each transition says how likely its next choice is under every lead; the belief about an item
is the product over its transitions, times how often items of its product lead there.
"""

from collections.abc import Iterator

import numpy as np

from mmsrec_jax.data.records import Histories
from mmsrec_jax.data.toyshop import MOODS, World
from mmsrec_jax.data.toyshop_items import PRODUCTS
from mmsrec_jax.data.toyshop_truth import TASTES, Past, Truth

_ROUNDS = 3
_CHUNK = 128  # histories at a time


def learned_leads(world: World, histories: Histories, train_end: np.ndarray) -> np.ndarray:
    """The belief where each item leads: float64[items, MOODS].

    train_end: int[users], of every user the first interaction that is no training interaction.
    """
    num_items = len(world.groups)
    product = world.attributes["product"]
    leads = np.full((num_items, MOODS), 1.0 / MOODS)
    longer = np.flatnonzero(train_end >= 2)
    first, counts = histories.offsets[longer], train_end[longer]
    past = Past.between(histories, first, counts, histories.timestamps[first + counts - 1])
    for _ in range(_ROUNDS):
        of_product = np.stack([1 + leads[product == kind].sum(0) for kind in range(len(PRODUCTS))])
        log_belief = np.log(of_product / of_product.sum(1, keepdims=True))[product]
        truth = Truth(world, leads=leads)
        for start in range(0, len(longer), _CHUNK):
            for items, likely in _transitions(truth, past[start : start + _CHUNK]):
                np.add.at(log_belief, items, np.log(likely))
        leads = np.exp(log_belief - log_belief.max(1, keepdims=True))
        leads /= leads.sum(1, keepdims=True)
    return leads


def _transitions(truth: Truth, past: Past) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Items int[b] that others followed, and p(the next choice and its rating | the past, where the
    item leads), float64[b, MOODS]."""
    pull, lengths = truth.world.pull, (past.items >= 0).sum(1)
    belief = truth.prior(len(past.now))
    evidence = truth.likelihood(past, 0)
    for step in range(past.items.shape[1] - 1):
        rows = np.flatnonzero(step + 1 < lengths)
        past, lengths = past[rows], lengths[rows]
        belief = belief[rows] * evidence[rows]
        belief /= belief.sum(1, keepdims=True)
        evidence = truth.likelihood(past, step + 1)
        moods = belief.reshape(-1, TASTES, MOODS, MOODS)
        by_mood = evidence.reshape(moods.shape)
        stays = np.einsum("bs,bs->b", belief, evidence)[:, None]
        moves = (moods.sum(3, keepdims=True) * by_mood).sum(1)  # [b, usual, next mood]
        fresh = (moves * truth.world.redrawn).sum((1, 2))[:, None]
        kept = truth.survival(past, step)[:, None]
        led = kept * ((1 - pull) * stays + pull * moves.sum(1)) + (1 - kept) * fresh
        yield past.items[:, step], led.astype(np.float64)
        belief = truth.moved(belief, past, step)
