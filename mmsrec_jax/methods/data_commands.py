"""What `launch/data.py` does."""

from pathlib import Path

from mmsrec_jax.data.fetching import fetch as fetching
from mmsrec_jax.runtime import lock


def fetch(urls: Path, images: Path, settings: fetching.FetchSettings) -> fetching.Summary:
    """Fetches the pictures that `urls` lists into `images`, a folder that is made when absent.

    Raises:
      UserError: as `fetching.fetch`; or another fetch is under way there.
    """
    folder = images / fetching.FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    with lock.only_run(folder, "--images"):
        return fetching.fetch(urls, images, settings)
