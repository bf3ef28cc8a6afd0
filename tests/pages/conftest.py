"""A run without training and its page, for all tests of pages."""

import page_run
import pytest
from html_check import Page
from page_run import PageRun

from mmsrec_jax.methods.settings import Settings
from mmsrec_jax.pages.run_page import RunPage
from mmsrec_jax.runtime.settings import as_dict


@pytest.fixture(scope="session")
def states(tmp_path_factory):
    """The run, and its page as it was after each step."""
    run = PageRun(tmp_path_factory.mktemp("pages") / "shop", page_run.config())
    writer = RunPage(run.folder, lambda: run.dataset, as_dict(Settings()))
    seen = {}

    def after(step):
        seen[step] = writer.write().read_text()

    run.run(after)
    return run, {step: (text, Page(text)) for step, text in seen.items()}


@pytest.fixture
def done(states):
    run, seen = states
    return run, *seen["evaluation"]
