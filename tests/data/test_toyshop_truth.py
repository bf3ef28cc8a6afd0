"""The exact rows of the generated shop against enumeration and against how choices come out."""

import dataclasses
import itertools

import numpy as np
import pytest

from mmsrec_jax.data import splits, toyshop, toyshop_items
from mmsrec_jax.data.toyshop import LOOKS, MOODS, RATINGS, fitting
from mmsrec_jax.data.toyshop_groups import learned_leads
from mmsrec_jax.data.toyshop_truth import (
    Observer,
    Past,
    Truth,
    all_states,
    bayes_optimal_scores,
    oracle_scores,
)

SMALL = toyshop.ToyshopSettings(
    num_users=1500, num_items=120, num_groups=4, history=(5, 8), occasion_weight=3.0,
    look_weight=2.5, material_weight=2.0, new_items=0.05, seed=3,
)  # fmt: skip
ROWS = np.array([(u, 3 + u % 2) for u in range(200)])


@pytest.fixture(scope="module")
def shop():
    _, histories, world = toyshop.generate(SMALL)
    return histories, world


def enumerated(world, past, *, ratings=True, last_survival=None):
    """Next-choice probabilities of one past, float64[items], mood path by mood path."""
    items, times = past.items[0], np.append(past.times[0], past.now[0])
    logit = np.array([world.weights[name] for name in ("occasion", "look", "material")])
    profiles = all_states().reshape(-1, MOODS, 5)
    found = np.zeros(len(world.groups))
    alike = profiles[:, 0, 0] == profiles[:, 0, 1]
    likely = world.one_look * alike + (1 - world.one_look) / LOOKS
    for path in itertools.product(range(MOODS), repeat=len(items) + 1):
        states = profiles[:, path]  # [profiles, steps, 5]
        weight = likely * world.redrawn[profiles[:, 0, 3], path[0]]
        taken = np.zeros(len(world.groups), bool)
        for step, mood in enumerate(path):
            fits = fitting(world.kinds, states[:, step, None])
            choice = np.exp(fits @ logit + world.popularity)
            choice = choice * (~taken & (world.offered <= times[step]))
            choice /= choice.sum(1, keepdims=True)
            if step == len(items):
                found += weight @ choice
                break
            weight = weight * choice[:, items[step]]
            if ratings:
                _, look, material = fits[:, items[step]].astype(int).T
                weight = weight * RATINGS[look, material, int(past.ratings[0, step]) - 1]
            taken[items[step]] = True
            survives = np.exp(-(times[step + 1] - times[step]) / (86_400 * world.mood_days))
            if last_survival is not None and step == len(items) - 1:
                survives = last_survival
            led = (1 - world.pull) * (path[step + 1] == mood)
            led += world.pull * (path[step + 1] == world.leads_to[world.groups[items[step]]])
            again = world.redrawn[profiles[:, 0, 3], path[step + 1]]
            weight = weight * (survives * led + (1 - survives) * again)
    return found / found.sum()


@pytest.mark.parametrize("user", [0, 7])
def test_bayes_optimal_is_the_sum_over_all_profiles_and_mood_paths(shop, user):
    histories, world = shop
    past = Past.of(histories, np.array([[user, 2]]))
    for observer, options in (
        (Observer(), {}),
        (Observer(ratings=False), {"ratings": False}),
        (Observer(now=False), {"last_survival": world.mean_survival}),
    ):
        got = Truth(world, observer).bayes_optimal(past)[0].astype(np.float64)
        np.testing.assert_allclose(got / got.sum(), enumerated(world, past, **options), rtol=2e-4)


def test_without_the_clock_every_gap_is_an_average_one(shop):
    histories, world = shop
    (past,) = [Past.of(histories, np.array([[0, 4]]))]
    gap = -np.log(world.mean_survival) * world.mood_days * toyshop.DAY
    late = past.now[0] - gap * np.arange(4, 0, -1)
    even = dataclasses.replace(past, times=late[None])
    open_world = dataclasses.replace(world, offered=np.zeros_like(world.offered))
    with_clock = Truth(open_world).bayes_optimal(even)
    without = Truth(open_world, Observer(clock=False)).bayes_optimal(past)
    np.testing.assert_allclose(with_clock, without, rtol=1e-4)


def test_what_pictures_show_is_averaged_out_for_an_observer_without_them(shop):
    """In a world where every item exists in each look, the look of the past tells nothing."""
    histories, world = shop
    count, cells = 30, list(itertools.product([0, 2, 4], range(4)))
    of = {name: np.repeat(values[:count], 12) for name, values in world.attributes.items()}
    color, pattern = np.tile(np.array(cells), (count, 1)).T
    of |= {"color": color.astype(np.int32), "pattern": pattern.astype(np.int32)}
    full = dataclasses.replace(
        world, attributes=of, groups=np.repeat(world.groups[:count], 12),
        popularity=np.repeat(world.popularity[:count], 12), offered=np.zeros(count * 12),
    )  # fmt: skip
    truth = Truth(full, Observer(images=False))
    past = Past.of(histories, np.array([[0, 2]]))
    one = dataclasses.replace(past, items=np.array([[0, 20]]))
    other = dataclasses.replace(past, items=np.array([[5, 15]]))  # other looks of the same
    first, second = truth.bayes_optimal(one)[0], truth.bayes_optimal(other)[0]
    again = np.setdiff1d(np.arange(len(first)), [0, 20, 5, 15])
    np.testing.assert_allclose(first[again], second[again], rtol=1e-5)
    seen = Truth(full).bayes_optimal(one)[0], Truth(full).bayes_optimal(other)[0]
    assert np.abs(seen[0][again] / seen[1][again] - 1).max() > 0.5


def test_the_last_items_alone_are_a_history_that_begins_with_them(shop):
    histories, world = shop
    row = np.array([[3, 4]])
    got = bayes_optimal_scores(world, histories, row, Observer(last=2))
    whole = Past.of(histories, row)
    cut = Past(whole.items[:, 2:], whole.times[:, 2:], whole.ratings[:, 2:], whole.now)
    np.testing.assert_array_equal(got, Truth(world).bayes_optimal(cut))


def test_without_order_the_order_does_not_matter(shop):
    histories, world = shop
    past = Past.of(histories, np.array([[3, 2]]))
    turned = dataclasses.replace(past, items=past.items[:, ::-1], ratings=past.ratings[:, ::-1])
    truth = Truth(world, Observer(order=False))
    ordered = Truth(world)
    both = ordered.bayes_optimal(past), ordered.bayes_optimal(turned)
    evidence = np.exp([ordered.filter(order)[2][0] for order in (past, turned)])
    mixed = (evidence[0] * both[0] + evidence[1] * both[1]) / evidence.sum()
    for got in (truth.bayes_optimal(past), truth.bayes_optimal(turned)):
        np.testing.assert_allclose(got, mixed, rtol=1e-4)


def log_likelihood(scores, rows, histories):
    total = []
    for row, (user, position) in enumerate(rows):
        p = scores[row].astype(np.float64).copy()
        p[histories.of(user)[:position]] = 0.0
        total.append(np.log(p[histories.of(user)[position]] / p.sum()))
    return float(np.mean(total))


def test_every_signal_matters_and_no_observer_beats_the_oracle(shop):
    histories, world = shop

    def score(scores):
        return log_likelihood(scores, ROWS, histories)

    full = score(bayes_optimal_scores(world, histories, ROWS))
    assert score(oracle_scores(world, histories, ROWS)) > full
    assert full > score(np.ones((len(ROWS), 120), np.float32))
    for lost in ("images", "texts", "groups", "clock", "now", "order", "ratings"):
        observer = Observer(**{lost: False})
        assert score(bayes_optimal_scores(world, histories, ROWS, observer)) < full, lost
    assert score(bayes_optimal_scores(world, histories, ROWS, Observer(last=3))) < full


def test_bayes_optimal_is_how_often_users_with_that_history_choose(monkeypatch):
    monkeypatch.setattr(toyshop_items, "make", lambda *_: None)
    crowd = dataclasses.replace(
        SMALL, num_users=80_000, num_items=24, new_items=0.0, history=(3, 3), mood_days=1e6
    )
    _, histories, world = toyshop.generate(crowd)
    chosen = histories.items.reshape(-1, 3)
    pairs, counts = np.unique(chosen[:, 0] * 24 + chosen[:, 1], return_counts=True)
    first, second = divmod(int(pairs[counts.argmax()]), 24)
    same = np.flatnonzero((chosen[:, 0] == first) & (chosen[:, 1] == second))
    observed = np.bincount(chosen[same, 2], minlength=24)
    past = Past.of(histories, np.stack([same, np.full(len(same), 2)], axis=1))
    expected = Truth(world, Observer(ratings=False)).bayes_optimal(past).sum(0)
    assert len(same) > 500 and expected.sum() == pytest.approx(len(same), rel=1e-4)
    free = expected > 0
    assert free.sum() == 22 and observed[~free].sum() == 0
    chi_square = ((observed - expected)[free] ** 2 / expected[free]).sum()
    assert chi_square < 50  # 21 degrees of freedom: 99.96 % of draws


def test_oracle_probabilities_are_calibrated(shop):
    histories, world = shop
    rows = np.array([(u, p) for u in range(400) for p in range(1, len(histories.of(u)))])
    truth = oracle_scores(world, histories, rows)
    np.testing.assert_allclose(truth.sum(1), 1.0, rtol=1e-4)
    chosen = np.array([histories.of(u)[p] for u, p in rows])
    observed, expected = np.bincount(chosen, minlength=120), truth.sum(0)
    chi_square = ((observed - expected) ** 2 / (truth * (1 - truth)).sum(0)).sum()
    assert chi_square < 190  # 120 items: mean 120, sd 15


def test_where_items_lead_is_learned_from_training_transitions_alone(shop):
    histories, world = shop
    train_end = splits.leave_one_out(histories).train_end
    leads = learned_leads(world, histories, train_end)
    np.testing.assert_allclose(leads.sum(1), 1.0)
    told = np.eye(MOODS)[world.leads_to[world.groups]]
    old = world.offered == 0
    assert (leads.argmax(1) == told.argmax(1))[old].mean() > 0.9
    # a later choice, which is no training interaction, changes nothing
    items = histories.items.copy()
    items[histories.offsets[1:] - 1] = items[histories.offsets[1:] - 1][::-1]
    changed = dataclasses.replace(histories, items=items)
    np.testing.assert_array_equal(leads, learned_leads(world, changed, train_end))
    # the world's own groups are not read
    hidden = dataclasses.replace(world, groups=world.groups[::-1].copy())
    np.testing.assert_array_equal(leads, learned_leads(hidden, histories, train_end))


def test_learned_groups_lie_between_none_and_all(shop):
    histories, world = shop
    leads = learned_leads(world, histories, splits.leave_one_out(histories).train_end)
    rows = np.stack([np.arange(len(histories)), histories.lengths - 1], axis=1)
    told, learned, none = (
        log_likelihood(bayes_optimal_scores(world, histories, rows, **options), rows, histories)
        for options in ({}, {"leads": leads}, {"observer": Observer(groups=False)})
    )
    assert none + 0.5 * (told - none) < learned < told + 0.01
