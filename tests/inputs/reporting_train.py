"""launch/train.py whose run tells, in place of training, what is loaded where batches are made."""

import dataclasses
import json
import runpy
import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import toy_items

from mmsrec_jax import methods
from mmsrec_jax.inputs.item_prompts import SummarySource
from mmsrec_jax.inputs.pairs import PairBatches, PairPrompts, PairRoom, dataset
from mmsrec_jax.inputs.pipeline import batches
from mmsrec_jax.inputs.recommend import PromptContext
from mmsrec_jax.models.batch import fields_of

_WITH_JAX = "made_with_jax"


class _Items(SummarySource):
    def example(self, row, draw):
        made = super().example(row, draw)
        seen = {_WITH_JAX: int("jaxlib" in sys.modules)}
        return dataclasses.replace(made, counts={**made.counts, **seen})


class _Pairs(PairBatches):
    def __getitem__(self, step):
        made, counts = super().__getitem__(step)
        return made, {**counts, _WITH_JAX: int("jaxlib" in sys.modules)}


def _sums(batch) -> list[float]:
    """A number of each array of the batch, in which every value and its place counts."""
    arrays = (np.asarray(array, np.float64).ravel() for _, array, _ in fields_of(batch))
    return [float(array @ np.arange(1, array.size + 1)) for array in arrays]


def _report(*_, **__) -> None:
    with tempfile.TemporaryDirectory() as folder:
        prompt_config = toy_items.prompt_config(toy_items.make_tokenizer(Path(folder)))
    items = _Items(toy_items.catalog(), prompt_config, length=60)
    histories = toy_items.histories()
    context = PromptContext(toy_items.catalog(), histories, toy_items.keywords())
    room = PairRoom(prompt=60, item=24, patches=16, tail=1, words=16)
    rows = toy_items.train_rows(histories)
    prompts = PairPrompts(
        context, prompt_config, rows, room=room, history=5, similar=0, history_end=False
    )
    pairs = _Pairs(prompts, steps=3, users=4, items=12, align=0.3, seed=3)
    shape = dict(batch_size=5, length=60, patches=16, shuffle=False, repeat=False)
    for workers in (0, 1):
        for pack in (True, False):
            counts: Counter[str] = Counter()
            made = list(batches(items, **shape, pack=pack, workers=workers, counts=counts))
            print(json.dumps([f"items {pack}", workers, counts, [_sums(one) for one in made]]))
        counts = Counter()
        made = list(dataset(pairs, workers, counts))
        sums = [[*_sums(one.users), *_sums(one.items), *one.targets.tolist()] for one in made]
        print(json.dumps(["pairs", workers, counts, sums]))


if __name__ == "__main__":
    methods.run = _report
    runpy.run_path("launch/train.py", run_name="__main__")
