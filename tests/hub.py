"""A Hugging Face Hub on this machine that takes what `huggingface_hub` uploads."""

import base64
import http.server
import json
import threading
from collections.abc import Mapping
from pathlib import Path

import pytest
from huggingface_hub import HfApi


class _Hub(http.server.BaseHTTPRequestHandler):
    received: dict[str, bytes]

    def do_POST(self) -> None:
        sent = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/api/validate-yaml":
            self._answer({"errors": [], "warnings": []})
        elif self.path == "/api/models/shop/model/preupload/main":
            asked = [file["path"] for file in json.loads(sent)["files"]]
            about = {"uploadMode": "regular", "shouldIgnore": False, "oid": None}
            self._answer({"files": [{"path": path, **about} for path in asked]})
        elif self.path == "/api/models/shop/model/commit/main":
            for line in map(json.loads, sent.splitlines()):
                if line["key"] == "file":
                    file = line["value"]
                    self.received[file["path"]] = base64.b64decode(file["content"])
            url = f"http://{self.headers['Host']}/shop/model/commit/{40 * '0'}"
            self._answer({"commitUrl": url, "commitOid": 40 * "0"})
        else:
            self.send_error(404)

    def _answer(self, found: object) -> None:
        body = json.dumps(found).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing."""


def uploaded(folder: Path, patch: pytest.MonkeyPatch) -> Mapping[str, bytes]:
    """Path -> content of what `upload_folder` makes of a folder, in one commit."""
    patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    patch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    handler = type("Hub", (_Hub,), {"received": {}})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            api = HfApi(endpoint=f"http://127.0.0.1:{server.server_port}", token=False)
            api.upload_folder(repo_id="shop/model", folder_path=folder)
        finally:
            server.shutdown()
            thread.join()
    return handler.received
