"""Eight simulated CPU devices for every test, and the fixtures that more than one file uses."""

import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Most of the time goes into compiling programs that run once or a few times, the same ones in many
# files: workers and the processes that tests start share them until the tests are over.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
    _compiled = tempfile.TemporaryDirectory(prefix="mmsrec_jax-compiled-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _compiled.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

import pytest
from absl import flags

flags.FLAGS(sys.argv[:1])  # grain worker processes read absl flags

LONG = ("test_mmsrarec.py", "test_processes.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first: begun last, they would keep one worker while the other is idle."""
    items.sort(key=lambda item: item.path.name not in LONG)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The real data sets beside the repository; tests that need them are skipped without."""
    root = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not root.is_dir():
        pytest.skip("real data sets are not present beside the repository")
    return root


@pytest.fixture(scope="session")
def shop_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the examples of docstrings run: see `shop_folder.make`."""
    import shop_folder

    folder = tmp_path_factory.mktemp("shop_folder")
    shop_folder.make(folder)
    return folder
