"""`launch/data.py` as a user runs it."""

import json
import signal
import time
from pathlib import Path

import launched
import pytest
import shop_folder
from image_server import running

from mmsrec_jax.data import toyshop
from mmsrec_jax.data.toyshop import ToyshopSettings
from mmsrec_jax.hf import tiny_init


def urls_file(folder: Path, url: str, count: int) -> Path:
    path = folder / "urls.tsv"
    path.write_text("".join(f"i{n}\t{url}/gated?{n}\n" for n in range(count)))
    return path


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_fetch_that_is_stopped_goes_on(tmp_path, number):
    """Whatever was stored before is not asked for again, and a second one is refused meanwhile."""
    with running() as server:
        urls, images = urls_file(tmp_path, server.url, 12), tmp_path / "images"
        command = (
            "launch/data.py", "fetch", f"--urls={urls}", f"--images={images}", "--rate=1000",
            "--private_hosts=127.0.0.1", "--parallel=2",
        )  # fmt: skip
        process = launched.start(*command, log=tmp_path / "log")
        until = time.monotonic() + 60
        while len(list(images.glob("*.jpg"))) < 4 and time.monotonic() < until:
            time.sleep(0.01)
        if number == signal.SIGTERM:
            status, said = launched.run(*command, log=tmp_path / "second")
            assert status == 2 and "another run is under way" in said and "--images" in said
        launched.os.kill(process.pid, number)
        process.join(60)
        stored = {path.stem for path in images.glob("*.jpg")}
        assert 4 <= len(stored) <= 6
        if number == signal.SIGTERM:
            assert process.exitcode == 130 and "go on with" in (tmp_path / "log").read_text()
        asked = dict(server.asked)
        server.gate.set()
        status, said = launched.run(*command, "--json", log=tmp_path / "again")
        found = json.loads(said[said.index("{") :])
        assert (status, found["missing"]) == (0, 0)
        assert found["stored"] + found["stored_before"] + found["from_elsewhere"] == 12
        assert found["from_elsewhere"] <= 1  # the one that had its name and no line yet
        for item in stored:
            path = f"/gated?{item[1:]}"
            assert server.asked[path] == asked[path]
        assert len(list(images.glob("*.jpg"))) == 12


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ((), "name what to do: stats, check, sample, csv, fetch"),
        (("steal",), "name what to do: stats, check, sample, csv, fetch"),
        (("fetch", "--urls=nowhere.tsv"), "fetch needs either --urls and --images, or --config"),
        (("fetch", "--urls=nowhere.tsv", "--images=@"), "nowhere.tsv: no such file"),
        (("fetch", "--urls=gs://a/b", "--images=@"), "a path of this machine is wanted"),
        (("fetch", "--urls=a", "--images=@", "--rate=0"), "--rate"),
        (("fetch", "--config=configs/base.py", "--config.data.root=."), "names no URLs"),
        (("csv", "--interactions=a"), "csv needs --interactions and --out"),
        (("csv", "--interactions=a", "--out=@", "--item_columns=a=b"), "give that too"),
        (("csv", "--interactions=nowhere.csv", "--out=@"), "nowhere.csv: cannot be read"),
        (("csv", "--config=configs/base.py"), "csv reads no --config, which is of stats, check"),
        (("stats",), "stats needs --config"),
        (("stats", "--user=u1"), "stats reads no --user, which is of sample; leave it out"),
        (("check", "--rate=3"), "check reads no --rate, which is of fetch; leave it out"),
        (("check", "--config=configs/base.py", "--config.data.root=@"), "no such folder"),
    ],
)
def test_wrong_commands_are_one_line(tmp_path, arguments, problem):
    given = [argument.replace("@", str(tmp_path / "images")) for argument in arguments]
    status, said = launched.run("launch/data.py", *given, log=tmp_path / "log")
    assert status == 2 and problem in said and len(said.strip().splitlines()) == 1, said


def test_data_of_csv_files_in_a_bucket_and_its_page(bucket_server, tmp_path):
    orders = tmp_path / "orders.csv"
    rows = [f"u{u},i{(u * 7 + n * 3) % 20},2024-01-0{n + 1}" for u in range(20) for n in range(6)]
    orders.write_text("\n".join(["user_id,item_id,timestamp", *rows]) + "\n")
    common = {"log": tmp_path / "log", "variables": bucket_server.environment}
    place = f"--local_dir={tmp_path / 'copies'}"
    command = ("launch/data.py", "csv", f"--interactions={orders}", "--out=gs://lab/shop", place)
    status, said = launched.run(*command, "--time_format=%S", **common)
    assert status == 2 and "orders.csv:2" in said and not bucket_server.names("lab")
    (tmp_path / "log").unlink()
    status, said = launched.run(*command, **common)
    assert status == 0 and "gs://lab/shop/shop.inter: " in said and "copies" not in said, said
    assert bucket_server.names("lab") == ["shop/shop.inter"]
    status, said = launched.run(*command, **common)
    assert status == 2 and "gs://lab/shop is there and not empty" in said
    look = ("--config=configs/base.py", "--config.data.root=gs://lab/shop", place)
    look = (
        "launch/data.py",
        "stats",
        *look,
        "--config.data.user_core=1",
        "--config.data.item_core=1",
    )
    status, said = launched.run(*look, "--html=gs://lab/pages/shop.html", **common)
    assert status == 0, said
    assert bucket_server.objects["lab", "pages/shop.html"].data.startswith(b"<!DOCTYPE html>")
    bucket_server.put("lab", "pages/notes.html", b"my notes")
    status, said = launched.run(*look, "--html=gs://lab/pages/notes.html", **common)
    assert status == 2 and bucket_server.objects["lab", "pages/notes.html"].data == b"my notes"


def test_looking_at_data(tmp_path):
    """Numbers as JSON and a page; a history; a check before and after a picture is damaged."""
    shop, model, page = tmp_path / "shop", tmp_path / "model", tmp_path / "page.html"
    items, histories, _ = toyshop.generate(ToyshopSettings(num_users=60, num_items=40))
    shop_folder.write_atomic(shop, items, histories)
    sizes = tiny_init.TinySettings(vocab_size=400)
    tiny_init.write_directory(model, sizes, [item.text["title"] for item in items], [])
    data = ("--config=configs/base.py", f"--config.data.root={shop}", "--config.data.user_core=3")
    status, said = launched.run(
        "launch/data.py", "stats", *data, f"--tokenizer={model}",
        "--json", f"--html={page}", "--users=2", log=tmp_path / "stats",
    )  # fmt: skip
    found = json.loads(said[said.index("{") : said.rindex("}") + 1])
    assert status == 0 and len(found["histories"]) == 2 and "tokens" in found["tables"]
    assert found["tables"]["what items have"]["picture"]["share"] == 1
    assert page.read_text().count("<details") == 2
    user = found["histories"][0]["user"]
    status, said = launched.run(
        "launch/data.py", "sample", *data, f"--user={user}", log=tmp_path / "sample"
    )
    assert status == 0 and said.startswith(f"user {user}: ") and "<- test" in said
    assert launched.run("launch/data.py", "check", *data, log=tmp_path / "sound")[0] == 0
    (shop / "images" / "i0003.png").write_bytes(b"damaged")
    status, said = launched.run("launch/data.py", "check", *data, log=tmp_path / "check")
    assert status == 1 and f"{shop}/images/i0003.png: 7 bytes of no known image format" in said
