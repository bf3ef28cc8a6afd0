"""The downloader against a server that answers in all the wrong ways."""

import hashlib
import io
import json
import socket
import ssl
import time
from pathlib import Path

import pytest
from image_server import PICTURE, ImageServer, running
from PIL import Image

from mmsrec_jax.data import column_items
from mmsrec_jax.data.fetching import addresses, client, links, listed
from mmsrec_jax.data.fetching.client import Client, Limits
from mmsrec_jax.data.fetching.fetch import FetchSettings, Summary, fetch
from mmsrec_jax.runtime import digests
from mmsrec_jax.runtime.errors import UserError

QUICK = Limits(connect=2, read=1, whole=2, size=100_000)


@pytest.fixture
def server():
    with running() as found:
        yield found


def settings(**changes) -> FetchSettings:
    given = {
        "max_side": 64, "rate": 500, "backoff": 0.01, "attempts": 3, "limits": QUICK,
        "private_hosts": ("127.0.0.1",),
    }  # fmt: skip
    return FetchSettings(**(given | changes))


def run(server: ImageServer, folder: Path, names: dict[str, str], **changes) -> Summary:
    """names: item -> path on the server, or a whole URL."""
    lines = [
        f"{i}\t{p if p.startswith(('http', 'ftp')) else f'{server.url}/{p}'}\n"
        for i, p in names.items()
    ]
    (folder / "urls.tsv").write_text("".join(lines))
    return fetch(listed.read(folder / "urls.tsv"), folder / "images", settings(**changes))


def lines(folder: Path, name: str) -> dict[str, dict]:
    found = map(json.loads, (folder / "images" / "fetch" / name).read_text().splitlines())
    return {line["item"]: line for line in found if "item" in line}


def reasons(folder: Path) -> dict[str, str]:
    return {item: line["reason"] for item, line in lines(folder, "failures.jsonl").items()}


def test_pictures_arrive_small_with_checksums(server, tmp_path):
    found = run(server, tmp_path, {"a": "good", "b": "large", "c": "png", "d.x": "moved?/good"})
    assert (found.stored, found.missing) == (4, 0)
    files = {path.name: path for path in (tmp_path / "images").glob("*.jpg")}
    assert set(files) == {"a.jpg", "b.jpg", "c.jpg", "d.x.jpg"}
    assert files["a.jpg"].read_bytes() == PICTURE  # small enough: not encoded again
    sizes = {name: Image.open(path).size for name, path in files.items()}
    assert sizes["b.jpg"] == (64, 43) and sizes["c.jpg"] == (51, 64)
    for item, line in lines(tmp_path, "journal.jsonl").items():
        data = files[f"{item}.jpg"].read_bytes()
        assert line["sha256"] == hashlib.sha256(data).hexdigest()
        assert (line["width"], line["height"]) == Image.open(io.BytesIO(data)).size
    assert lines(tmp_path, "journal.jsonl")["a"]["fetched_bytes"] == len(PICTURE)
    assert not list((tmp_path / "images" / "fetch" / ".partial").iterdir())


def test_every_wrong_answer_is_a_failure_with_its_reason(server, tmp_path):
    wrong = {
        "404": "HTTP 404",
        "truncated": "broken off",
        "undeclared": "damaged picture",
        "page": "no picture",
        "silent": "no answer: timed out",
        "drip": "took longer than 2 s",
        "header": "took longer than 2 s",
        "endless": "larger than 100,000 bytes",
        "huge": "larger than 100,000 bytes",
        "circle": "more than 5 redirects",
        "nonsense": "not HTTP",
        "moved?file:///etc/passwd": "redirected to not a URL that begins with http",
        "moved?http://me:secret@127.0.0.1/": "redirected to a URL with a user name or password",
        "moved?http://169.254.169.254/latest/": "refused: 169.254.169.254 is at the private",
        "moved?http://127.0.0.2/": "refused: 127.0.0.2 is at the private address",
        "moved?http://[::1]/": "refused: ::1 is at the private address",
        "moved?http://[::ffff:10.0.0.1]/": "refused: ::ffff:",
        "moved?//localhost/": "refused: localhost is at the private address",
        "ftp://127.0.0.1/a.jpg": "not a URL that begins with http",
    }  # fmt: skip
    names = {f"i{n}": path for n, path in enumerate(wrong)}
    found = run(server, tmp_path, {**names, "good": "good", "a/b": "good", ".": "good"}, attempts=2)
    told = reasons(tmp_path)
    for item, path in names.items():
        assert told[item].startswith(wrong[path]), (path, told[item])
    assert told["a/b"] == "an item id with a slash, which can name no file"
    assert (found.stored, found.missing) == (1, len(wrong) + 2)
    assert [path.name for path in (tmp_path / "images").glob("*.jpg")] == ["good.jpg"]
    assert sum(found.reasons.values()) == found.missing
    # What may pass is tried again, the rest is not.
    asked = {path: server.asked[f"/{path}"] for path in ("404", "truncated", "page", "circle")}
    assert asked == {"404": 1, "truncated": 2, "page": 1, "circle": 6}


def test_a_fault_of_ours_is_not_said_of_the_server(server, tmp_path, monkeypatch):
    def broken(*_):
        raise ZeroDivisionError("ours")

    monkeypatch.setattr(client.Client, "_body", broken)
    assert run(server, tmp_path, {"a": "good"}).missing == 1
    assert reasons(tmp_path)["a"] == "fault of this program: ZeroDivisionError: ours"


def test_a_busy_server_is_left_alone_as_long_as_it_asks(server, tmp_path):
    found = run(server, tmp_path, {"a": "busy", "b": "good?1"}, per_host=1)
    assert found.stored == 2
    busy, *later = server.times
    assert min(later) - busy > 0.95  # the other picture of that host waits too


def test_faults_that_pass_are_tried_again(server, tmp_path):
    assert run(server, tmp_path, {"a": "flaky"}).stored == 1
    assert server.asked["/flaky"] == 3


def test_no_host_is_asked_more_often_or_by_more_threads_than_it_may_be(server, tmp_path):
    names = {f"i{n}": f"slowish?{n}" for n in range(8)}
    assert run(server, tmp_path, names, per_host=2).stored == 8
    assert server.most_at_once == 2
    began = time.monotonic()
    names = {f"j{n}": f"good?{n}" for n in range(8)}
    assert run(server, tmp_path, names, rate=20).stored == 8
    assert server.times[-1] - began > 7 / 20
    sent = {name for headers in server.headers_seen for name in headers}
    assert sent == {"Host", "User-Agent", "Accept", "Accept-Encoding"}


def test_a_second_start_does_what_is_left(server, tmp_path):
    names = {"a": "good?a", "b": "good?b", "c": "404", "d": "good?d"}
    assert run(server, tmp_path, names).stored == 3
    images = tmp_path / "images"
    (images / "b.jpg").unlink()
    (images / "d.jpg").write_bytes(b"cut")
    (images / "own.png").write_bytes(PICTURE)
    (images / "fetch" / ".partial" / "left").write_bytes(b"of a start that was killed")
    with (images / "fetch" / "journal.jsonl").open("a") as file:
        file.write('{"item": "a", "url')  # and of a line that was
    server.asked.clear()
    found = run(server, tmp_path, {**names, "own": "good?own", "new": "good?new"})
    assert set(server.asked) == {"/good?b", "/good?d", "/good?new"}
    assert (found.stored, found.stored_before, found.from_elsewhere) == (3, 1, 1)
    assert (found.missing, found.missing_since_before) == (1, 1)
    assert (images / "d.jpg").read_bytes() == PICTURE
    assert not (images / "own.jpg").exists()
    assert not list((images / "fetch" / ".partial").iterdir())
    server.asked.clear()
    found = run(server, tmp_path, {**names, "c": "good?c"})  # another URL than failed
    assert (set(server.asked), found.stored, found.missing) == ({"/good?c"}, 1, 0)


def test_a_run_sees_the_pictures_alone(server, tmp_path):
    """What is written beside them is no change of the data."""
    run(server, tmp_path, {"a": "good", "b": "404"})
    assert set(column_items.image_files(tmp_path / "images", within=None)) == {"a"}
    before = digests.of_folder(tmp_path / "images")
    run(server, tmp_path, {"a": "good", "b": "404"}, retry_failures=True)
    assert digests.of_folder(tmp_path / "images") == before


def test_failures_are_tried_again_when_asked(server, tmp_path):
    assert run(server, tmp_path, {"a": "404", "b": "flaky"}, attempts=1).missing == 2
    server.asked["/flaky"] = 2
    found = run(server, tmp_path, {"a": "404", "b": "flaky"}, retry_failures=True)
    assert (found.stored, set(reasons(tmp_path))) == (1, {"a"})


def test_pictures_of_another_size_are_not_mixed(server, tmp_path):
    run(server, tmp_path, {"a": "good"})
    with pytest.raises(UserError, match="give --max_side=64"):
        run(server, tmp_path, {"a": "good"}, max_side=128)


@pytest.mark.parametrize(
    "line",
    ['["a"]', '{"item": "a", "reason": 5, "url": "x"}', '{"item": "a", "reason": "x"}',
     '{"item": ["a"], "url": "x", "bytes": 1}', "[" * 100_000],
)  # fmt: skip
def test_a_damaged_journal_is_one_line(tmp_path, line):
    (tmp_path / "images" / "fetch").mkdir(parents=True)
    (tmp_path / "urls.tsv").write_text("a\tftp://x/\n")
    journal = tmp_path / "images" / "fetch" / "journal.jsonl"
    journal.write_text(f'{{"max_side": 64}}\n{line}\n')
    with pytest.raises(UserError, match=r"journal\.jsonl, line 2: damaged; remove the line"):
        fetch(listed.read(tmp_path / "urls.tsv"), tmp_path / "images", settings())


def test_a_name_that_no_header_can_hold(tmp_path):
    (tmp_path / "urls.tsv").write_text("a\tftp://x/\n")
    with pytest.raises(UserError, match="give plain ASCII letters"):
        fetch(listed.read(tmp_path / "urls.tsv"), tmp_path, settings(user_agent="a\r\nHost: b"))


def test_without_a_way_out_it_stops(server, tmp_path):
    with socket.socket() as taken:  # a port where nobody listens
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(UserError, match="the first 100 URLs were not to be reached"):
            run(server, tmp_path, {f"i{n}": f"{url}/{n}" for n in range(300)}, attempts=1)


def test_a_full_disk_ends_it(server, tmp_path, monkeypatch):
    def full(path: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        run(server, tmp_path, {"a": "good", "b": "good"})


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("a\n", "urls.tsv:1: 1 columns"),
        ("a\thttp://x/\n\nb\thttp://x/\textra\n", "urls.tsv:3: 3 columns"),
        ("a\thttp://x/\n\na\thttp://y/\n", r"item 'a' stands twice \(lines 1 and 3\)"),
        ("\thttp://x/\n", "urls.tsv:1: the item id is empty"),
        ("\n", "names no items"),
    ],
)
def test_wrong_lists_are_refused_with_their_line(tmp_path, content, problem):
    (tmp_path / "urls.tsv").write_text(content)
    with pytest.raises(UserError, match=problem):
        listed.read(tmp_path / "urls.tsv")


def test_lists_as_json_lines(tmp_path):
    path = tmp_path / "urls.jsonl"
    path.write_text(
        '{"item_id": "a", "url": "http://x/1"}\n\n{"url": "http://x/2", "item_id": 3}\n'
    )
    with pytest.raises(UserError, match="line 3: write"):
        listed.read(path)
    path.write_text('{"item_id": "ä", "url": " http://x/1"}\n')
    assert list(listed.read(path)) == [("ä", "http://x/1")]


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True), ("2001:4860:4860::8888", True), ("64:ff9b::808:808", True),
        ("10.1.2.3", False), ("172.16.0.1", False), ("192.168.1.1", False), ("127.0.0.1", False),
        ("169.254.169.254", False), ("100.64.0.1", False), ("0.0.0.0", False), ("::1", False),
        ("224.0.0.1", False), ("fe80::1%eth0", False), ("fd00::1", False),
        ("::ffff:192.168.0.1", False), ("64:ff9b::a00:1", False), ("2002:a00:1::", False),
    ],
)  # fmt: skip
def test_public_addresses(address, public):
    assert addresses.is_public(address) == public


def test_a_name_that_leads_to_a_private_address_is_refused(monkeypatch):
    """One of several addresses is enough, and the name is looked up once."""
    asked = []

    def look_up(host, port, type):
        asked.append(host)
        return [(2, type, 6, "", (address, port)) for address in ("8.8.8.8", "10.0.0.7")]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    monkeypatch.setattr(socket, "create_connection", lambda *a: pytest.fail("connected"))
    with pytest.raises(client.Failure, match=r"refused: pictures.example .* 10.0.0.7"):
        Client(QUICK, user_agent="test").get(links.parse("http://pictures.example/a.jpg"))
    assert asked == ["pictures.example"]


def test_a_server_that_speaks_no_tls_gets_no_request(server):
    link = links.parse(server.url.replace("http", "https") + "/good")
    with pytest.raises(client.Failure, match="no answer") as failure:
        Client(QUICK, user_agent="test", private_hosts=("127.0.0.1",)).get(link)
    assert isinstance(failure.value.__cause__.__cause__, ssl.SSLError)
    assert not server.asked


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("HTTP://Ex.org", ("http", "ex.org", 80, "/")),
        ("https://ex.org:444/a b/ü?q=%20#f", ("https", "ex.org", 444, "/a%20b/%C3%BC?q=%20")),
        ("http://bücher.de/x", ("http", "xn--bcher-kva.de", 80, "/x")),
        ("http://[::1]:8/", ("http", "::1", 8, "/")),
    ],
)  # fmt: skip
def test_links(url, parts):
    link = links.parse(url)
    assert link == parts
    assert links.parse(link.url) == link


@pytest.mark.parametrize(
    "url",
    [
        "",
        "N/A",
        "ftp://a/b",
        "http://",
        "http://a:99999/",
        "http://a@b/",
        "http://a/\r\nX:1",
        "http://a/\ud800",
    ],
)
def test_bad_links(url):
    with pytest.raises(links.BadLink):
        links.parse(url)


def test_retry_after():
    assert client.retry_after({"Retry-After": "7"}) == 7
    assert client.retry_after({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0
    assert client.retry_after({"Retry-After": "Fri, 31 Dec 2199 23:59:59 GMT"}) > 1e9
    assert client.retry_after({"Retry-After": "soon"}) is None
    assert client.retry_after({}) is None
