"""What goes into a row beside brute force, and how full rows are."""

import itertools

import numpy as np
import pytest
import sized_examples

from benchmarks import packing_rows
from configs import movielens
from mmsrec_jax.inputs import packing
from mmsrec_jax.inputs.pipeline import batches
from mmsrec_jax.methods.settings import Settings
from mmsrec_jax.runtime.settings import from_config


def occupied(found, first, last):
    """Of some batches; the first ones still have all short examples to choose from."""
    shares = [np.mean(batch.segment_ids > 0) for batch in itertools.islice(found, first, last)]
    return sum(shares) / len(shares)


def test_the_fullest_beside_all_pairs():
    rng = np.random.default_rng(0)
    none = 0
    for _ in range(300):
        needed = rng.integers(1, 12, (rng.integers(1, 7), 3))
        left = rng.integers(2, 20, 3)
        best, wanted = 0, None
        for first, second in itertools.product(range(len(needed)), repeat=2):
            both = needed[[first]] if first == second else needed[[first, second]]
            if (both.sum(axis=0) <= left).all() and both[:, 0].sum() > best:
                best, wanted = both[:, 0].sum(), first
        assert packing.fullest(needed, left) == wanted
        none += wanted is None
    assert 20 < none < 200


@pytest.mark.parametrize("look_ahead", [1, 7])
def test_a_row_begins_with_the_oldest_and_no_example_is_lost(look_ahead):
    source = sized_examples.small(150)
    found = batches(
        source, batch_size=3, **sized_examples.SMALL, look_ahead=look_ahead, repeat=False
    )
    rows = [row for batch in found for row in sized_examples.held(batch)]
    left = set(range(len(source)))
    for row in filter(None, rows):
        draws = [draw for _, draw in row]
        assert draws[0] == min(left)
        # Of those that come after the oldest, only as many as wait are known.
        for draw in draws:
            assert draw in sorted(left)[: look_ahead + 1]
            left.remove(draw)
    assert not left
    assert sorted(item for row in rows for item, _ in row) == list(range(len(source)))


def test_waiting_examples_fill_rows_of_films():
    shape = dict(batch_size=8, length=4096, patches=8192, answers=32)
    source = sized_examples.as_films(4000)
    wait = Settings().sft.look_ahead
    full, in_order = (
        occupied(batches(source, **shape, look_ahead=look_ahead), 60, 120)
        for look_ahead in (wait, 0)
    )
    assert full > 0.95 > 0.91 > in_order


def test_rows_of_sft_on_real_films_are_full(shared_data, tmp_path):
    """The other measurements, of longer runs and a Qwen's tokenizer: benchmarks/packing.py."""
    config = movielens.get_config()
    config.data.root = str(shared_data / "ml-1m")
    settings = from_config(Settings, config)
    source = packing_rows.sources(settings, "", tmp_path)["with images"]
    found = packing_rows.measured(source, settings, settings.sft.look_ahead, rows=8, count=6)
    assert found["tokens"] >= 0.95
    assert found["examples"] > 100 and found["patches"] > 0.3
