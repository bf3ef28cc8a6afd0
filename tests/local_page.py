"""Requests to a `LocalServer` in a thread, as a browser sends them."""

import contextlib
import http.client
import threading
from collections.abc import Iterator, Mapping

import html_check

from mmsrec_jax.serving.local_server import LocalServer, Site

BOUNDARY = "a boundary of the test"


@contextlib.contextmanager
def serving(site: Site) -> Iterator[LocalServer]:
    """A server on a free port."""
    server = LocalServer(0)
    thread = threading.Thread(target=server.serve, args=(site,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()


def ask(
    server: LocalServer,
    path: str,
    *,
    method: str = "GET",
    body: bytes | None = None,
    headers: Mapping[str, str] = {},
) -> tuple[int, str, Mapping[str, str]]:
    """(status, page, headers) of the answer."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
    with contextlib.closing(connection):
        connection.request(method, path, body, dict(headers))
        answer = connection.getresponse()
        return answer.status, answer.read().decode("utf-8"), dict(answer.headers)


def page(server: LocalServer, path: str) -> tuple[int, html_check.Page]:
    """(status, the parsed page), which is sound."""
    status, text, _ = ask(server, path)
    found = html_check.Page(text, served=True)
    assert not found.problems, found.problems
    return status, found


def post(
    server: LocalServer,
    path: str,
    fields: list[tuple[str, str]],
    files: Mapping[str, bytes] = {},
    headers: Mapping[str, str] = {},
) -> tuple[int, str, Mapping[str, str]]:
    """What the answer to a form with files is; headers: None leaves one out."""
    given = {
        "Origin": server.address.rstrip("/"),
        "Content-Type": f'multipart/form-data; boundary="{BOUNDARY}"',
        **headers,
    }
    given = {name: value for name, value in given.items() if value is not None}
    return ask(server, path, method="POST", body=form(fields, files), headers=given)


def form(fields: list[tuple[str, str]], files: Mapping[str, bytes] = {}) -> bytes:
    """The body of a form with files, written down by hand."""
    parts = [
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n'.encode()
        + value.encode()
        for name, value in fields
    ]
    parts += [
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"; filename="a.png"\r\n'
        "Content-Type: image/png\r\n\r\n".encode()
        + content
        for name, content in files.items()
    ]
    return b"\r\n".join([*parts, f"--{BOUNDARY}--\r\n".encode()])
