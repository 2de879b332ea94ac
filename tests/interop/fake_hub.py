"""A hub on loopback that speaks as much of the Hugging Face API as fetching and pushing need."""

import base64
import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0" * 40
_REPO = r"/api/(?P<kind>models|datasets)/(?P<repo>[^/]+/[^/]+)"


class FakeHub(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, dict[str, bytes]] = {}
        """Repository, as `datasets/ORG/NAME` or `models/ORG/NAME`, to its files."""
        self.served: list[tuple[str, int, int]] = []
        """Every download: path, first byte, bytes sent."""
        self.cut_after: dict[str, int] = {}
        """Paths whose next download breaks off after this number of bytes."""
        self.collection: list[str] | None = None
        """The models of the one collection; None where there is none."""
        self.commits: list[list[str]] = []
        """The files of each commit."""
        self.token: str | None = None
        """The token that writers must show, where not None."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextlib.contextmanager
def running() -> Iterator[FakeHub]:
    with FakeHub() as hub:
        thread = threading.Thread(target=hub.serve_forever)
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeHub

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._resolve(body=False)

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if found := re.fullmatch(rf"{_REPO}(/revision/[^/]+)?", path):
            self._info(found)
        elif found := re.fullmatch(rf"{_REPO}/tree/[^/]+(/.*)?", path):
            self._tree(found)
        elif path.startswith("/api/collections/") and self.server.collection is not None:
            items = [
                {"_id": f"{place:024x}", "id": repo, "type": "model", "position": place}
                for place, repo in enumerate(self.server.collection)
            ]
            owner = {"name": "someone", "fullname": "Someone", "type": "user"}
            about = {"slug": path.removeprefix("/api/collections/"), "title": "Models", "owner": owner}
            when = {"lastUpdated": "2025-01-01T00:00:00.000Z", "position": 0, "private": False}
            self._json({**about, **when, "theme": "green", "upvotes": 0, "items": items})
        else:
            self._resolve(body=True)

    def do_POST(self) -> None:
        path = unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.server.token and self.headers.get("Authorization") != f"Bearer {self.server.token}":
            self._json({"error": "Unauthorized"}, status=401)
        elif path == "/api/repos/create":
            asked = json.loads(body)
            kind, repo = asked.get("type", "model"), f"{asked['organization']}/{asked['name']}"
            self.server.files.setdefault(f"{kind}s/{repo}", {})
            shown = repo if kind == "model" else f"{kind}s/{repo}"
            self._json({"url": f"{self.server.url}/{shown}", "name": repo})
        elif path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif re.fullmatch(rf"{_REPO}/preupload/[^/]+", path):
            files = json.loads(body)["files"]
            modes = [{"path": one["path"], "uploadMode": "regular", "shouldIgnore": False} for one in files]
            self._json({"files": modes})
        elif found := re.fullmatch(rf"{_REPO}/commit/[^/]+", path):
            held = self.server.files[f"{found['kind']}/{found['repo']}"]
            self.server.commits.append([])
            for line in body.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    held[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
                    self.server.commits[-1].append(entry["value"]["path"])
            shown = found["repo"] if found["kind"] == "models" else f"{found['kind']}/{found['repo']}"
            self._json({"commitUrl": f"{self.server.url}/{shown}/commit/{COMMIT}", "commitOid": COMMIT})
        else:
            self._json({"error": f"no such call: {path}"}, status=404)

    def _info(self, found: re.Match[str]) -> None:
        files = self.server.files.get(f"{found['kind']}/{found['repo']}")
        if files is None:
            self._json({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
            return
        siblings = [{"rfilename": name} for name in files]
        shape = {"id": found["repo"], "sha": COMMIT, "siblings": siblings, "private": False, "tags": []}
        self._json({**shape, "downloads": 0, "likes": 0})

    def _tree(self, found: re.Match[str]) -> None:
        files = self.server.files.get(f"{found['kind']}/{found['repo']}")
        if files is None:
            self._json({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
            return
        entries = [
            {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
            for name, data in files.items()
        ]
        self._json(entries)

    def _resolve(self, *, body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        found = re.fullmatch(r"/(?P<kind>datasets/)?(?P<repo>[^/]+/[^/]+)/resolve/[^/]+/(?P<path>.+)", path)
        data = None
        if found:
            files = self.server.files.get(f"{found['kind'] or 'models/'}{found['repo']}", {})
            data = files.get(found["path"])
        if data is None or found is None:
            self._json({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound"})
            return
        start = 0
        if span := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start = int(span[1])
        self.send_response(206 if span else 200)
        self.send_header("Content-Length", str(len(data) - start))
        if span:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Accept-Ranges", "bytes")
        self.end_headers()
        if not body:
            return
        stop = self.server.cut_after.pop(found["path"], len(data))
        self.wfile.write(data[start:stop])
        self.server.served.append((found["path"], start, max(0, stop - start)))
        if stop < len(data):
            self.close_connection = True

    def _json(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        raw = json.dumps(value).encode()
        self.send_response(status)
        for name, text in (headers or {}).items():
            self.send_header(name, text)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)
