"""The experiments on MovieLens-1M ask for nothing that its files, as documented, do not hold."""

from pathlib import Path

import numpy as np
import pytest

from configs import movielens
from mmsrec_jax.data import build
from mmsrec_jax.methods import checks
from mmsrec_jax.methods.mmsrarec import MMSRARec
from mmsrec_jax.methods.settings import Settings
from mmsrec_jax.runtime import sharding
from mmsrec_jax.runtime.settings import from_config


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """400 films and 60 users: an order in place of times, no ratings, a plot for some."""
    root, rng = tmp_path_factory.mktemp("data") / "ml-1m", np.random.default_rng(0)
    root.mkdir()
    films = ["item_id:token\ttitle:token_seq\tyear:float\tgenres:token_seq\tabstract:token_seq"]
    films += [f"{i}\tFilm {i}, The\t1995\tDrama Comedy\t{'Plot.' * (i % 2)}" for i in range(400)]
    (root / "ml-1m.item").write_text("\n".join(films) + "\n")
    rows = ["user_id:token\titem_id:token\ttimestamp:float"]
    for user in range(60):
        chosen = rng.choice(400, size=50, replace=False)
        rows += [f"{user}\t{item}\t{place}" for place, item in enumerate(chosen)]
    (root / "ml-1m.inter").write_text("\n".join(rows) + "\n")
    return root


@pytest.mark.parametrize("variant", ["", "smoke", "titles", "small"])
def test_prompts_tell_what_the_data_has(variant, folder, tmp_path):
    config = movielens.get_config(variant)
    config.data.root = str(folder)
    config.data.only_items_with_image = False
    settings = from_config(Settings, config)
    build.build(settings.data, tmp_path)
    dataset = build.open_built(settings.data, tmp_path)
    run = MMSRARec(settings, tmp_path, sharding.make_mesh())
    checks.check_data(
        settings,
        [step.name for step in run.steps()],
        dataset,
        coverage=build.coverage(tmp_path),
        targets=dataset.split.train,
    )
