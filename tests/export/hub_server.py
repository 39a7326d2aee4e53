"""A Hugging Face hub on this machine: what pushing and pulling small files asks of it, over a local folder."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

TOKEN = "hf_test"


class Hub(ThreadingHTTPServer):
    """Repositories are folders ``user/name`` below ``root``, with one commit, the last.

    Attributes:
        root: the folder.
        asked: method and path of every request.
    """

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.root = root
        self.asked: list[str] = []

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *args: Any) -> None:
        pass

    def _answer(self, content: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_HEAD(self) -> None:
        self._give_file()

    def do_GET(self) -> None:
        self._give_file()

    def _give_file(self) -> None:
        self.server.asked.append(f"{self.command} {self.path}")
        repository, _, rest = self.path.strip("/").partition("/resolve/")
        path = self.server.root / repository / rest.partition("/")[2]
        if not path.is_file():
            self._answer(b"", 404, {"X-Error-Code": "EntryNotFound" if path.parent.is_dir() else "RepoNotFound"})
            return
        content = path.read_bytes()
        etag = hashlib.sha1(content).hexdigest()
        self._answer(content, headers={"ETag": f'"{etag}"', "X-Repo-Commit": _commit(path.parent)})

    def do_POST(self) -> None:
        self.server.asked.append(f"POST {self.path}")
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._answer({"error": "Invalid username or password."}, 401)
        elif self.path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization', 'me')}/{asked['name']}"
            (self.server.root / name).mkdir(parents=True, exist_ok=True)
            self._answer({"url": f"{self.server.endpoint}/{name}", "name": name})
        elif self.path == "/api/validate-yaml":
            self._answer({"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            files = [file["path"] for file in json.loads(body)["files"]]
            kinds = {"uploadMode": "regular", "shouldIgnore": False, "oid": None}
            self._answer({"files": [{"path": path, **kinds} for path in files]})
        elif "/commit/" in self.path:
            self._take_commit(body)
        else:
            self._answer({"error": f"unknown {self.path}"}, 404)

    def _take_commit(self, body: bytes) -> None:
        repository = self.path.removeprefix("/api/models/").partition("/commit/")[0]
        folder = self.server.root / repository
        for line in body.splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                (folder / entry["value"]["path"]).write_bytes(base64.b64decode(entry["value"]["content"]))
        oid = _commit(folder)
        url = f"{self.server.endpoint}/{repository}/commit/{oid}"
        self._answer({"success": True, "commitOid": oid, "commitUrl": url, "hookOutput": ""})


def _commit(folder: Path) -> str:
    digest = hashlib.sha1()
    for path in sorted(folder.iterdir()):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


@contextmanager
def run_hub(root: Path) -> Iterator[Hub]:
    """Serve a hub from a folder."""
    hub = Hub(root)
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()
