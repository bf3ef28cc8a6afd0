"""Looks at a data set before anything is trained on it, and fetches pictures of items.

    python launch/data.py stats --config=configs/base.py --config.data.root=shop --html=shop.html
    python launch/data.py check --config=configs/base.py --config.data.root=shop
    python launch/data.py sample --config=configs/base.py --config.data.root=shop --user=u1
    python launch/data.py fetch --urls=urls.tsv --images=shop/images
    python launch/data.py fetch --config=configs/base.py --config.data.root=DIR \
        --config.data.source=amazon_reviews_2014/Beauty

stats   how much there is of what: fields, pictures, lengths, times, the split, tokens
check   what is wrong: one line each with file, row and remedy; status 1 when something is
sample  histories of users, with titles and times
fetch   pictures from a list of lines of an item id, a tab and a URL. They are made small and stored
        as shop/images/<item_id>.jpg. With --config, the URLs are those in the files of the data's
        publisher. The same command again goes on where it was stopped

stats, check and sample read the data as the step `data` of a run would, and write nothing but
--html: one page that needs no network, with small pictures.
"""

import shlex
import sys
from pathlib import Path

from absl import flags, logging
from ml_collections import config_flags

from mmsrec_jax.data.fetching import listed
from mmsrec_jax.data.fetching.client import Limits
from mmsrec_jax.data.fetching.fetch import FetchSettings
from mmsrec_jax.runtime import interruption, startup
from mmsrec_jax.runtime.errors import UserError
from mmsrec_jax.runtime.printable import printable_lines
from mmsrec_jax.runtime.settings import MAX_SEED

_COMMANDS = ("stats", "check", "sample", "fetch")
_READ_BY = {  # flag -> commands; the others are of all
    "html": ("stats", "check", "sample"), "tokenizer": ("stats",), "users": ("stats", "sample"),
    "seed": ("stats", "sample"), "user": ("sample",),
    **dict.fromkeys(
        ("urls", "images", "max_side", "rate", "parallel", "per_host", "attempts", "max_bytes",
         "connect_timeout", "read_timeout", "whole_timeout", "retry_failures", "private_hosts",
         "user_agent"), ("fetch",),
    ),
}  # fmt: skip

_JSON = flags.DEFINE_bool("json", False, "Print one JSON object.")
_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Experiment whose data it is.", lock_config=True
)
flags.DEFINE_string("local_dir", None, startup.LOCAL_DIR)
_HTML = flags.DEFINE_string("html", None, "stats, check, sample: file of a page to write.")
_TOKENIZER = flags.DEFINE_string(
    "tokenizer", None, "stats: folder of a model to count tokens by, else config.model.path."
)
_USERS = flags.DEFINE_integer("users", 5, "stats, sample: histories to show.", 1, 1000)
_USER = flags.DEFINE_string("user", None, "sample: raw id of a user, in place of random ones.")
_SEED = flags.DEFINE_integer("seed", 0, "stats, sample: of the users drawn.", 0, MAX_SEED)

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


def main(argv: list[str]) -> int:
    if len(argv) < 2 or argv[1] not in _COMMANDS:
        raise UserError(f"name what to do: {', '.join(_COMMANDS)}; --help explains them")
    startup.no_arguments(argv[1:])
    _check_flags(argv[1])
    interruption.watch()
    return _fetch() if argv[1] == "fetch" else _look(argv[1])


def _check_flags(command: str) -> None:
    """Raises UserError for a flag that the command does not read."""
    for name, commands in _READ_BY.items():
        if flags.FLAGS[name].present and command not in commands:
            readers = ", ".join(commands)
            raise UserError(f"{command} reads no --{name}, which is of {readers}; leave it out")
    for name in ("users", "seed"):
        if _USER.value and flags.FLAGS[name].present:
            raise UserError(
                f"--user names one user, and --{name} draws some: leave one of them out"
            )


def _look(command: str) -> int:
    from mmsrec_jax.methods import data_commands
    from mmsrec_jax.pages import document

    if _CONFIG.value is None:
        raise UserError(
            f"{command} needs --config, such as --config=configs/base.py --config.data.root=DIR"
        )
    if _HTML.value:
        document.check_path(Path(_HTML.value))
    look = data_commands.Look(_CONFIG.value)
    if command == "stats":
        tokenizer = _TOKENIZER.value or ""
        seen = look.stats(tokenizer=tokenizer, users=_USERS.value, seed=_SEED.value)
    elif command == "check":
        seen = look.check()
    else:
        seen = look.sample(user=_USER.value or "", users=_USERS.value, seed=_SEED.value)
    if _HTML.value:
        look.write_page(Path(_HTML.value), seen, shlex.join(sys.argv))
        logging.info("%s: the page", _HTML.value)
    print(printable_lines(seen.json() if _JSON.value else seen.text()))
    return 0 if seen.is_sound else 1


def _fetch() -> int:
    from mmsrec_jax.methods import data_commands

    images = Path(_IMAGES.value or "")
    if _URLS.value and _IMAGES.value and _CONFIG.value is None:
        wanted = listed.read(Path(_URLS.value))
    elif _CONFIG.value is not None and not _URLS.value:
        wanted, folder = data_commands.published_pictures(_CONFIG.value)
        images = Path(_IMAGES.value) if _IMAGES.value else folder
    else:
        raise UserError("fetch needs either --urls and --images, or --config; --help explains them")
    settings = FetchSettings(
        max_side=_MAX_SIDE.value,
        rate=_RATE.value,
        parallel=_PARALLEL.value,
        per_host=_PER_HOST.value,
        attempts=_ATTEMPTS.value,
        limits=Limits(_CONNECT.value, _READ.value, _WHOLE.value, _MAX_BYTES.value),
        retry_failures=_RETRY.value,
        private_hosts=tuple(_PRIVATE.value),
        user_agent=_AGENT.value,
    )
    found = data_commands.fetch(wanted, images, settings)
    print(printable_lines(found.json() if _JSON.value else found.text()))
    return 0


if __name__ == "__main__":
    try:
        startup.launch(main)
    except (interruption.Interrupted, KeyboardInterrupt):
        logging.info("stopped; go on with: %s", shlex.join(sys.orig_argv))
        sys.exit(130)
