"""What a finished run recommends, and what that rests on.

    python launch/recommend.py --workdir=runs/quickstart --user=u00012
    python launch/recommend.py --workdir=runs/quickstart --history=i0007,i0023 --top=5 --json
    python launch/recommend.py --workdir=runs/quickstart --user=u00012 --html=u00012.html
    python launch/recommend.py --workdir=runs/quickstart --user=u00012 --add=new.jsonl
    python launch/recommend.py --workdir=runs/quickstart --serve

It prints the history, the items of similar users that the model has read, and ranked items with
their scores, keywords and the paths of their pictures. Items of the history are left out. A run of
MLLM-SRec first writes the texts about the history that are not there yet, one window for a new
interaction at most; the answer shows them.

--about tells what the user of --history states, of a run that reads it (docs/data.md).
--add names new items, which a run of MMSRARec recommends without training: lines like
{"id": "n1", "title": "oak lamp", "description": "for the desk", "image": "n1.jpg"}
The answer goes to standard output, everything else to standard error.

--serve loads the model once and answers on a page of this machine, http://127.0.0.1:8000/ (--port):
search items, choose a history, type one as ids or name a user, add an item with a picture, ask
again. New items last until Ctrl-C. Other machines cannot open the page; from your laptop to a
machine that you log in to:
ssh -L 8000:127.0.0.1:8000 HOST. Everyone who is logged in to the same machine can open it.
"""

import shlex
import sys
from contextlib import nullcontext
from pathlib import Path

from absl import flags, logging

from mmsrec_jax.runtime import startup
from mmsrec_jax.runtime.buckets import outputs
from mmsrec_jax.runtime.buckets import run as buckets
from mmsrec_jax.runtime.errors import UserError
from mmsrec_jax.runtime.printable import printable_lines

_ON_THE_PAGE = ("user", "history", "times", "now", "top")
_OF_ONE_ANSWER = ("about", "json", "html")

_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of a finished run of MMSRARec or MLLM-SRec, or gs://BUCKET/FOLDER."
)
flags.DEFINE_string("local_dir", None, startup.LOCAL_DIR)
_USER = flags.DEFINE_string("user", None, "Raw id of a user in the data of the run.")
_HISTORY = flags.DEFINE_list(
    "history", None, "In place of --user: raw item ids, oldest first, of a user in no data."
)
_TIMES = flags.DEFINE_list(
    "times", None, "Seconds since 1970 of the items of --history, for runs that read the clock."
)
_NOW = flags.DEFINE_float(
    "now", None, "When this is asked, seconds since 1970; else right after the last choice."
)
_ABOUT = flags.DEFINE_list(
    "about", None, "What the user of --history states, of a run that reads it: age=35,gender=F."
)
_TOP = flags.DEFINE_integer("top", 10, "Items to show.", 1, 1_000_000)
_ADD = flags.DEFINE_string("add", None, "File of new items, one JSON object a line.")
_FORM = flags.DEFINE_enum(
    "form", None, ["joint", "cached"], "Form of stage 3, of a run with several; else its first."
)
_JSON = flags.DEFINE_bool("json", False, "Print one JSON object.")
_HTML = flags.DEFINE_string(
    "html", None, "File of a page with pictures to write too, also in a bucket."
)
_SERVE = flags.DEFINE_bool("serve", False, "Answer on a page of this machine until Ctrl-C.")
_PORT = flags.DEFINE_integer("port", 8000, "Of the page of --serve; 0 takes a free one.", 0, 65535)
_ALLOW_CPU = flags.DEFINE_bool("allow_cpu", False, "Run on the CPU of a machine with a TPU or GPU.")


def main(argv: list[str]) -> None:
    startup.no_arguments(argv)
    _check_flags()
    startup.check_devices(allow_cpu=_ALLOW_CPU.value)
    added = Path(_ADD.value) if _ADD.value else None
    if _SERVE.value:
        from mmsrec_jax.serving import command

        with buckets.reading(_WORKDIR.value) as folder:
            command.serve(_PORT.value, folder.resolve(), added=added, form=_FORM.value)
        return
    from mmsrec_jax.methods import answer_page, recommending
    from mmsrec_jax.pages import document

    times = None if _TIMES.value is None else recommending.numbers(_TIMES.value)
    about = recommending.attributes(_ABOUT.value)
    page_file = outputs.file(_HTML.value) if _HTML.value else nullcontext()
    with page_file as html, buckets.reading(_WORKDIR.value) as folder:
        if html:
            document.check_path(html)
        asked = recommending.opened(folder.resolve(), added=added, form=_FORM.value)
        answer = asked.recommend(
            user=_USER.value,
            history=_HISTORY.value,
            times=times,
            now=_NOW.value,
            about=about,
            top=_TOP.value,
        )
        if html:
            page = answer_page.page(answer, asked.catalog, shlex.join(sys.argv))
            document.write(html, page)
    if _HTML.value:
        logging.info("%s: the page", _HTML.value)
    print(printable_lines(answer.json() if _JSON.value else answer.text()))


def _check_flags() -> None:
    """Refuses flags that nothing would read."""
    if _SERVE.value:
        refused = dict.fromkeys(_ON_THE_PAGE, "with --serve, ask on the page; leave it out")
        remedy = "the page of --serve has no such thing; leave out --serve, or this"
        refused |= dict.fromkeys(_OF_ONE_ANSWER, remedy)
    else:
        refused = {"port": "it belongs to --serve; leave it out"}
    for name, remedy in refused.items():
        if flags.FLAGS[name].present:
            raise UserError(f"--{name}: {remedy}")


if __name__ == "__main__":
    startup.launch(main, required=["workdir"])
