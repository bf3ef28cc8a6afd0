"""Reading in partitions of users gives the rows of reading in memory, one by one; with Beam, where
it is installed."""

import dataclasses
import errno
import importlib.util
import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import published_files as made
import pytest

from mmsrec_jax.data import build
from mmsrec_jax.data.build import DataSettings
from mmsrec_jax.data.partitioned import core, items, pipeline, spills, users
from mmsrec_jax.data.partitioned import read as partitioned_read
from mmsrec_jax.data.partitioned.plan import Plan
from mmsrec_jax.data.published import files
from mmsrec_jax.runtime.errors import UserError

needs_beam = pytest.mark.skipif(
    importlib.util.find_spec("apache_beam") is None,
    reason="needs the extra [beam]: pip install -e '.[beam]'",
)
BEAM = "runner=DirectRunner"
OF_ITEMS = (
    "items described twice, the first one kept",
    "interacted items that the publisher does not describe, kept as bare ids",
)
MILLISECONDS = 1_600_000_000_000


class Loops:
    """Does in a loop what Beam does at once."""

    folder = ""

    def __init__(self, given, root):
        self.given = given

    def run(self, plan, paths):
        names = [name for file in enumerate(paths) for name in spills.write(plan, file)]
        parts = [users.clean(plan, names, part) for part in reversed(range(plan.parts))]
        index, state = items.index(plan, parts), core.BEGIN
        for part in parts:
            items.number(plan, index, part)
        while state.goes_on:
            for part in parts:
                core.drop(plan, state, part)
            state = core.count(plan, state, parts)
            for name in core.outdated(plan, [state.round - 1]):
                plan.remove(name)
        self.rounds = state.round
        return names, state


def ratings_file(path, rng, rows, first=0):
    """Ratings with repeated items, times of few values, users and items of any number of rows."""
    lines = ["user_id,parent_asin,rating,timestamp"]
    for _ in range(rows):
        user, item = int(rng.zipf(1.3)) % 300 + first, int(rng.zipf(1.2)) % 200
        time = MILLISECONDS + 1000 * int(rng.integers(40)) + 123
        lines.append(f"AE{user:026},B{item:09},{rng.integers(1, 6)}.0,{time}")
    made.write(path, "\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """A category with all its ratings, and metadata of some of its items, two of them twice."""
    root, rng = tmp_path_factory.mktemp("raw"), np.random.default_rng(0)
    ratings_file(root / "0core/rating_only/Software.csv", rng, 4000)
    for number, split in enumerate(("train", "valid", "test")):
        path = root / f"0core/last_out/Software.{split}.csv"
        ratings_file(path, rng, 900 - 300 * number, first=50 * number)
    described = [*rng.permutation(200)[:120], 3, 4]
    lines = [
        {"parent_asin": f"B{item:09}", "title": f"Title {item}", "store": "Acme"}
        for item in described
    ]
    made.write(root / "raw/meta_categories/meta_Software.jsonl", made.json_lines(*lines))
    (root / "images").mkdir()
    for item in (*range(0, 200, 2), 999):  # nobody rated the last one
        (root / f"images/B{item:09}.jpg").write_bytes(b"no picture is looked into")
    return root


@pytest.fixture
def small(monkeypatch):
    """Everything comes in several parts."""
    monkeypatch.setattr(files, "_CHUNK", 20_000)
    monkeypatch.setattr(spills, "ROWS", 700)
    monkeypatch.setattr(items, "_WAITING", 50)
    monkeypatch.setattr(partitioned_read, "PART_BYTES", 40_000)


@pytest.fixture
def loops(monkeypatch):
    monkeypatch.setattr(partitioned_read, "Runner", Loops)


def settings_of(raw, **given):
    return DataSettings(
        **{"source": "amazon_reviews_2023/Software-0core", "root": str(raw), **given}
    )


def check_same(settings, options=BEAM):
    """Compares both ways; returns what was read."""
    expected = build.read(settings)
    found = build.read(dataclasses.replace(settings, beam_options=options))
    for name in ("users", "offsets", "items", "timestamps", "ratings"):
        one, other = (getattr(each.dataset.histories, name) for each in (expected, found))
        assert one.dtype.kind == other.dtype.kind and np.array_equal(one, other), name
    assert [dataclasses.astuple(item) for item in found.items] == [
        dataclasses.astuple(item) for item in expected.items
    ]
    assert (found.report.read, found.report.dropped) == (
        expected.report.read, expected.report.dropped,
    )  # fmt: skip
    assert found.report.source == expected.report.source
    begin = partitioned_read.OF_THE_LEFT
    of_all = {what: n for what, n in expected.report.notes.items() if what not in OF_ITEMS}
    notes = {what: n for what, n in found.report.notes.items() if not what.startswith(begin)}
    assert notes == of_all
    return found


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"user_core": 4, "item_core": 6, "rating_threshold": 2.0, "seed": 7},
        {"user_core": 0, "item_core": 0, "only_items_with_image": True, "text_fields": ()},
        {"source": "amazon_reviews_2023/Software-0core-last_out", "category_field": "store"},
    ],
)
def test_the_rows_are_those_of_memory(raw, small, loops, given):
    found = check_same(settings_of(raw, **given))
    assert len(found.dataset.histories) > 10
    assert len(found.items.ids) > 10


def test_notes_are_of_all_items_or_say_so(raw, small, loops):
    settings = settings_of(raw, images_root=str(raw / "images"), user_core=5, item_core=12)
    found = check_same(settings)
    ratings = (raw / "0core/rating_only/Software.csv").read_text().splitlines()[1:]
    rated = {line.split(",")[1] for line in ratings}
    metadata = (raw / "raw/meta_categories/meta_Software.jsonl").read_text().splitlines()
    described = [json.loads(line)["parent_asin"] for line in metadata]
    pictured = {path.stem for path in (raw / "images").iterdir()}
    left = set(found.items.ids)
    twice = sum(count > 1 and id in left for id, count in Counter(described).items())
    assert found.report.notes == {
        "image files of no item, unused": len(pictured - rated),
        f"of the items that are left: {OF_ITEMS[0]}": twice,
        f"of the items that are left: {OF_ITEMS[1]}": len(left - set(described)),
    }
    assert len(pictured - left) > len(pictured - rated) and rated - left - set(described)


def test_a_core_that_takes_many_rounds(tmp_path, loops, small):
    """A chain: each round frees the next item of its last user but one."""
    lines = ["user_id,parent_asin,rating,timestamp"]
    for user in range(30):  # user u has items u and u + 1; the ends fall off, one after the other
        for item in (user, user + 1):
            lines.append(f"AE{user:026},B{item:09},5.0,{MILLISECONDS + item}")
    for user in range(100, 103):
        lines += [f"AE{user:026},B{item:09},5.0,{MILLISECONDS}" for item in (500, 501, 502)]
    made.write(tmp_path / "0core/rating_only/Software.csv", "\n".join(lines))
    kept = check_same(settings_of(tmp_path, user_core=2, item_core=2, text_fields=()))
    assert len(kept.dataset.histories) == 3 and kept.items.ids[0] == "B000000500"


def test_the_store_is_the_same(raw, small, loops, tmp_path):
    settings = settings_of(raw, only_items_with_image=False, images_root=None)
    for name, options in (("memory", ""), ("parts", BEAM)):
        build.build(dataclasses.replace(settings, beam_options=options), tmp_path / name)
    assert build.fingerprint(tmp_path / "memory") == build.fingerprint(tmp_path / "parts")


def test_what_is_wrong_is_one_line(raw, tmp_path, loops, small):
    with pytest.raises(UserError, match="no interactions are left .*same item again: .*core of 99"):
        build.read(settings_of(raw, user_core=99, item_core=99, beam_options=BEAM))
    path = tmp_path / "0core/rating_only/Software.csv"
    made.write(path, "user_id,parent_asin,rating,timestamp\n")
    with pytest.raises(UserError, match="Software.csv: no interactions; download"):
        build.read(settings_of(tmp_path, text_fields=(), beam_options=BEAM))
    made.write(tmp_path / "Toys.inter.json", '{"1": [1, 2, 3]}')
    made.write(tmp_path / "Toys.item.json", '{"1": {"title": "x"}}')
    with pytest.raises(UserError, match="lc_rec/Toys has an order and no times"):
        build.read(settings_of(tmp_path, source="lc_rec/Toys", beam_options=BEAM))


def test_settings_that_do_not_go_with_it():
    for given, said in (
        ({"source": "toyshop"}, "config.data.source='toyshop' is none; leave it out"),
        ({"source": "atomic"}, "config.data.source='atomic' is none; leave it out"),
        ({"max_users": 5}, "config.data.max_users=5: users are drawn from all"),
    ):
        with pytest.raises(UserError, match=said):
            settings_of("", beam_options=BEAM, **given).check("config.data")


def test_without_the_extra_it_is_refused(monkeypatch):
    monkeypatch.setattr(pipeline.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(build, "local", None)  # nothing is copied for it
    with pytest.raises(UserError, match=r"apache_beam is not installed; .* -e '.\[beam\]'"):
        build.check(settings_of("gs://lab/raw", beam_options=BEAM))


@needs_beam
def test_beam_does_what_the_loops_do(raw, small, monkeypatch):
    monkeypatch.setattr(pipeline, "ROUNDS", 1)  # more than one pipeline
    check_same(settings_of(raw))
    check_same(settings_of(raw, user_core=6, rating_threshold=3.0), "runner=direct")


@needs_beam
def test_rounds_of_earlier_pipelines_are_removed(raw, small, monkeypatch):
    left = []

    def gathered(plan, state):
        names = [path.name.split("-") for path in Path(plan.folder).iterdir()]
        left.extend((state.round, kind, int(number[0])) for kind, *number in names if number)
        return real(plan, state)

    real = partitioned_read._gathered
    monkeypatch.setattr(partitioned_read, "_gathered", gathered)
    monkeypatch.setattr(pipeline, "ROUNDS", 1)
    build.read(settings_of(raw, text_fields=(), beam_options=BEAM))
    last = left[0][0]
    assert last > 2
    for kind in ("edges", "degrees", "there"):
        assert {number for _, of, number in left if of == kind} == {last - 1, last}


@needs_beam
@pytest.mark.parametrize("name", ["direct", "DIRECTRUNNER", "FnApi", "fnapirunner"])
def test_a_runner_of_this_process_by_any_of_its_names(name):
    runner = pipeline.Runner(f"runner={name}", "raw")._runner
    assert type(runner).__name__ == "FnApiRunner"


@needs_beam
def test_beam_in_processes_with_a_folder_that_all_see(raw, small, tmp_path):
    options = "direct_num_workers=2,direct_running_mode=multi_processing"
    check_same(settings_of(raw), f"{BEAM},{options},temp_location={tmp_path}/between")
    assert not list((tmp_path / "between").iterdir())


@needs_beam
def test_beam_says_in_one_line_what_is_wrong(raw, tmp_path):
    made.write(
        tmp_path / "0core/rating_only/Software.csv",
        f"user_id,parent_asin,rating,timestamp\nAE,B000000001,9.0,{MILLISECONDS}\n",
    )
    with pytest.raises(UserError, match="^[^ ]*Software.csv:2: rating 9 is not from 0 to 5"):
        build.read(settings_of(tmp_path, text_fields=(), beam_options=BEAM))
    for options, said in (
        ("runner=Derect", "Beam refuses it .*Derect"),
        ("runner=FlinkRunner", "add temp_location=FOLDER, one that all workers of FlinkRunner see"),
        ("runner=dataflow,temp_location=gs://lab/tmp", "do not see config.data.root=.*; copy it"),
        (f"{BEAM},no_wait_until_finish", "with no_wait_until_finish nothing is read when"),
        ("template_location=gs://lab/template", "with template_location nothing .*; leave it out"),
        ("dry_run=True", "with dry_run nothing is read"),
    ):
        with pytest.raises(UserError, match=said):
            build.check(settings_of(raw, beam_options=options))
    with pytest.raises(UserError, match="do not see temp_location=/tmp/between; copy it"):
        pipeline.Runner("runner=DataflowRunner,temp_location=/tmp/between", "gs://lab/raw")


@needs_beam
def test_dataflow_needs_packages_of_its_own(monkeypatch):
    given = "runner=DataflowRunner,temp_location=gs://lab/between", "gs://lab/raw"
    monkeypatch.setitem(sys.modules, pipeline._OF_DATAFLOW, None)
    with pytest.raises(UserError, match=r"are missing .*; run pip install 'apache-beam\[gcp\]'"):
        pipeline.Runner(*given)
    monkeypatch.setitem(sys.modules, pipeline._OF_DATAFLOW, sys)
    assert pipeline.Runner(*given).folder == "gs://lab/between"


@needs_beam
def test_nothing_of_an_earlier_pipeline_is_taken_for_one_of_this(tmp_path):
    def fails(_):
        raise RuntimeError("no quota")

    def fails_after_a_step(_):
        plan.put_record("problem", {"problem": "a worker: a disk was full"})
        fails(_)

    runner = pipeline.Runner(BEAM, "raw")
    plan = Plan("amazon_reviews_2023/Software-0core", str(tmp_path), 1, None, 5, 5, False)
    plan.put_record("state", {"state": [8, True]})
    plan.put_record("problem", {"problem": "a disk was full"})
    with pytest.raises(UserError, match="the pipeline ended without its last step, as one"):
        runner._run(plan, lambda _: None)
    plan.put_record("problem", {"problem": "a disk was full"})
    with pytest.raises(UserError, match=r"^[^ ]*: the pipeline failed \(no quota\)$"):
        runner._run(plan, fails)
    with pytest.raises(UserError, match=r"a disk was full \(the runner: no quota\)$"):
        runner._run(plan, fails_after_a_step)
    of_a_worker = RuntimeError(
        "Traceback (most recent call last):\n  File\nKeyError: 'x' [while]\n"
    )
    said = "config.data.beam_options: the pipeline failed (KeyError: 'x' [while])"
    assert pipeline._failure(None, of_a_worker) == said


def test_what_a_worker_cannot_do_is_told(tmp_path):
    def full(plan):
        raise OSError(errno.ENOSPC, "No space left on device", "/tmp/spill")

    def told(step, *given):
        with pytest.raises((UserError, OSError), match=r"No such file|No space"):
            pipeline._told(plan, step, *given)
        return plan.record("problem").get("problem")

    plan = Plan("amazon_reviews_2023/Software-0core", str(tmp_path), 1, None, 5, 5, False)
    unseen = "/elsewhere/{}: a worker of Beam does not see it; config.data.root and temp_location"
    assert told(pipeline._spilled, (0, "/elsewhere/a.csv")).startswith(unseen.format("a.csv"))
    assert told(full).startswith("a worker of Beam: /tmp/spill: No space left on device; free")
    plan = dataclasses.replace(plan, folder="/elsewhere")  # where it cannot be told either
    assert told(users.clean, ["spill-000-000000"], 0) is None


@needs_beam
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("runer=DataflowRunner,project=lab", "Beam has no option 'runer'; correct its name"),
        ("runner=DirectRunner, direct_num_worker=2", "no option 'direct_num_worker'; correct"),
        ("runner=FlinkRunner,flink_mastr=there:80", "no option 'flink_mastr'; correct"),
        ("DirectRunner", "no option 'DirectRunner'; correct"),
        ("direct_num_workers=two", r"refuses it \(argument --direct_num_workers: invalid .*'two'"),
        ("runner", r"refuses it \(argument --runner: expected one argument\); correct"),
    ],
)
def test_an_option_that_beam_would_pass_over(options, said, capfd):
    with pytest.raises(UserError, match=said):
        pipeline.Runner(options, "raw")
    assert "usage" not in capfd.readouterr().err


@needs_beam
def test_beam_with_everything_in_a_bucket(raw, small, bucket_server, machine):
    for path in raw.rglob("*"):
        if path.is_file():
            bucket_server.put("lab", f"raw/{path.relative_to(raw)}", path.read_bytes())
    settings = settings_of("gs://lab/raw", beam_options=f"{BEAM},temp_location=gs://lab/between")
    found = build.read(settings).dataset.histories
    expected = build.read(settings_of(raw)).dataset.histories
    assert np.array_equal(found.items, expected.items)
    assert np.array_equal(found.users, expected.users)
    assert not bucket_server.names("lab", "between/")
