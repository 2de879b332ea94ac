"""A server with OpenAI's API that looks at the pictures it is sent: it knows red from blue."""

import base64
import json
import threading
import time
from typing import Any

import cv2
import numpy as np

from loopback import Handler, Loopback

BLUE, RED = "A blue picture with nothing else in it.", "A red picture with nothing else in it."


class VisionServer(Loopback):
    """Says of a picture whether it is blue: in a list of claims where one is asked for, else as a caption."""

    def __init__(self) -> None:
        super().__init__(_Handler)
        self.requests: list[dict[str, Any]] = []
        self.says: str | None = None
        """Answer everything with this text."""
        self.ends = "stop"
        """Why an answer ended."""
        self.broken = 0
        """How many requests are yet to be answered with 500."""
        self.blind = False
        """Refuse requests that hold a picture, as a server of a text model does."""
        self.pause_seconds = 0.0
        self.under_way = self.most_under_way = 0
        self.counting = threading.Lock()

    def said(self, asked: dict[str, Any]) -> str:
        if self.says is not None:
            return self.says
        picture, _ = asked["messages"][0]["content"]
        kind, _, data = picture["image_url"]["url"].partition(",")
        assert kind == "data:image/jpeg;base64"
        image = cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR_RGB)
        red, _, blue = np.asarray(image).mean((0, 1))
        if "response_format" not in asked:
            return BLUE if blue > red else RED
        claims = [
            {"claim": "a picture", "kind": "object", "shown": True},
            {"claim": "it is blue", "kind": "colour", "shown": bool(blue > red)},
        ]
        return json.dumps({"claims": claims})


class _Handler(Handler):
    server: VisionServer

    def post(self, raw: bytes) -> None:
        server, asked = self.server, json.loads(raw)
        with server.counting:
            server.requests.append(asked)
            server.under_way += 1
            server.most_under_way = max(server.most_under_way, server.under_way)
        time.sleep(server.pause_seconds)
        with server.counting:
            server.under_way -= 1
        if server.blind:
            return self.answer(400, {"error": {"message": "image_url is not supported by this model"}})
        if server.broken:
            server.broken -= 1
            return self.answer(500, {"error": {"message": "oops"}})
        choice = {"message": {"content": server.said(asked)}, "finish_reason": server.ends}
        usage = {"prompt_tokens": 100, "completion_tokens": 10}
        return self.answer(200, {"choices": [choice], "usage": usage})
