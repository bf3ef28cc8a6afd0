"""A server of objects that answers as Google's storage does: to google-cloud-storage, gcsfs and
tensorstore. It holds everything in memory, keeps the preconditions on generations, and refuses or
fails what a test asks it to."""

import base64
import contextlib
import dataclasses
import datetime
import email.parser
import email.policy
import hashlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import google_crc32c


@dataclasses.dataclass
class Stored:
    """One object: its bytes, and its number among all that were ever written."""

    data: bytes
    generation: int

    @property
    def crc32c(self) -> str:
        return base64.b64encode(google_crc32c.Checksum(self.data).digest()).decode()

    @property
    def md5(self) -> str:
        return base64.b64encode(hashlib.md5(self.data).digest()).decode()


class BucketServer:
    """Serves the buckets that are named at `url`.

    Attributes:
      objects: (bucket, name) -> what is stored.
      requests: "METHOD path" of each request, in order.
      fault: (method, path) -> status that is answered in place of the true one, 0 to break off, or
        None; asked before a request is carried out. The path of an upload ends in the object's
        name.
      lost: (method, path) -> whether the answer of a request that was carried out is lost.
      sent: bytes of contents.
    """

    def __init__(self, *buckets: str):
        self.buckets = set(buckets)
        self.objects: dict[tuple[str, str], Stored] = {}
        self.requests: list[str] = []
        self.sent = 0
        self.fault: Callable[[str, str], int | None] = lambda method, path: None
        self.lost: Callable[[str, str], bool] = lambda method, path: False
        self.sessions: dict[str, tuple[str, str, dict[str, list[str]], bytes]] = {}
        self.lock = threading.RLock()
        self._generation = int(time.time() * 1e6)
        outer = self

        class Handler(_Handler):
            server_of = outer

        self._http = _Http(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"

    def __enter__(self) -> "BucketServer":
        threading.Thread(target=self._http.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    @property
    def environment(self) -> dict[str, str]:
        """Variables that lead all three clients here."""
        return {
            "STORAGE_EMULATOR_HOST": self.url,
            "TENSORSTORE_GCS_HTTP_URL": self.url,
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",
            "NO_GCE_CHECK": "true",
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # asks a server of its own
        }

    def clear(self) -> None:
        """Empties the buckets, and answers well again."""
        with self.lock:
            self.fault = lambda method, path: None
            self.lost = lambda method, path: False
            self.objects.clear()
            self.requests.clear()
            self.sent = 0

    def names(self, bucket: str, prefix: str = "") -> list[str]:
        """Of the objects, sorted."""
        with self.lock:
            return sorted(n for b, n in self.objects if b == bucket and n.startswith(prefix))

    def put(self, bucket: str, name: str, data: bytes) -> Stored:
        with self.lock:
            self._generation += 1
            stored = self.objects[bucket, name] = Stored(data, self._generation)
            return stored


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 512  # tensorstore opens many connections at once

    def handle_error(self, *_: Any) -> None:  # a client that was killed
        pass


class _RefusedError(Exception):
    """The status that is answered."""


class _Handler(BaseHTTPRequestHandler):
    server_of: BucketServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:  # noqa: N802
        self._answer("GET")

    def do_POST(self) -> None:  # noqa: N802
        self._answer("POST")

    def do_PUT(self) -> None:  # noqa: N802
        self._answer("PUT")

    def do_PATCH(self) -> None:  # noqa: N802
        self._answer("PATCH")

    def do_DELETE(self) -> None:  # noqa: N802
        self._answer("DELETE")

    def _answer(self, method: str) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if "chunked" in (self.headers.get("Transfer-Encoding") or ""):
            body = b"".join(self._chunks())
        with contextlib.suppress(ConnectionError):  # of a client that was killed
            status, headers, data = self._of(method, self.path, body, dict(self.headers))
            if not status:
                self.close_connection = True
                return
            data = b"" if status in (204, 304) else data  # such answers have none
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    def _chunks(self) -> Iterator[bytes]:
        while size := int(self.rfile.readline(), 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def _of(
        self, method: str, target: str, body: bytes, headers: dict[str, str]
    ) -> tuple[int, dict[str, str], bytes]:
        server = self.server_of
        parts = urlsplit(target)
        path = unquote(parts.path)
        if named := re.search(r'[?&]name=([^&]+)|"name": ?"([^"]+)"', f"{target}{body[:999]!r}"):
            path += "/" + unquote(named[1] or named[2])
        server.requests.append(f"{method} {path}")
        headers = {name.lower(): value for name, value in headers.items()}
        query = parse_qs(parts.query, keep_blank_values=True)
        try:
            if (status := server.fault(method, path)) is not None:
                raise _RefusedError(status)
            with server.lock:
                answer = self._carried_out(method, parts.path, query, body, headers)
            return (0, {}, b"") if server.lost(method, path) else answer
        except _RefusedError as refused:
            error = {"error": {"code": refused.args[0], "message": f"refused: {path}"}}
            return refused.args[0], {"Content-Type": "application/json"}, json.dumps(error).encode()

    def _carried_out(
        self, method: str, path: str, query: dict[str, list[str]], body: bytes, headers: Any
    ) -> tuple[int, dict[str, str], bytes]:
        if path.startswith("/batch/"):
            return self._batch(body, headers)
        if path.startswith("/upload/"):
            return self._upload(method, path, query, body, headers)
        before, _, rest = path.partition("/b/")
        bucket, _, rest = rest.partition("/")
        if bucket not in self.server_of.buckets:
            raise _RefusedError(404)
        if not rest:
            return _json({"kind": "storage#bucket", "name": bucket, "id": bucket})
        name = unquote(rest.removeprefix("o").removeprefix("/").partition("/rewriteTo/")[0])
        if rest == "o":
            return _json(self._listed(bucket, query))
        found = self.server_of.objects.get((bucket, name))
        self._check(bucket, name, query)
        if found is None:
            raise _RefusedError(404)
        if "/rewriteTo/" in rest:
            to_bucket, _, to_name = rest.partition("/rewriteTo/b/")[2].partition("/o/")
            self.server_of.put(to_bucket, unquote(to_name), found.data)
            size = str(len(found.data))
            told = {"done": True, "totalBytesRewritten": size, "objectSize": size}
            return _json(told | {"resource": self._metadata(to_bucket, unquote(to_name))})
        if method == "DELETE":
            del self.server_of.objects[bucket, name]
            return 204, {}, b""
        if query.get("alt") == ["media"]:
            answer = self._media(found, headers)
            self.server_of.sent += len(answer[2])
            return answer
        return _json(self._metadata(bucket, name))

    def _media(self, found: Stored, headers: Any) -> tuple[int, dict[str, str], bytes]:
        told = {
            "Content-Type": "application/octet-stream",
            "X-Goog-Generation": str(found.generation),
            "X-Goog-Hash": f"crc32c={found.crc32c},md5={found.md5}",
            "ETag": f'"{found.generation}"',
        }
        size = len(found.data)
        wanted = headers.get("range", "").removeprefix("bytes=")
        if not wanted:
            return 200, told, found.data
        first, _, last = wanted.partition("-")
        start = int(first) if first else size - int(last)
        stop = min(int(last) + 1, size) if first and last else size
        if start >= size:
            raise _RefusedError(416)
        told["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
        return 206, told, found.data[start:stop]

    def _upload(
        self, method: str, path: str, query: dict[str, list[str]], body: bytes, headers: Any
    ) -> tuple[int, dict[str, str], bytes]:
        bucket = path.partition("/b/")[2].partition("/")[0]
        if bucket not in self.server_of.buckets:
            raise _RefusedError(404)
        kind = query["uploadType"][0]
        if kind == "media":
            return self._stored(bucket, query["name"][0], query, body)
        if kind == "multipart":
            parser = email.parser.BytesParser(policy=email.policy.HTTP)
            message = parser.parsebytes(
                f"Content-Type: {headers['content-type']}\r\n\r\n".encode() + body
            )
            first, second = message.iter_parts()  # type: ignore[attr-defined]
            name = json.loads(first.get_payload(decode=True))["name"]
            boundary = message.get_boundary().encode()
            data = body.split(b"--" + boundary)[2].partition(b"\r\n\r\n")[2][:-2]
            return self._stored(bucket, name, query, data)
        sessions = self.server_of.sessions
        if "upload_id" not in query:
            name = query["name"][0] if "name" in query else json.loads(body)["name"]
            self._check(bucket, name, query)
            key = f"session{len(sessions)}"
            sessions[key] = (bucket, name, query, b"")
            where = f"{self.server_of.url}{path}?uploadType=resumable&upload_id={key}"
            return 200, {"Location": where}, b""
        key = query["upload_id"][0]
        if method == "DELETE":
            sessions.pop(key, None)
            return 499, {}, b""
        bucket, name, asked, had = sessions[key]
        total = headers["content-range"].rpartition("/")[2]
        had += body
        sessions[key] = (bucket, name, asked, had)
        if total == "*" or len(had) < int(total):
            return 308, {"Range": f"bytes=0-{len(had) - 1}"}, b""
        return self._stored(bucket, name, asked, had)

    def _batch(self, body: bytes, headers: Any) -> tuple[int, dict[str, str], bytes]:
        boundary = headers["content-type"].partition("boundary=")[2].strip('"').encode()
        answers = []
        for part in body.split(b"--" + boundary)[1:-1]:
            head, _, request = part.strip().partition(b"\n\n" if b"\r" not in part else b"\r\n\r\n")
            key = next(line for line in head.splitlines() if line.lower().startswith(b"content-id"))
            method, target = request.split()[:2]
            status, _, data = self._of(method.decode(), target.decode(), b"", {})
            name = key.partition(b":")[2].strip().strip(b"<>").decode()
            answers.append(
                f"--answer\r\nContent-Type: application/http\r\nContent-ID: <response-{name}>\r\n"
                f"\r\nHTTP/1.1 {status} said\r\nContent-Length: {len(data)}\r\n\r\n{data.decode()}"
            )
        text = "\r\n".join([*answers, "--answer--"])
        return 200, {"Content-Type": "multipart/mixed; boundary=answer"}, text.encode()

    def _stored(
        self, bucket: str, name: str, query: dict[str, list[str]], data: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        self._check(bucket, name, query)
        self.server_of.put(bucket, name, data)
        return _json(self._metadata(bucket, name))

    def _check(self, bucket: str, name: str, query: dict[str, list[str]]) -> None:
        found = self.server_of.objects.get((bucket, name))
        generation = 0 if found is None else found.generation
        if "ifGenerationMatch" in query and int(query["ifGenerationMatch"][0]) != generation:
            raise _RefusedError(412)
        if query.get("ifGenerationNotMatch") == [str(generation)]:
            raise _RefusedError(304)

    def _listed(self, bucket: str, query: dict[str, list[str]]) -> dict[str, Any]:
        prefix = query.get("prefix", [""])[0]
        delimiter = query.get("delimiter", [""])[0]
        start = query.get("startOffset", [""])[0]
        end = query.get("endOffset", [""])[0]
        after = query.get("pageToken", [""])[0]
        most = int(query.get("maxResults", ["1000"])[0])
        items, prefixes = [], set[str]()
        for name in self.server_of.names(bucket, prefix):
            if name <= after or name < start or (end and name >= end):
                continue
            rest = name[len(prefix) :]
            if delimiter and delimiter in rest:
                prefixes.add(prefix + rest.partition(delimiter)[0] + delimiter)
                continue
            if len(items) == most:
                token = {"nextPageToken": items[-1]["name"]}
                return {"kind": "storage#objects", "items": items, **token}
            items.append(self._metadata(bucket, name))
        return {"kind": "storage#objects", "items": items, "prefixes": sorted(prefixes)}

    def _metadata(self, bucket: str, name: str) -> dict[str, Any]:
        found = self.server_of.objects[bucket, name]
        when = datetime.datetime.fromtimestamp(found.generation / 1e6, datetime.UTC)
        return {
            "kind": "storage#object",
            "id": f"{bucket}/{name}/{found.generation}",
            "name": name,
            "bucket": bucket,
            "generation": str(found.generation),
            "metageneration": "1",
            "contentType": "application/octet-stream",
            "storageClass": "STANDARD",
            "size": str(len(found.data)),
            "crc32c": found.crc32c,
            "md5Hash": found.md5,
            "etag": str(found.generation),
            "timeCreated": when.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            "updated": when.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            "mediaLink": f"{self.server_of.url}/download/storage/v1/b/{bucket}/o/{name}?alt=media",
        }


def _json(value: Any) -> tuple[int, dict[str, str], bytes]:
    return 200, {"Content-Type": "application/json"}, json.dumps(value).encode()
