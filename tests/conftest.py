"""Eight simulated CPU devices for every test, and the fixtures that more than one file uses."""

import gc
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import xla_flags

os.environ.setdefault("XLA_FLAGS", xla_flags.of_devices(8))
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

if TYPE_CHECKING:
    from bucket_server import BucketServer

# Tracing makes many objects that stay: by default a tenth of the time goes into looking at them.
gc.set_threshold(50_000, 20, 20)
flags.FLAGS(sys.argv[:1])  # grain worker processes read absl flags

LONG = ("test_mmsrarec.py", "test_processes.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first: begun last, they would keep one worker while the other is idle."""
    items.sort(key=lambda item: item.path.name not in LONG)


def pytest_collection_finish() -> None:
    gc.freeze()  # what was imported stays


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


@pytest.fixture(scope="session")
def _started_bucket_server() -> Iterator["BucketServer"]:
    for package in ("google.cloud.storage", "gcsfs"):
        pytest.importorskip(package, reason="needs the extra [gcs]: pip install -e '.[gcs]'")
    from bucket_server import BucketServer

    with BucketServer("lab") as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        yield server


@pytest.fixture
def bucket_server(
    _started_bucket_server: "BucketServer", monkeypatch: pytest.MonkeyPatch
) -> "BucketServer":
    """A server of the bucket `lab`, empty; locks count as left behind after moments."""
    from mmsrec_jax.runtime.buckets import lock

    monkeypatch.setattr(lock, "DEAD", 0.3)
    monkeypatch.setattr(lock, "RENEWED", 0.05)
    monkeypatch.setattr(lock, "_LOOKS", 0.02)
    _started_bucket_server.clear()
    return _started_bucket_server


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes this process one of a machine of that name, which has no copies of buckets yet."""
    from mmsrec_jax.runtime.buckets import copies, given

    def become(name: str) -> None:
        monkeypatch.setattr(copies, "_root", tmp_path / name)
        given._copied.cache_clear()

    become("machine")
    return become
