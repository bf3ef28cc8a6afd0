"""A web server for the people at this machine: it listens on the loopback interface alone.

Other pages that are open in the same browser can send requests to it too. They are refused: a
request has to name this machine as its host (a name of another site can be made to lead here) and,
unless it just opens the first page, has to come from a page of this server.
"""

import contextlib
import errno
import os
import socketserver
import sys
import threading
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Protocol

from absl import logging

from mmsrec_jax.pages.document import FORM_POLICY
from mmsrec_jax.runtime.errors import UserError, first_line
from mmsrec_jax.serving import forms
from mmsrec_jax.serving.forms import Form, Refused

HOST = "127.0.0.1"
MOST_BYTES = 16_000_000  # of a form, with its picture
_MOST_READ = 8 * MOST_BYTES  # of a form that is too large, so that the browser shows the answer
_MOST_DIGITS = 12  # of a length: Python refuses to read numbers of thousands of digits
_NAMES = (HOST, "localhost")
_MOST_WAITING = 16
_LAST_WAIT = 5.0  # seconds for the answer under way when the server is stopped
_HEADERS = {
    "Content-Security-Policy": FORM_POLICY + "; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


@dataclass(frozen=True)
class Request:
    """path: without what follows the ?, which is `query`. form: of a POST; None of a GET."""

    path: str
    query: Form
    form: Form | None = None


@dataclass(frozen=True)
class Response:
    """page: a whole HTML page; moved: in its place, the address on this server to go to."""

    page: str = ""
    status: int = 200
    moved: str = ""


class Site(Protocol):
    """What answers requests, one at a time."""

    def respond(self, request: Request) -> Response:
        """Raises UserError or Refused for what the user can put right."""

    def refusal(self, line: str) -> str:
        """A page with this one line."""


class LocalServer(ThreadingHTTPServer):
    """Listens from the moment it is made; `serve` answers what came until then too.

    port: 0 takes a free one.

    Raises:
      UserError: the port is taken or may not be used.
    """

    daemon_threads = True

    def __init__(self, port: int):
        self.site: Site | None = None
        self._turn = threading.Lock()
        self._waiting = threading.BoundedSemaphore(_MOST_WAITING)
        try:
            super().__init__((HOST, port), _Handler)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                problem = "another program listens there"
            elif error.errno in (errno.EACCES, errno.EPERM):
                problem = "the system keeps this port for itself"
            else:
                problem = first_line(error)
            raise UserError(
                f"--port={port}: {problem}; give another --port, or --port=0 for a free one"
            ) from error

    @property
    def address(self) -> str:
        """Of the page."""
        return f"http://{HOST}:{self.server_port}/"

    def serve(self, site: Site) -> None:
        """Answers until Ctrl-C."""
        self.site = site
        logging.info("open %s (Ctrl-C ends it)", self.address)
        try:
            self.serve_forever()
        except KeyboardInterrupt:
            logging.info("stopped")
            self._end()
        finally:
            self.server_close()

    def _end(self) -> None:
        """Waits a little for the answer under way: a process that ends in the usual way while a
        thread is within the model may crash."""
        with contextlib.suppress(KeyboardInterrupt):
            if self._turn.acquire(timeout=_LAST_WAIT):
                return
        logging.flush()
        os._exit(0)

    def respond(self, request: Request) -> Response:
        """The site's answer, or a page that says why there is none."""
        assert self.site is not None
        try:
            with self._one_at_a_time():
                return self.site.respond(request)
        except Refused as refused:
            return self.refused(str(refused), refused.status)
        except UserError as error:
            return self.refused(str(error), 400)
        except Exception as error:
            logging.exception("a request failed")
            return self.refused(f"The request failed: {first_line(error)}", 500)

    def refused(self, line: str, status: int) -> Response:
        """A page with one line."""
        assert self.site is not None
        return Response(self.site.refusal(line), status)

    @contextlib.contextmanager
    def _one_at_a_time(self) -> Iterator[None]:
        if not self._waiting.acquire(blocking=False):
            raise Refused(f"{_MOST_WAITING} requests wait for the model; ask again later", 503)
        try:
            with self._turn:
                yield
        finally:
            self._waiting.release()

    def server_bind(self) -> None:
        """Without the look-up of this machine's name, which can take seconds."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = HOST, self.server_address[1]

    def handle_error(self, request: Any, client_address: Any) -> None:
        error = sys.exception()
        if not isinstance(error, ConnectionError | TimeoutError):  # of a browser that went away
            logging.error("a connection failed: %s", first_line(error) if error else "")


class _Handler(BaseHTTPRequestHandler):
    """Reads a request, asks the site, writes a page."""

    server: LocalServer
    server_version, sys_version = "mmsrec_jax", ""
    timeout = 30  # seconds that a connection may be silent

    def do_GET(self) -> None:
        self._answer(reads_form=False)

    def do_POST(self) -> None:
        self._answer(reads_form=True)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What the base class refuses: requests that are too long, of other kinds, no HTTP."""
        self.close_connection = True
        self._send(self.server.refused(message or self.responses.get(code, ("refused",))[0], code))

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the site logs its answers."""

    def _answer(self, *, reads_form: bool) -> None:
        try:
            path, _, rest = self.path.partition("?")
            self._check_sender(opens_the_page=not reads_form and self.path == "/")
            form = self._form() if reads_form else None
            request = Request(urllib.parse.unquote(path), forms.query(rest), form)
        except Refused as refused:
            self._send(self.server.refused(str(refused), refused.status))
            return
        self._send(self.server.respond(request))

    def _check_sender(self, *, opens_the_page: bool) -> None:
        hosts = self.headers.get_all("Host") or []
        if len(hosts) != 1 or hosts[0].partition(":")[0].lower() not in _NAMES:
            raise Refused(f"this page has the address {self.server.address}; open that", 403)
        origin, site = self.headers.get("Origin"), self.headers.get("Sec-Fetch-Site", "none")
        own = f"http://{hosts[0]}"
        is_foreign = site not in ("same-origin", "none") or origin not in (None, own)
        if self.command == "POST":
            is_foreign |= origin != own  # every browser names it then
        if is_foreign and not opens_the_page:
            raise Refused(
                f"another page sent this request; open {self.server.address} and ask there", 403
            )

    def _form(self) -> Form:
        given = self.headers.get("Content-Length", "")
        if not (given.isascii() and given.isdigit()) or "Transfer-Encoding" in self.headers:
            raise Refused("the request does not say how long it is", 411)
        if len(given) > _MOST_DIGITS:
            raise Refused(f"the request says it has a length of {len(given):,} digits")
        length = int(given)
        if length > MOST_BYTES:
            left = length if length <= _MOST_READ else 0
            while left and (read := len(self.rfile.read(min(left, 1 << 16)))):
                left -= read
            raise Refused(
                f"the form has {length / 1e6:,.1f} MB, more than {MOST_BYTES / 1e6:.0f} MB; take a "
                "smaller picture",
                413,
            )
        body = self.rfile.read(length)
        if len(body) < length:
            raise Refused("the form came incomplete; send it again")
        return forms.multipart(body, self.headers.get("Content-Type", ""))

    def _send(self, response: Response) -> None:
        content = response.page.encode("utf-8")
        self.send_response(303 if response.moved else response.status)
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        if response.moved:
            self.send_header("Location", response.moved)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
