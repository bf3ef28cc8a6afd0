"""What programs leave in a bucket outside of a run: all of it, what is read first at the end, and
over nothing that another program wrote."""

import os
import types

import launched
import pytest

from mmsrec_jax.evaluation.comparison import compare
from mmsrec_jax.methods import answer_page, export, recommending
from mmsrec_jax.pages import compare_page, document
from mmsrec_jax.runtime.buckets import copies, outputs
from mmsrec_jax.runtime.errors import UserError
from mmsrec_jax.runtime.lock import HeldError


def uploads(bucket_server):
    return [r.rpartition("/")[2] for r in bucket_server.requests if r.startswith("POST")]


def fill(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"{name}\n")


def test_a_folder_arrives_with_what_is_read_first_at_the_end(bucket_server, machine):
    with outputs.folder("gs://lab/model", new=True, last=("config.json",)) as out:
        assert out.name == "model"
        fill(out, "config.json", "a.safetensors", "z/tokenizer.json")
        assert not bucket_server.names("lab")
    assert uploads(bucket_server)[-1] == "config.json"
    assert bucket_server.objects["lab", "model/z/tokenizer.json"].data == b"z/tokenizer.json\n"
    assert len(bucket_server.names("lab")) == 3 and not out.exists()
    with pytest.raises(UserError, match="^gs://lab/model is there and not empty; name a new"):
        with outputs.folder("gs://lab/model", new=True):
            raise AssertionError("something is there")
    with outputs.folder("gs://lab/model") as out:  # of programs that write over their own
        fill(out, "config.json", "more.json")
    assert len(bucket_server.names("lab")) == 4


def test_nothing_arrives_of_a_program_that_fails_or_comes_second(bucket_server, machine):
    with pytest.raises(UserError, match="the disk is full"):
        with outputs.folder("gs://lab/model", new=True) as out:
            fill(out, "config.json")
            raise UserError("the disk is full")
    assert not bucket_server.names("lab")
    with pytest.raises(UserError, match="gs://lab/model/a: another program wrote it meanwhile"):
        with outputs.folder("gs://lab/model", new=True, last=("config.json",)) as out:
            fill(out, "a", "config.json")
            bucket_server.put("lab", "model/a", b"of another")
    assert bucket_server.objects["lab", "model/a"].data == b"of another"
    assert bucket_server.names("lab") == ["model/a"]


def test_what_a_program_that_was_killed_left_here_goes(bucket_server, machine):
    child = os.fork()
    if not child:
        with outputs.folder("gs://lab/model", new=True) as out:
            fill(out, "of_the_killed")
            os._exit(0)  # nothing is tidied up
    os.waitpid(child, 0)
    left = list(copies.copy_of("gs://lab/model", "out").parent.rglob("of_the_killed"))
    with outputs.folder("gs://lab/model", new=True) as out:
        assert len(left) == 1 and not left[0].exists()
        fill(out, "mine")
        child = os.fork()
        if not child:  # another program at the same time
            with pytest.raises(HeldError, match="another run is under way"):
                with outputs.folder("gs://lab/model"):
                    os._exit(1)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
    assert bucket_server.names("lab") == ["model/mine"]


def writes(program, environment, machine, arguments, log):
    """The program, with what makes the files replaced."""
    os.environ |= environment

    def write(*runs, out=None, **_):
        fill(out or runs[1], "file")
        return "sft"

    export.export = compare.run = write
    answer = types.SimpleNamespace(text=lambda: "the answer")
    asked = types.SimpleNamespace(recommend=lambda **_: answer, catalog=None)
    recommending.opened = lambda *_, **__: asked
    answer_page.page = lambda *_: None
    document.write = lambda path, page: path.write_text("file")
    compare_page.write = lambda out, runs: None
    arguments += (f"--local_dir={machine}",)
    launched._become(program, arguments, log, log, launched.ROOT, (), {})


@pytest.mark.parametrize(
    ("program", "arguments", "said"),
    [
        ("export", ["--workdir=gs://lab/run"], "export: sft of gs://lab/run is in gs://lab/made"),
        ("evaluate", ["--compare", "gs://lab/run"], "plots and page are in gs://lab/made"),
        ("recommend", ["--workdir=gs://lab/run", "--user=u1"], "gs://lab/made/file: the page"),
    ],
)
def test_programs_say_where_in_the_bucket_it_is(bucket_server, tmp_path, program, arguments, said):
    bucket_server.put("lab", "run/file", b"of the run")
    log = tmp_path / "log"
    made = "--html=gs://lab/made/file" if program == "recommend" else "--out=gs://lab/made"
    arguments = (*arguments, made)
    given = (f"launch/{program}.py", bucket_server.environment, tmp_path / "x", arguments, log)
    process = launched.context().Process(target=writes, args=given)
    process.start()
    process.join(100)
    lines = log.read_text().splitlines()
    assert process.exitcode == 0 and said in "".join(lines), lines
    assert not [line for line in lines if "/out-" in line]
    assert bucket_server.names("lab", "made") == ["made/file"]


def test_a_file_is_seen_and_replaced(bucket_server, machine, tmp_path):
    def write(path, text):
        (path.parent / "partial").write_text(text)
        os.replace(path.parent / "partial", path)

    with outputs.file("gs://lab/fits/a.json") as path:
        assert not path.exists()
        write(path, "one")
    with outputs.file("gs://lab/fits/a.json") as path:
        assert path.read_text() == "one"
    assert uploads(bucket_server) == ["a.json"]  # nothing was written the second time
    with pytest.raises(UserError, match="step two does not fit"):
        with outputs.file("gs://lab/fits/a.json") as path:
            write(path, "of step one")
            raise UserError("step two does not fit")
    assert bucket_server.objects["lab", "fits/a.json"].data == b"of step one"
    with outputs.file("gs://lab/fits/a.json") as path:
        for step in ("two", "three"):  # the second may get the inode that the first made free
            write(path, f"of step {step}")
    assert bucket_server.objects["lab", "fits/a.json"].data == b"of step three"
    with outputs.file("gs://lab/fits/a.json") as path:
        path.write_text("in the same inode")
    assert bucket_server.objects["lab", "fits/a.json"].data == b"in the same inode"
    with outputs.file(tmp_path / "here.json") as path:
        assert path == tmp_path / "here.json"
    for nothing in ("gs://lab", "gs://lab/fits/"):
        with pytest.raises(UserError, match="name a file, gs://BUCKET/FILE"):
            with outputs.file(nothing):
                raise AssertionError("no file")
