"""A small server with OpenAI's images API, on loopback, that can fail in the ways real ones do."""

import base64
import json
from typing import Any

import cv2
import numpy as np

from loopback import Handler, Loopback


class ImagesServer(Loopback):
    """Answers with noise drawn from prompt and seed. A prompt that holds one of the words below fails."""

    def __init__(self) -> None:
        super().__init__(_Handler)
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


class _Handler(Handler):
    server: ImagesServer

    def get(self) -> None:
        if self.path == "/moved":
            return self.answer(302, {}, {"Location": "/picture"})
        self.server.keys.append(self.headers["Authorization"])
        return self.answer(200, self.server.file, {"Content-Type": "image/png"})

    def post(self, raw: bytes) -> None:
        asked = json.loads(raw)
        self.server.requests.append(asked)
        prompt = asked["prompt"]
        if self.server.page is not None:
            return self.answer(200, self.server.page, {"Content-Type": "text/html"})
        if self.server.always is not None:
            return self.answer(self.server.always, {"error": {"message": "no"}})
        if self.server.busy:
            self.server.busy -= 1
            return self.answer(429, {"error": {"message": "slow down"}}, {"Retry-After": "0"})
        if self.server.broken:
            self.server.broken -= 1
            return self.answer(500, {"error": {"message": "oops"}})
        if asked["model"].startswith("gpt-image") and (
            asked.keys() & {"seed", "response_format"} or asked["size"] != "1024x1024"
        ):
            return self.answer(400, {"error": {"message": "Unknown parameter", "code": "unknown_parameter"}})
        if self.server.answer is not None:
            return self.answer(200, {"created": 0, "data": [self.server.answer]})
        if "forbidden" in prompt:
            return self.answer(400, {"error": {"message": "content policy"}})
        side = int(asked["size"].partition("x")[0]) // (2 if "small" in prompt else 1)
        seed = [asked.get("seed", 0), *prompt.encode()]
        noise = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
        png = cv2.imencode(".png", noise)[1].tobytes()
        if "garbage" in prompt:
            png = b"this is no image"
        encoded = "" if "nothing" in prompt else base64.b64encode(png).decode()
        return self.answer(200, {"created": 0, "data": [{"b64_json": encoded}]})
