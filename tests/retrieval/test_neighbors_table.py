"""The table of neighbors: what is stored for a target is what is read, and no other's."""

import numpy as np
import pytest

from mmsrec_jax.retrieval import table
from mmsrec_jax.retrieval.similar import Neighbors
from mmsrec_jax.runtime.errors import UserError

ROWS = np.array([[3, 1], [0, 2], [3, 0], [1, 5]], np.int32)
ITEMS = np.array([[7, 8], [1, -1], [2, 9], [4, 4]], np.int32)


@pytest.fixture
def path(tmp_path):
    found = Neighbors(ITEMS, ITEMS + 10, np.linspace(0, 1, 8, dtype=np.float32).reshape(4, 2))
    table.write(tmp_path / "neighbors.parquet", ROWS, found)
    return tmp_path / "neighbors.parquet"


def test_what_is_read_is_in_the_order_of_the_targets(path):
    for order in ([0, 1, 2, 3], [2, 0], [3, 3, 1], []):
        found = table.read_items(path, ROWS[order])
        np.testing.assert_array_equal(found, ITEMS[order])
        assert found.dtype == np.int32


@pytest.mark.parametrize("target", [(0, 1), (1, 4), (3, 2), (4, 0), (0, 0), (9, 9)])
def test_a_target_that_is_not_there_is_refused_wherever_it_would_stand(path, target):
    with pytest.raises(UserError, match="not of these targets"):
        table.read_items(path, np.array([ROWS[0], target], np.int32))


def test_a_table_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(UserError, match="neighbors.parquet"):
        table.read_items(tmp_path / "neighbors.parquet", ROWS)
