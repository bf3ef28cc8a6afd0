import pytest
import table_system


@pytest.fixture(scope="module")
def histories():
    return table_system.histories()


@pytest.fixture(scope="module")
def rows(histories):
    return table_system.last_rows(histories)


@pytest.fixture(scope="module")
def table():
    return table_system.Table.random()
