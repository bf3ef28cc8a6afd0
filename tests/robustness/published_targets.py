"""Publishers' files for `test_fuzz_readers`."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import published_files
from fuzzing import Target, either, json_lines, json_value, unpacked
from mutate import damaged_bytes

from mmsrec_jax.data.published import catalog, read

_FILES = {
    ".json.gz": unpacked,
    ".csv.gz": unpacked,
    ".jsonl.gz": unpacked,
    ".jsonl": either(json_lines, damaged_bytes),
    ".csv": damaged_bytes,
    ".tsv": damaged_bytes,
    ".dat": damaged_bytes,
    "u.data": damaged_bytes,
    "u.item": damaged_bytes,
    ".inter.json": either(json_value, damaged_bytes),
    ".item.json": either(json_value, damaged_bytes),
}


def _reader(*names: str) -> Callable[[Path], None]:
    def read_all(folder: Path) -> None:
        for name in names:
            items, histories, report = read.read(catalog.find(name), folder)
            assert len(items) == len(items.ids) and report.read
            assert len(histories.items) and histories.items.max() < len(items)
            assert np.isfinite(histories.timestamps).all()
            for item in items:
                assert item.id and "\0" not in item.id

    return read_all


TARGETS = {
    name: Target(make, _reader(*sources), _FILES, 50)
    for name, make, *sources in (
        ("amazon_2014", published_files.amazon_2014, "amazon_reviews_2014/Beauty"),
        (
            "amazon_2014_ratings",
            published_files.amazon_2014,
            "amazon_reviews_2014/Beauty-ratings",
        ),
        ("amazon_2018", published_files.amazon_2018, "amazon_reviews_2018/All_Beauty"),
        ("amazon_2023", published_files.amazon_2023, "amazon_reviews_2023/Video_Games"),
        ("microlens_50k", published_files.microlens_50k, "microlens/50k"),
        ("microlens_100k", published_files.microlens_100k, "microlens/100k"),
        ("movielens_100k", published_files.movielens_100k, "movielens/100k"),
        ("movielens_1m", published_files.movielens_1m, "movielens/1m"),
        ("movielens_small", published_files.movielens_small, "movielens/latest-small"),
        ("pixelrec", published_files.pixelrec, "pixelrec/50K"),
        ("hm", published_files.hm, "hm/all"),
        ("lc_rec", published_files.lc_rec, "lc_rec/Games"),
        ("mllm_msr", published_files.mllm_msr, "mllm_msr/Games"),
    )
}
