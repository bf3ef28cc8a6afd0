"""Input workers without jax: what Python runs in them in place of the program that started them.

Grain starts workers by "spawn", which runs the file of the main program again in each, with all its
imports. And Grain itself imports jax where it can: hundreds of MB a worker, and seconds.
"""

import importlib.util
import logging
import sys

_MISSING = "Failed to load jax profiler"  # what Grain says of it, once a worker


def keep_jax_out() -> None:
    """From now on processes that are spawned run this module and not the main program's file.

    For programs that define nothing that their workers need: call it before the first batch.
    """
    # What `multiprocessing` goes by; without it, it takes the path of the program.
    sys.modules["__main__"].__spec__ = importlib.util.find_spec(__name__)


def _forbid_jax() -> None:
    from absl import logging as absl_logging

    sys.modules["jax"] = None  # type: ignore[assignment]  # importing it is an ImportError now
    absl_logging.get_absl_logger().addFilter(_is_no_complaint)


def _is_no_complaint(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(_MISSING)


if __name__ == "__mp_main__":  # in a worker, before Grain is unpickled
    _forbid_jax()
