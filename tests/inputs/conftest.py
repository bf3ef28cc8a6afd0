"""One small shop for all tests of the inputs."""

import pytest
import toy_items


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    return toy_items.make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="session")
def prompt_config(trained):
    return toy_items.prompt_config(trained)
