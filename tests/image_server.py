"""A web server of this machine that answers well and in all the wrong ways."""

import contextlib
import io
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
from PIL import Image


def jpeg(width: int = 40, height: int = 30, seed: int = 0, suffix: str = "JPEG") -> bytes:
    """A picture of noise."""
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, suffix)
    return file.getvalue()


PICTURE = jpeg()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "ImageServer"

    def do_GET(self) -> None:
        name = self.path.split("/")[1].partition("?")[0]
        with self.server.lock:
            self.server.asked[self.path] += 1
            self.server.times.append(time.monotonic())
            self.server.headers_seen.append(dict(self.headers))
            count = self.server.asked[self.path]
            self.server.now += 1
            self.server.most_at_once = max(self.server.most_at_once, self.server.now)
        try:
            getattr(self, f"answer_{name}")(count)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        finally:
            with self.server.lock:
                self.server.now -= 1

    def send(self, body: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        given = {key.replace("_", "-"): value for key, value in headers.items()}
        for key, value in ({"Content-Length": str(len(body))} | given).items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)

    def answer_good(self, count: int) -> None:
        self.send(PICTURE)

    def answer_slowish(self, count: int) -> None:
        time.sleep(0.1)
        self.send(PICTURE)

    def answer_gated(self, count: int) -> None:
        """The first six at once, the others when the gate opens."""
        if len(self.server.times) > 6:
            self.server.gate.wait(120)
        self.send(PICTURE)

    def answer_large(self, count: int) -> None:
        self.send(jpeg(300, 200))

    def answer_png(self, count: int) -> None:
        self.send(jpeg(80, 100, suffix="PNG"))

    def answer_404(self, count: int) -> None:
        self.send(b"not here", 404)

    def answer_busy(self, count: int) -> None:
        if count == 1:
            self.send(b"", 429, Retry_After="1")
        else:
            self.send(PICTURE)

    def answer_flaky(self, count: int) -> None:
        if count < 3:
            self.send(b"", 503)
        else:
            self.send(PICTURE)

    def answer_truncated(self, count: int) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(PICTURE)))
        self.end_headers()
        self.wfile.write(PICTURE[:-100])
        self.close_connection = True

    def answer_undeclared(self, count: int) -> None:
        """Cut off, and nothing tells but the picture itself."""
        self.send_response(200)
        self.end_headers()
        self.wfile.write(PICTURE[:-100])
        self.close_connection = True

    def answer_page(self, count: int) -> None:
        self.send(b"<html>sign in</html>", Content_Type="image/jpeg")

    def answer_silent(self, count: int) -> None:
        self.server.stop.wait(30)

    def answer_drip(self, count: int) -> None:
        """A byte now and then: no single wait is long."""
        self.send_response(200)
        self.end_headers()
        for byte in PICTURE:
            self.wfile.write(bytes([byte]))
            if self.server.stop.wait(0.05):
                break
        self.close_connection = True

    def answer_header(self, count: int) -> None:
        """The same, and the header never ends."""
        self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Long: ")
        while not self.server.stop.wait(0.05):
            self.wfile.write(b"x")

    def answer_endless(self, count: int) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(PICTURE)
        while not self.server.stop.is_set():
            self.wfile.write(bytes(1 << 16))
        self.close_connection = True

    def answer_huge(self, count: int) -> None:
        self.send(b"", Content_Length=str(1 << 40))
        self.close_connection = True

    def answer_nonsense(self, count: int) -> None:
        """A chunk of a negative size."""
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.write(b"-5\r\nabc")
        self.close_connection = True

    def answer_moved(self, count: int) -> None:
        """To what follows in the query."""
        self.send(b"", 302, Location=self.path.partition("?")[2])

    def answer_circle(self, count: int) -> None:
        self.send(b"", 301, Location="/circle")

    def log_message(self, *args: object) -> None:
        pass


class ImageServer(ThreadingHTTPServer):
    """asked: path -> how often. times: when. headers_seen: of each request. gate: lets what waits
    at it go on."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.lock, self.stop, self.gate = threading.Lock(), threading.Event(), threading.Event()
        self.asked: Counter[str] = Counter()
        self.times: list[float] = []
        self.headers_seen: list[dict[str, str]] = []
        self.now = self.most_at_once = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # clients break off, as they should


@contextlib.contextmanager
def running() -> Iterator[ImageServer]:
    server = ImageServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.stop.set()
        server.gate.set()
        server.shutdown()
        server.server_close()
        thread.join()
