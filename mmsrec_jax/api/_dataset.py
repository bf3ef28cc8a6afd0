"""A data set of one's own, or that of a run, as the package sees it."""

import dataclasses
from pathlib import Path
from typing import Any

from mmsrec_jax.data import build
from mmsrec_jax.data.build import DataSettings
from mmsrec_jax.data.records import Dataset
from mmsrec_jax.runtime.buckets.given import local_run
from mmsrec_jax.runtime.buckets.objects import Objects, is_url
from mmsrec_jax.runtime.config_utils import choose_name
from mmsrec_jax.runtime.errors import UserError
from mmsrec_jax.runtime.settings import as_dict, from_config

_PREPARED = "data/step.json"  # a run has it


def open_dataset(path: str | Path, **settings: Any) -> Dataset:
    """Catalog, histories and split of a folder of raw files, or of a run.

    A folder of RecBole atomic files, or of a publisher's files with `source`, is read, filtered and
    split as the step `data` of a run does it, in memory; images are read when they are asked for.
    Of a run it is what that step stored.

    Args:
      path: folder of NAME.inter, NAME.item and images/<item_id>.jpg, or of a publisher's files, or
        a run's workdir; also `gs://BUCKET/FOLDER`.
      settings: of raw files, fields of `data.build.DataSettings`: `user_core=5`,
        `split="leave_one_out"`, `source="amazon_reviews_2014/Beauty"`, ...

    Raises:
      UserError: no such folder, a file that cannot be read, an unknown setting, or settings for a
        run, which has its own.

    >>> catalog, histories, split = mmsrec_jax.open_dataset("shop", user_core=3, item_core=1)
    >>> len(catalog), len(histories)
    (60, 150)
    >>> catalog[0].id, catalog[0].text["title"]
    ('i0000', 'terracotta flower holder')
    >>> catalog.image(0).shape
    (112, 112, 3)
    >>> user, position = split.test[0]
    >>> str(catalog.ids[histories.of(user)[position]])  # what the first user is tested on
    'i0057'
    >>> mmsrec_jax.open_dataset("runs/shop").catalog.ids.tolist() == catalog.ids.tolist()
    True
    """
    of_run = is_url(path) and Objects(str(path)).find(_PREPARED) is not None
    folder = local_run(path) if of_run else Path(path)
    if of_run or (folder / _PREPARED).exists():
        if settings:
            raise UserError(f"{path}: a run has its own settings; leave out {', '.join(settings)}")
        return build.open_run(folder)
    defaults = DataSettings()
    record = {field.name: getattr(defaults, field.name) for field in dataclasses.fields(defaults)}
    record |= {"root": str(path), "toyshop": as_dict(defaults.toyshop)}
    for name in settings:
        choose_name(name, record.keys() - {"root", "toyshop"}, what="setting")
    chosen = from_config(DataSettings, record | settings, "open_dataset")
    build.check(chosen)
    return build.read(chosen).dataset
