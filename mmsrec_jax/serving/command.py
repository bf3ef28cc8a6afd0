"""`launch/recommend.py --serve`."""

from pathlib import Path

from absl import logging

from mmsrec_jax.methods import recommending
from mmsrec_jax.serving.local_server import LocalServer
from mmsrec_jax.serving.site import RecommendSite


def serve(port: int, workdir: Path, *, added: Path | None, form: str | None) -> None:
    """Answers on a page until Ctrl-C; port: as of `LocalServer`, the rest of `opened`."""
    recommending.check(workdir)
    server = LocalServer(port)
    asked = recommending.opened(workdir, added=added, form=form)
    logging.info("loads the model and compiles what answers need")
    asked.prepare()
    server.serve(RecommendSite(asked, workdir))
