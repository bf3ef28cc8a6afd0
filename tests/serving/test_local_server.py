"""The server of the local page without a model: who may ask, how much, and what mistakes say."""

import os
import signal
import socket
import threading

import local_page
import pytest
from local_page import ask, form, post

from mmsrec_jax.pages import document
from mmsrec_jax.runtime.errors import UserError
from mmsrec_jax.serving import forms, local_server
from mmsrec_jax.serving.forms import Refused
from mmsrec_jax.serving.local_server import LocalServer, Response


class Echo:
    """Says what it was asked; keeps it."""

    def __init__(self):
        self.asked, self.inside, self.most_inside = [], 0, 0
        self.released = threading.Event()

    def respond(self, request):
        self.inside += 1
        self.most_inside = max(self.most_inside, self.inside)
        if request.path == "/held":
            self.released.wait(60)
        self.inside -= 1
        self.asked.append(request)
        if request.path == "/fault":
            raise RuntimeError("of ours")
        if request.path == "/wrong":
            raise UserError("line 3: correct it")
        if request.path == "/moved":
            return Response(moved="/?a=1")
        return Response(document.document("Echo", request.path, [], has_forms=True))

    def refusal(self, line):
        return document.document("No", line, [], has_forms=True)


@pytest.fixture(scope="module")
def site():
    return Echo()


@pytest.fixture(scope="module")
def server(site):
    with local_page.serving(site) as found:
        yield found


def test_a_page_and_its_headers(server, site):
    status, text, headers = ask(server, "/some%20where?a=1&a=2&b=%C3%A9")
    assert status == 200 and "/some where" in text
    request = site.asked[-1]
    assert request.path == "/some where" and request.form is None
    assert request.query.all("a") == ["1", "2"] and request.query.one("b") == "é"
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "form-action 'self'" in policy
    assert "frame-ancestors 'none'" in policy and "script" not in policy
    assert headers["X-Content-Type-Options"] == "nosniff" and headers["Cache-Control"] == "no-store"
    assert "Python" not in headers["Server"]
    assert server.server_address[0] == "127.0.0.1"  # and no other interface


def test_forms_with_bytes_come_through_as_they_are(server, site):
    picture = bytes(range(256)) * 3 + b"\r\n--" + b"\r\r\n\n"
    fields = [("item", "a"), ("item", " b\r\n"), ("title", 'é "<b>"')]
    status, _, _ = post(server, "/add", fields, {"picture": picture, "none": b""})
    assert status == 200
    found = site.asked[-1].form
    assert found.all("item") == ["a", " b\r\n"] and found.one("title") == 'é "<b>"'
    assert found.files == {"picture": picture}
    assert ask(server, "/moved")[0] == 303 and ask(server, "/moved")[2]["Location"] == "/?a=1"


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/", {"Host": "evil.example"}, 403),
        ("/", {"Host": "127.0.0.1.evil.example:80"}, 403),
        ("/", {"Host": ""}, 403),
        ("/", {"Host": "LOCALHOST:1"}, 200),  # another port leads here from another machine
        ("/?a=1", {"Sec-Fetch-Site": "cross-site"}, 403),
        ("/?a=1", {"Sec-Fetch-Site": "same-site"}, 403),  # another port of this machine
        ("/?a=1", {"Origin": "http://evil.example"}, 403),
        ("/?a=1", {"Sec-Fetch-Site": "none"}, 200),
        ("/", {"Sec-Fetch-Site": "cross-site"}, 200),  # a link to the first page
    ],
)
def test_who_may_ask(server, site, path, headers, status):
    before = len(site.asked)
    assert ask(server, path, headers=headers)[0] == status
    assert len(site.asked) - before == (status == 200)


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": None},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec-Fetch-Site": "cross-site"},
    ],
)
def test_forms_of_other_pages_are_refused(server, site, headers):
    before = len(site.asked)
    status, text, _ = post(server, "/", [("a", "1")], headers=headers)
    assert status == 403 and "another page sent this request" in text
    assert len(site.asked) == before


@pytest.mark.parametrize(
    ("path", "status", "said"),
    [
        ("/wrong", 400, "line 3: correct it"),
        ("/fault", 500, "The request failed: of ours"),
        ("/?a=%ff", 400, "the address cannot be read"),
        ("/?" + "&".join("a=1" for _ in range(forms.MOST_FIELDS + 1)), 400, "cannot be read"),
        ("/?a=" + "b" * 70_000, 414, "Too Long"),
    ],
)
def test_mistakes_are_pages_with_one_line(server, path, status, said):
    found = ask(server, path)
    assert found[0] == status and said in found[1] and "Traceback" not in found[1]
    assert found[1].startswith("<!DOCTYPE html>")


def test_other_methods_and_sizes(server, site, monkeypatch):
    assert ask(server, "/", method="PUT")[0] == 501
    before = len(site.asked)
    own = {"Origin": server.address.rstrip("/")}
    monkeypatch.setattr(local_server, "MOST_BYTES", 1000)
    status, text, _ = post(server, "/", [], {"picture": bytes(200_000)})
    assert status == 413 and "take a smaller picture" in text
    for size in ("-1", "1e3", "²", ""):
        assert ask(server, "/", method="POST", headers=own | {"Content-Length": size})[0] == 411
    long = own | {"Content-Length": "1" * 5000}
    assert ask(server, "/", method="POST", headers=long)[0] == 400
    chunked = own | {"Transfer-Encoding": "chunked", "Content-Length": "2"}
    assert ask(server, "/", method="POST", body=b"0\r\n\r\n", headers=chunked)[0] == 411
    length = {**own, "Content-Length": "10", "Content-Type": "multipart/form-data; boundary=b"}
    with socket.create_connection(server.server_address) as short:
        head = "".join(f"{name}: {value}\r\n" for name, value in length.items())
        host = f"Host: 127.0.0.1:{server.server_port}\r\n"
        short.sendall(f"POST / HTTP/1.1\r\n{host}{head}\r\nshort".encode())
        short.shutdown(socket.SHUT_WR)
        assert b" 400 " in short.recv(100)
    assert len(site.asked) == before


@pytest.mark.parametrize(
    ("body", "kind", "said"),
    [
        (b"a=1", "application/x-www-form-urlencoded", "no form with files"),
        (b"a=1", "multipart/form-data", "no form with files"),
        (b"", "multipart/form-data; boundary=b", "incomplete"),
        (
            form([("a", "1")])[:-4],
            f'multipart/form-data; boundary="{local_page.BOUNDARY}"',
            "incomplete",
        ),
        (b"--b\r\n\r\nx\r\n--b--", "multipart/form-data; boundary=b", "has no name"),
        (
            b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\n\xff\r\n--b--',
            "multipart/form-data; boundary=b",
            "no text in UTF-8",
        ),
        (
            form([], {"a": b"1"})[:-len(local_page.BOUNDARY) - 8] + b"\r\n" + form([], {"a": b"1"}),
            f'multipart/form-data; boundary="{local_page.BOUNDARY}"',
            "several files",
        ),
    ],
)  # fmt: skip
def test_broken_forms(body, kind, said):
    with pytest.raises(Refused, match=said):
        forms.multipart(body, kind)


def test_one_answer_at_a_time_and_no_endless_queue(server, site, monkeypatch):
    monkeypatch.setattr(server, "_waiting", threading.BoundedSemaphore(4))
    site.most_inside, statuses, refused = 0, [], threading.Event()

    def once():
        statuses.append(ask(server, "/held")[0])
        if statuses.count(503) == 3:
            refused.set()

    threads = [threading.Thread(target=once) for _ in range(7)]
    for thread in threads:
        thread.start()
    assert refused.wait(60) and statuses == [503] * 3
    site.released.set()
    for thread in threads:
        thread.join()
    assert site.most_inside == 1 and sorted(statuses) == [200] * 4 + [503] * 3


def test_a_port_in_use_names_the_remedy(server):
    with pytest.raises(UserError, match="another program listens there; give another --port"):
        LocalServer(server.server_port)


def test_ctrl_c_ends_with_one_line(caplog):
    server = LocalServer(0)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    with caplog.at_level("INFO", logger="absl"):
        server.serve(Echo())
    signal.signal(signal.SIGINT, before)
    assert [record.getMessage() for record in caplog.records] == [
        f"open {server.address} (Ctrl-C ends it)",
        "stopped",
    ]
    assert server.socket.fileno() == -1
