"""OpenAI's batch endpoint: the requests of a shard as one file, answered within a day at a lower price.

Everything that a batch has come to stands in a folder, so that a process that is killed anywhere goes on with
the batch that is paid for: `batch.json` names it, `answers.jsonl` holds what came back. A batch is given a
name of our own before it is created, by which it is found again where the server's answer was lost.
"""

import json
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from synthclip.backends import Refused
from synthclip.backends.faults import ServiceError, failure
from synthclip.backends.servers import Server
from synthclip.errors import SynthClipError
from synthclip.run.durable import replace_text, seal, unseal

MAX_REQUESTS = 50_000
_WINDOW = "24h"
_WINDOW_SECONDS = 24 * 3600.0
_NAME = "synthclip"  # of the metadata that holds our name of a batch
_UNDER_WAY = ("validating", "in_progress", "finalizing", "cancelling")
_NOT_ANSWERED = ("batch_expired", "batch_cancelled")
_MAX_ROUNDS = 5
_MAX_WORDS = 300


@dataclass(frozen=True)
class _State:
    """What `batch.json` says."""

    name: str
    """Ours of the batch that is to be created, or is under way."""
    batch: str | None = None
    """The server's; None until it is known."""


class Batch:
    """The requests of one shard, by their number."""

    def __init__(self, server: Server, endpoint: str, folder: Path, bodies: Sequence[dict[str, Any]]) -> None:
        """`endpoint` such as `chat/completions`; `folder` outlives the process."""
        self._server, self._endpoint, self._folder, self._bodies = server, endpoint, folder, bodies

    def submit(self) -> str | None:
        """See that a batch is under way for what has no answer yet; the server's name of it, None where all
        have one."""
        missing = self._missing()
        if not missing:
            return None
        state = self._state() or _State(uuid.uuid4().hex)
        if state.batch is None:
            # The name is on the disk before the batch can exist.
            name = self._write(state).name
            found = self._server.run(
                lambda: self._server.retried(lambda: self._find_or_create(name, missing))
            )
            state = self._write(replace(state, batch=found))
        return state.batch

    def answers(self, poll_seconds: float, tell: Callable[[str], None]) -> list[dict[str, Any] | Refused]:
        """Wait until every request has its answer. `tell` is given how far the batch has come.

        Raises SynthClipError with the server's words where a batch fails, is cancelled, or holds a request
        that is refused through no fault of its content. Called again, it sends what has no answer in a new
        batch.
        """
        started, rounds = time.monotonic(), 0
        while (batch_id := self.submit()) is not None:
            batch = self._server.get(f"batches/{batch_id}")
            status = str(batch.get("status")).lower()
            if status in _UNDER_WAY:
                counts = batch.get("request_counts")
                done = counts.get("completed", 0) if isinstance(counts, dict) else 0
                tell(f"{status} {done}/{len(self._bodies)}")
                time.sleep(poll_seconds)
                continue
            fault = self._fetch(batch)
            self._write(_State(uuid.uuid4().hex))  # so that what has no answer is sent in a new batch
            if fault is not None:
                raise fault
            if status == "failed" and _queue_is_full(batch) and time.monotonic() - started < _WINDOW_SECONDS:
                tell("waits until other batches are done")
                time.sleep(poll_seconds)
            elif status in ("failed", "cancelled"):
                what = f"batch {batch_id} {status}{_words(batch)}"
                raise self._server.error(what, "run the same command again to send it anew")
            elif missing := self._missing():
                rounds += 1
                if rounds == _MAX_ROUNDS:
                    what = f"{len(missing)} requests have no answer after {rounds} batches"
                    raise self._server.error(what, "look at the server")
        found = self._answered()
        return [found[number] for number in range(len(self._bodies))]

    async def _find_or_create(self, name: str, numbers: Sequence[int]) -> str:
        """The server's name of our batch."""
        try:
            listed = await self._server.once("GET", "batches", params={"limit": 100})
            known = listed.get("data") if isinstance(listed, dict) else None
        except ServiceError as fault:
            if fault.passing:
                raise
            known = None  # a server that lists none
        for one in known if isinstance(known, list) else ():
            metadata = one.get("metadata") if isinstance(one, dict) else None
            if isinstance(metadata, dict) and metadata.get(_NAME) == name:
                return self._id(one)
        url = f"/v1/{self._endpoint}"
        lines = [
            {"custom_id": str(number), "method": "POST", "url": url, "body": self._bodies[number]}
            for number in numbers
        ]
        text = "".join(f"{json.dumps(line)}\n" for line in lines)
        file = await self._server.once(
            "POST",
            "files",
            data={"purpose": "batch"},
            files={"file": ("captions.jsonl", text.encode(), "application/jsonl")},
        )
        asked = {
            "input_file_id": self._id(file),
            "endpoint": url,
            "completion_window": _WINDOW,
            "metadata": {_NAME: name},
        }
        return self._id(await self._server.once("POST", "batches", json=asked))

    def _id(self, answer: dict[str, Any] | Refused) -> str:
        found = answer.get("id") if isinstance(answer, dict) else None
        if not isinstance(found, str):
            raise self._server.malformed("no id of a file or batch")
        return found

    def _fetch(self, batch: dict[str, Any]) -> SynthClipError | None:
        """Add the answers in a batch's files to those that are here.

        Gives the first fault of the service in them.
        """
        found = {line["custom_id"]: line for line in self._lines()}
        first = None
        for name in ("output_file_id", "error_file_id"):
            text = self._server.content(f"files/{batch[name]}/content") if batch.get(name) else b""
            for line in map(_line, text.splitlines()):
                try:
                    if line is not None and self._judged(line) is not None:
                        found[line["custom_id"]] = line
                except SynthClipError as fault:
                    first = first or fault
        kept = "".join(f"{json.dumps(line)}\n" for line in found.values())
        replace_text(self._folder / "answers.jsonl", kept)
        return first

    def _judged(self, line: dict[str, Any]) -> dict[str, Any] | Refused | None:
        """The answer in a line, None where the request is to be sent again. Raises SynthClipError where the
        service is at fault, and sending again does not help."""
        response, error = line.get("response"), line.get("error")
        if not isinstance(response, dict):
            if not isinstance(error, dict) or error.get("code") in _NOT_ANSWERED:
                return None
            response = {"status_code": 200, "body": {"error": error}}
        status, body = response.get("status_code"), response.get("body")
        if status == 200 and isinstance(body, dict) and failure(body) is None:
            return body if isinstance(body.get("choices"), list) else None
        try:
            return self._server.judged(status if isinstance(status, int) else 500, body)
        except ServiceError as fault:
            if fault.passing:
                return None
            raise self._server.error(f"{fault.what}{fault.detail}", fault.remedy) from None

    def _answered(self) -> dict[int, dict[str, Any] | Refused]:
        judged = ((int(line["custom_id"]), self._judged(line)) for line in self._lines())
        return {number: answer for number, answer in judged if answer is not None}

    def _missing(self) -> list[int]:
        found = self._answered()
        return [number for number in range(len(self._bodies)) if number not in found]

    def _lines(self) -> list[dict[str, Any]]:
        path = self._folder / "answers.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []

    def _state(self) -> _State | None:
        path = self._folder / "batch.json"
        values = unseal(path.read_bytes()) if path.is_file() else None
        return _State(**values) if values else None

    def _write(self, state: _State) -> _State:
        replace_text(self._folder / "batch.json", seal(asdict(state)))
        return state


def _line(raw: bytes) -> dict[str, Any] | None:
    """A line of a batch's file; None where it is not one of ours."""
    try:
        line = json.loads(raw)
        return line if str(line["custom_id"]).isdecimal() else None
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def _queue_is_full(batch: dict[str, Any]) -> bool:
    """Whether a batch failed because the account has too many tokens in its queue."""
    return "token_limit" in json.dumps(batch.get("errors") or "")


def _words(batch: dict[str, Any]) -> str:
    errors = batch.get("errors")
    listed = errors.get("data") if isinstance(errors, dict) else None
    first = listed[0] if isinstance(listed, list) and listed else {}
    said = first.get("message") if isinstance(first, dict) else None
    return f" ({' '.join(said.split())[:_MAX_WORDS]})" if isinstance(said, str) else ""
