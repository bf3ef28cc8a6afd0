r"""Looks at a data set before anything is trained on it, makes one of CSV files, fetches pictures.

    python launch/data.py stats --config=configs/base.py --config.data.root=shop --html=shop.html
    python launch/data.py check --config=configs/base.py --config.data.root=shop
    python launch/data.py sample --config=configs/base.py --config.data.root=shop --user=u1
    python launch/data.py csv --interactions=orders.csv --items=products.csv --out=shop \
        --columns=user_id=customer,item_id=sku,timestamp=date --item_columns=item_id=sku,title=name
    python launch/data.py fetch --urls=urls.tsv --images=shop/images
    python launch/data.py fetch --config=configs/base.py --config.data.root=DIR \
        --config.data.source=amazon_reviews_2014/Beauty

stats   how much there is of what: fields, pictures, lengths, times, the split, tokens
check   what is wrong: one line each with file, row and remedy; status 1 when something is
sample  histories of users, with titles and times
csv     atomic files, shop/shop.inter and shop/shop.item, out of CSV files with headers
fetch   pictures from a list of lines of an item id, a tab and a URL. They are made small and stored
        as shop/images/<item_id>.jpg. With --config, the URLs are those in the files of the data's
        publisher. The same command again goes on where it was stopped

stats, check and sample read the data as the step `data` of a run would, and write nothing but
--html: one page that needs no network, with small pictures.
"""

import shlex
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from absl import flags, logging
from ml_collections import config_flags

from mmsrec_jax.data import from_csv
from mmsrec_jax.data.fetching import listed
from mmsrec_jax.data.fetching.client import Limits
from mmsrec_jax.data.fetching.fetch import FetchSettings
from mmsrec_jax.data.from_csv import Csv
from mmsrec_jax.runtime import interruption, startup
from mmsrec_jax.runtime.buckets import outputs
from mmsrec_jax.runtime.buckets.objects import is_url
from mmsrec_jax.runtime.errors import UserError
from mmsrec_jax.runtime.printable import printable_lines
from mmsrec_jax.runtime.settings import MAX_SEED

if TYPE_CHECKING:  # seconds of import
    from mmsrec_jax.methods import data_commands

_COMMANDS = ("stats", "check", "sample", "csv", "fetch")
_READ_BY: dict[str, tuple[str, ...]] = {}  # flag -> commands; the others are of all

_T = TypeVar("_T")


def _of(commands: tuple[str, ...], flag: "flags.FlagHolder[_T]") -> "flags.FlagHolder[_T]":
    """A flag that only these commands read; its help begins with them."""
    _READ_BY[flag.name] = commands
    described = flags.FLAGS[flag.name]
    described.help = f"{', '.join(commands)}: {described.help}"
    return flag


def _of_csv(flag: "flags.FlagHolder[_T]") -> "flags.FlagHolder[_T]":
    return _of(("csv",), flag)


def _of_fetch(flag: "flags.FlagHolder[_T]") -> "flags.FlagHolder[_T]":
    return _of(("fetch",), flag)


_JSON = flags.DEFINE_bool("json", False, "Print one JSON object.")
_WITH_CONFIG = ("stats", "check", "sample", "fetch")
_CONFIG = _of(
    _WITH_CONFIG,
    config_flags.DEFINE_config_file(
        "config", None, "Experiment whose data it is.", lock_config=True
    ),
)
_of((*_WITH_CONFIG, "csv"), flags.DEFINE_string("local_dir", None, startup.LOCAL_DIR))
_HTML = _of(
    ("stats", "check", "sample"),
    flags.DEFINE_string("html", None, "file of a page to write, or gs://BUCKET/FILE."),
)
_TOKENIZER = _of(
    ("stats",),
    flags.DEFINE_string(
        "tokenizer", None, "folder of a model to count tokens by, else config.model.path."
    ),
)
_USERS = _of(("stats", "sample"), flags.DEFINE_integer("users", 5, "histories to show.", 1, 1000))
_USER = _of(
    ("sample",), flags.DEFINE_string("user", None, "raw id of a user, in place of random ones.")
)
_SEED = _of(
    ("stats", "sample"), flags.DEFINE_integer("seed", 0, "of the users drawn.", 0, MAX_SEED)
)

_INTERACTIONS = _of_csv(flags.DEFINE_string("interactions", None, "file of interactions."))
_ITEMS = _of_csv(flags.DEFINE_string("items", None, "file of items, if there is one."))
_OUT = _of_csv(
    flags.DEFINE_string("out", None, "folder of the atomic files, or gs://BUCKET/FOLDER.")
)
_COLUMNS = _of_csv(
    flags.DEFINE_list(
        "columns",
        [],
        "names in the file of interactions, such as user_id=customer,item_id=sku,timestamp=date.",
    ),
)
_ITEM_COLUMNS = _of_csv(
    flags.DEFINE_list("item_columns", [], "names in the file of items: item_id=sku,title=name."),
)
_TIME_FORMAT = _of_csv(
    flags.DEFINE_string(
        "time_format",
        "",
        "how times are written, such as %d.%m.%Y; else seconds since 1970 or YYYY-MM-DD HH:MM:SS.",
    ),
)
_ENCODING = _of_csv(
    flags.DEFINE_enum(
        "encoding",
        "utf-8",
        ["utf-8", "cp1252", "latin-1", "shift_jis", "gb18030", "euc-kr"],
        "of the files.",
    ),
)

_URLS = _of_fetch(flags.DEFINE_string("urls", None, "file of item ids and URLs."))
_IMAGES = _of_fetch(
    flags.DEFINE_string("images", None, "folder of the pictures, or gs://BUCKET/FOLDER.")
)
_MAX_SIDE = _of_fetch(
    flags.DEFINE_integer(
        "max_side", 512, "pixels of the longer side; larger pictures are made smaller.", 16, 8192
    ),
)
_RATE = _of_fetch(flags.DEFINE_float("rate", 10.0, "requests a second to one host.", 0.001, 10_000))
_PARALLEL = _of_fetch(flags.DEFINE_integer("parallel", 16, "requests at once.", 1, 256))
_PER_HOST = _of_fetch(flags.DEFINE_integer("per_host", 8, "requests at once to one host.", 1, 256))
_ATTEMPTS = _of_fetch(
    flags.DEFINE_integer("attempts", 5, "tries of one picture, where the fault may pass.", 1, 100),
)
_MAX_BYTES = _of_fetch(
    flags.DEFINE_integer("max_bytes", 20 << 20, "largest file that is taken.", 1, 1 << 28),
)
_CONNECT = _of_fetch(flags.DEFINE_float("connect_timeout", 10.0, "seconds to connect.", 0.01, 3600))
_READ = _of_fetch(flags.DEFINE_float("read_timeout", 20.0, "seconds without a byte.", 0.01, 3600))
_WHOLE = _of_fetch(
    flags.DEFINE_float("whole_timeout", 120.0, "seconds of a request.", 0.01, 86_400)
)
_RETRY = _of_fetch(
    flags.DEFINE_bool("retry_failures", False, "try again what failed in an earlier start."),
)
_PRIVATE = _of_fetch(
    flags.DEFINE_list(
        "private_hosts", [], "hosts that may be asked although their addresses are private."
    ),
)
_AGENT = _of_fetch(
    flags.DEFINE_string(
        "user_agent",
        "mmsrec_jax (research; images of a data set)",
        "how the program names itself; many hosts want an address to write to.",
    ),
)


def main(argv: list[str]) -> int:
    if len(argv) < 2 or argv[1] not in _COMMANDS:
        raise UserError(f"name what to do: {', '.join(_COMMANDS)}; --help explains them")
    startup.no_arguments(argv[1:])
    _check_flags(argv[1])
    interruption.watch()
    if argv[1] == "csv":
        return _convert()
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
    with outputs.file(_HTML.value) if _HTML.value else nullcontext() as html:
        if html:
            document.check_path(html)
        seen = _seen(look := data_commands.Look(_CONFIG.value), command)
        if html:
            look.write_page(html, seen, shlex.join(sys.argv))
    if _HTML.value:
        logging.info("%s: the page", _HTML.value)
    print(printable_lines(seen.json() if _JSON.value else seen.text()))
    return 0 if seen.is_sound else 1


def _seen(look: "data_commands.Look", command: str) -> "data_commands.Seen":
    if command == "stats":
        tokenizer = _TOKENIZER.value or ""
        return look.stats(tokenizer=tokenizer, users=_USERS.value, seed=_SEED.value)
    if command == "check":
        return look.check()
    return look.sample(user=_USER.value or "", users=_USERS.value, seed=_SEED.value)


def _convert() -> int:
    if not (_INTERACTIONS.value and _OUT.value):
        raise UserError("csv needs --interactions and --out; --help explains them")
    items = None
    if _ITEMS.value:
        renamed = from_csv.parsed_columns(_ITEM_COLUMNS.value, "--item_columns")
        items = Csv(Path(_ITEMS.value), renamed, _ENCODING.value)
    elif _ITEM_COLUMNS.value:
        raise UserError("--item_columns names columns of --items; give that too")
    renamed = from_csv.parsed_columns(_COLUMNS.value, "--columns")
    interactions = Csv(Path(_INTERACTIONS.value), renamed, _ENCODING.value)
    with outputs.folder(_OUT.value, new=is_url(_OUT.value)) as out:
        made = from_csv.convert(out, interactions, items, time_format=_TIME_FORMAT.value)
    if is_url(_OUT.value):
        made = made.moved(_OUT.value)
    print(printable_lines(made.json() if _JSON.value else made.text()))
    return 0


def _fetch() -> int:
    from mmsrec_jax.methods import data_commands

    if _URLS.value and _IMAGES.value and _CONFIG.value is None:
        wanted, images = listed.read(Path(_URLS.value)), _IMAGES.value
    elif _CONFIG.value is not None and not _URLS.value:
        wanted, folder = data_commands.published_pictures(_CONFIG.value)
        images = _IMAGES.value or folder
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
