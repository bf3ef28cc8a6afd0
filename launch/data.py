"""Fetches pictures of items.

    python launch/data.py fetch --urls=urls.tsv --images=shop/images

urls.tsv has lines of an item id, a tab and a URL. Pictures are made small and stored as
shop/images/<item_id>.jpg. The same command again goes on where it was stopped.
"""

import shlex
import sys
from pathlib import Path

from absl import flags, logging

from mmsrec_jax.data.fetching.client import Limits
from mmsrec_jax.data.fetching.fetch import FetchSettings
from mmsrec_jax.runtime import interruption, startup
from mmsrec_jax.runtime.errors import UserError
from mmsrec_jax.runtime.printable import printable_lines

_COMMANDS = ("fetch",)
_JSON = flags.DEFINE_bool("json", False, "Print one JSON object.")
_URLS = flags.DEFINE_string("urls", None, "fetch: file of item ids and URLs.")
_IMAGES = flags.DEFINE_string("images", None, "fetch: folder of the pictures.")
_MAX_SIDE = flags.DEFINE_integer(
    "max_side", 512, "fetch: pixels of the longer side; larger pictures are made smaller.", 16, 8192
)
_RATE = flags.DEFINE_float("rate", 10.0, "fetch: requests a second to one host.", 0.001, 10_000)
_PARALLEL = flags.DEFINE_integer("parallel", 16, "fetch: requests at once.", 1, 256)
_PER_HOST = flags.DEFINE_integer("per_host", 8, "fetch: requests at once to one host.", 1, 256)
_ATTEMPTS = flags.DEFINE_integer(
    "attempts", 5, "fetch: tries of one picture, where the fault may pass.", 1, 100
)
_MAX_BYTES = flags.DEFINE_integer(
    "max_bytes", 20 << 20, "fetch: largest file that is taken.", 1, 1 << 28
)
_CONNECT = flags.DEFINE_float("connect_timeout", 10.0, "fetch: seconds to connect.", 0.01, 3600)
_READ = flags.DEFINE_float("read_timeout", 20.0, "fetch: seconds without a byte.", 0.01, 3600)
_WHOLE = flags.DEFINE_float("whole_timeout", 120.0, "fetch: seconds of a request.", 0.01, 86_400)
_RETRY = flags.DEFINE_bool(
    "retry_failures", False, "fetch: try again what failed in an earlier start."
)
_PRIVATE = flags.DEFINE_list(
    "private_hosts", [], "fetch: hosts that may be asked although their addresses are private."
)
_AGENT = flags.DEFINE_string(
    "user_agent",
    "mmsrec_jax (research; images of a data set)",
    "fetch: how the program names itself; many hosts want an address to write to.",
)


def main(argv: list[str]) -> None:
    if len(argv) < 2 or argv[1] not in _COMMANDS:
        raise UserError(f"name what to do: {', '.join(_COMMANDS)}; --help explains them")
    startup.no_arguments(argv[1:])
    interruption.watch()
    _fetch()


def _fetch() -> None:
    from mmsrec_jax.methods import data_commands

    if not (_URLS.value and _IMAGES.value):
        raise UserError("fetch needs --urls and --images; --help explains them")
    limits = Limits(_CONNECT.value, _READ.value, _WHOLE.value, _MAX_BYTES.value)
    settings = FetchSettings(
        max_side=_MAX_SIDE.value,
        rate=_RATE.value,
        parallel=_PARALLEL.value,
        per_host=_PER_HOST.value,
        attempts=_ATTEMPTS.value,
        limits=limits,
        retry_failures=_RETRY.value,
        private_hosts=tuple(_PRIVATE.value),
        user_agent=_AGENT.value,
    )
    found = data_commands.fetch(Path(_URLS.value), Path(_IMAGES.value), settings)
    print(printable_lines(found.json() if _JSON.value else found.text()))


if __name__ == "__main__":
    try:
        startup.launch(main)
    except (interruption.Interrupted, KeyboardInterrupt):
        logging.info("stopped; go on with: %s", shlex.join(sys.orig_argv))
        sys.exit(130)
