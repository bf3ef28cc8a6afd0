"""One GET after the other, each with limits on time and size and to public addresses only.

urllib3's connections are used and not its pools: a pool follows redirects, waits and retries inside
of a thread, and knows no limit on the whole of a request. No cookies, no credentials and no proxy
of the environment.
"""

import contextlib
import dataclasses
import email.utils
import http.client
import socket
import ssl
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple

import urllib3.exceptions
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.response import BaseHTTPResponse

from mmsrec_jax.data.fetching import addresses
from mmsrec_jax.data.fetching.links import Link
from mmsrec_jax.runtime.errors import first_line, root

_CHUNK = 1 << 16  # bytes
_TRY_AGAIN = (408, 425, 429, 500, 502, 503, 504)
_BUSY = (429, 503)
_REDIRECTS = (301, 302, 303, 307, 308)


@dataclasses.dataclass(frozen=True)
class Limits:
    """Of one request. Seconds to connect, between two arrivals of bytes, and for all of it; bytes
    of the answer."""

    connect: float = 10.0
    read: float = 20.0
    whole: float = 120.0
    size: int = 20 << 20


class Failure(Exception):
    """A request that brought no picture.

    Attributes:
      again: whether it may go well later.
      is_busy: the server asks for fewer requests.
      wait: seconds that it asks to wait for, if it does.
      unreachable: it did not answer at all.
    """

    def __init__(
        self,
        reason: str,
        *,
        again: bool,
        is_busy: bool = False,
        wait: float | None = None,
        unreachable: bool = False,
    ):
        super().__init__(reason)
        self.again, self.unreachable = again, unreachable
        self.is_busy, self.wait = is_busy, wait


class Redirect(NamedTuple):
    """Where the server sends us; no address has been checked yet."""

    location: str


class Client:
    """Requests of one thread. The last connection stays open for the next URL of its host.

    private_hosts: names or addresses that may be asked although they are not public.
    """

    def __init__(self, limits: Limits, *, user_agent: str, private_hosts: Collection[str] = ()):
        self._limits, self._private_hosts = limits, {host.lower() for host in private_hosts}
        self._headers = {"User-Agent": user_agent, "Accept": "image/*"}
        self._tls = ssl.create_default_context()
        self._open: _Connection | None = None

    def get(self, link: Link) -> bytes | Redirect:
        """The body that stands at `link`, or where else it stands.

        Raises:
          Failure: anything else.
        """
        was_open = self._is_open(link)
        try:
            try:
                return self._get(link)
            except _NoAnswer:
                if not was_open:
                    raise
                return self._get(link)  # the server had closed what was kept open
        except _NoAnswer as error:
            raise error.failure from error

    def close(self) -> None:
        """Ends the open connection, if there is one."""
        if self._open is not None:
            self._open.end()
            self._open = None

    def _is_open(self, link: Link) -> bool:
        kept = self._open
        return kept is not None and kept.is_for(link) and kept.is_connected

    def _get(self, link: Link) -> bytes | Redirect:
        connection = self._connection(link)
        timer = threading.Timer(self._limits.whole, connection.abort)
        timer.daemon = True
        timer.start()
        complete = False
        try:
            response = self._answer(connection, link)
            body = self._body(response)
            if connection.is_aborted:  # what has no declared length would seem to be complete
                raise TimeoutError
            complete = True
            return body
        except addresses.Refused as error:
            raise Failure(f"refused: {error}", again=False) from error
        except (urllib3.exceptions.HTTPError, http.client.HTTPException, OSError) as error:
            if connection.is_aborted:
                reason = f"took longer than {self._limits.whole:g} s"
                raise Failure(reason, again=False) from error
            raise Failure(f"broken off: {first_line(root(error))}", again=True) from error
        except (Failure, _NoAnswer):
            raise
        except Exception as error:  # one address must not end the fetch of all the others
            what = f"{type(error).__name__}: {first_line(error)}"
            raise Failure(f"fault of this program: {what}", again=False) from error
        finally:
            timer.cancel()
            if not complete:
                self.close()

    def _answer(self, connection: "_Connection", link: Link) -> BaseHTTPResponse:
        try:
            if not connection.is_connected:
                connection.timeout = self._limits.connect
                connection.connect()
            connection.timeout = self._limits.read
            connection.request(
                "GET", link.target, headers=self._headers, preload_content=False,
                decode_content=False,
            )  # fmt: skip
            with _reading():
                return connection.getresponse()
        except (urllib3.exceptions.HTTPError, http.client.HTTPException, OSError) as error:
            if connection.is_aborted:
                raise
            if isinstance(error, http.client.HTTPException) and not isinstance(error, OSError):
                raise Failure(f"not HTTP: {first_line(error)}", again=True) from error
            reason = f"no answer: {first_line(root(error))}"
            for_good = isinstance(error, ssl.SSLCertVerificationError) or (
                isinstance(error, socket.gaierror) and error.errno == socket.EAI_NONAME
            )
            failure = Failure(reason, again=not for_good, unreachable=True)
            raise _NoAnswer(failure) from error

    def _body(self, response: BaseHTTPResponse) -> bytes | Redirect:
        if response.status in _REDIRECTS and (location := response.headers.get("Location")):
            self._pass_over(response)
            return Redirect(location)
        if response.status != 200:
            self._pass_over(response)
            raise Failure(
                f"HTTP {response.status}",
                again=response.status in _TRY_AGAIN,
                is_busy=response.status in _BUSY,
                wait=retry_after(response.headers) if response.status in _BUSY else None,
            )
        most = self._limits.size
        if (response.length_remaining or 0) > most:
            raise Failure(f"larger than {most:,} bytes", again=False)
        parts: list[bytes] = []
        while part := _read(response, _CHUNK):
            parts.append(part)
            if (most := most - len(part)) < 0:
                raise Failure(f"larger than {self._limits.size:,} bytes", again=False)
        return b"".join(parts)

    def _pass_over(self, response: BaseHTTPResponse) -> None:
        """Reads the page that comes with another status, so that the connection can go on."""
        if response.length_remaining is None or response.length_remaining > _CHUNK:
            self.close()
        else:
            _read(response)

    def _connection(self, link: Link) -> "_Connection":
        if self._open is not None and self._is_open(link):
            return self._open
        self.close()
        if link.scheme == "https":
            self._open = _TLSConnection(link.host, link.port, ssl_context=self._tls)
        else:
            self._open = _Connection(link.host, link.port)
        self._open.allow_private = link.host in self._private_hosts
        return self._open


@contextlib.contextmanager
def _reading() -> Iterator[None]:
    """Of an answer that is none the libraries raise what they like: a Failure."""
    try:
        yield
    except (urllib3.exceptions.HTTPError, http.client.HTTPException, OSError):
        raise
    except Exception as error:
        raise Failure(f"not HTTP: {first_line(error)}", again=False) from error


def _read(response: BaseHTTPResponse, most: int | None = None) -> bytes:
    with _reading():
        return response.read(most)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the header `Retry-After` asks for, as a number or as a date; None without."""
    text = headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        moment = email.utils.parsedate_to_datetime(text).timestamp()
    except (ValueError, OverflowError):
        return None
    return max(0.0, moment - time.time())


class _NoAnswer(Exception):
    """The connection could not be made, or ended before the answer began."""

    def __init__(self, failure: Failure):
        super().__init__(str(failure))
        self.failure = failure


class _Connection(HTTPConnection):
    """To a public address, and one that another thread can break off."""

    allow_private = False
    is_aborted = False
    _guard: socket.socket | None = None

    def is_for(self, link: Link) -> bool:
        """Whether it leads to the server of a link."""
        scheme = "https" if isinstance(self, HTTPSConnection) else "http"
        return (scheme, self.host, self.port) == (link.scheme, link.host, link.port)

    def abort(self) -> None:
        """Breaks it off, whatever it waits for; the waiting call raises."""
        self.is_aborted = True
        if self._guard is not None:
            try:
                self._guard.shutdown(socket.SHUT_RDWR)
            except OSError:  # it has ended already
                pass

    def end(self) -> None:
        """Closes it for good. `close` is called by http.client too, before the body is read."""
        self.close()
        if self._guard is not None:
            self._guard.close()

    def _new_conn(self) -> socket.socket:
        error: OSError | None = None
        port = self.port or self.default_port
        for address in addresses.resolve(self.host, port, allow_private=self.allow_private):
            try:
                found = socket.create_connection((address, port), self.timeout)
                break
            except OSError as refused:
                error = refused
        else:
            raise error or OSError("the host has no address")
        found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # A second handle of the same connection, which stays valid when TLS takes the first.
        self._guard = found.dup()
        if self.is_aborted:
            raise TimeoutError("took too long to connect")
        return found


class _TLSConnection(_Connection, HTTPSConnection):
    """The same with TLS; the name in the certificate is checked."""
