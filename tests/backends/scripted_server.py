"""A server on loopback that gives scripted answers, one after the other, then the last for ever."""

import contextlib
import json
import time
from dataclasses import dataclass, field
from typing import Any

from loopback import Handler, Loopback


@dataclass(frozen=True)
class Answer:
    """One answer: JSON, or bytes as they are."""

    body: Any = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    pause_seconds: float = 0.0
    """Before each byte of the body."""
    declared_bytes: int | None = None
    """The length that is announced, where it is not the true one."""

    @property
    def raw(self) -> bytes:
        return self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()


class ScriptedServer(Loopback):
    def __init__(self, *answers: Answer) -> None:
        super().__init__(_Handler)
        self.answers = list(answers)
        self.requests: list[dict[str, Any]] = []


class _Handler(Handler):
    server: ScriptedServer

    def post(self, raw: bytes) -> None:
        asked = json.loads(raw)
        answers = self.server.answers
        answer = answers[min(len(self.server.requests), len(answers) - 1)]
        self.server.requests.append({**asked, "path": self.path, "key": self.headers["Authorization"]})
        self.send_response(answer.status)
        for name, value in {"Content-Type": "application/json", **answer.headers}.items():
            self.send_header(name, value)
        length = len(answer.raw) if answer.declared_bytes is None else answer.declared_bytes
        self.send_header("Content-Length", str(length))
        self.end_headers()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            if not answer.pause_seconds:
                self.wfile.write(answer.raw)
            for byte in answer.raw if answer.pause_seconds else b"":
                time.sleep(answer.pause_seconds)
                self.wfile.write(bytes([byte]))
                self.wfile.flush()
        self.close_connection = answer.declared_bytes is not None
