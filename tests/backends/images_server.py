"""A small server with OpenAI's images API, on loopback, that can fail in the ways real ones do."""

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import cv2
import numpy as np


class ImagesServer(ThreadingHTTPServer):
    """Answers with noise drawn from prompt and seed. A prompt that holds one of the words below fails."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.requests: list[dict[str, Any]] = []
        self.busy = 0
        """How many requests are yet to be answered with 429."""
        self.broken = 0
        """How many with 500."""
        self.always: int | None = None
        """Answer everything with this status."""
        self.page: bytes | None = None
        """Answer everything with this web page, as what is no such server does."""
        self.answer: dict[str, Any] | None = None
        """Answer with this image object."""
        self.file = b""
        """What is at every address."""
        self.keys: list[str | None] = []
        """The keys that came with requests for the file."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class _Handler(BaseHTTPRequestHandler):
    server: ImagesServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.server.keys.append(self.headers["Authorization"])
        self._send(200, self.server.file, {"Content-Type": "image/png"})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append(asked)
        prompt = asked["prompt"]
        if self.server.page is not None:
            return self._send(200, self.server.page, {"Content-Type": "text/html"})
        if self.server.always is not None:
            return self._answer(self.server.always, {"error": {"message": "no"}})
        if self.server.busy:
            self.server.busy -= 1
            return self._answer(429, {"error": {"message": "slow down"}}, {"Retry-After": "0"})
        if self.server.broken:
            self.server.broken -= 1
            return self._answer(500, {"error": {"message": "oops"}})
        if asked["model"].startswith("gpt-image") and (
            asked.keys() & {"seed", "response_format"} or asked["size"] != "1024x1024"
        ):
            return self._answer(400, {"error": {"message": "Unknown parameter", "code": "unknown_parameter"}})
        if self.server.answer is not None:
            return self._answer(200, {"created": 0, "data": [self.server.answer]})
        if "forbidden" in prompt:
            return self._answer(400, {"error": {"message": "content policy"}})
        side = int(asked["size"].partition("x")[0]) // (2 if "small" in prompt else 1)
        seed = [asked.get("seed", 0), *prompt.encode()]
        noise = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
        png = cv2.imencode(".png", noise)[1].tobytes()
        if "garbage" in prompt:
            png = b"this is no image"
        encoded = "" if "nothing" in prompt else base64.b64encode(png).decode()
        return self._answer(200, {"created": 0, "data": [{"b64_json": encoded}]})

    def _answer(self, status: int, value: dict[str, Any], headers: dict[str, str] | None = None) -> None:
        self._send(
            status, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})}
        )

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, text in headers.items():
            self.send_header(name, text)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        return None


@contextmanager
def images_server() -> Iterator[ImagesServer]:
    server = ImagesServer()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
