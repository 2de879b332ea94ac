"""What the backends for servers with OpenAI's API share: requests and retries.

After a fault of the service (see `faults`) the request is sent again where waiting can help, else the shard
stops with the server's own words. What a server answers is bounded in size and time, and checked before it is
used; the key is hidden wherever it comes back.
"""

import asyncio
import json
import logging
import os
import random
import re
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar
from urllib.parse import urlsplit

from pydantic import model_validator

from synthclip.backends import Refused
from synthclip.backends.faults import ServiceError, error_in, failure, refusal
from synthclip.errors import SynthClipError, needs_extra
from synthclip.recipe.backends import BackendConfig
from synthclip.recipe.section import runtime

if TYPE_CHECKING:
    import httpx

_T = TypeVar("_T")
_LOG = logging.getLogger("synthclip.backends")
_MAX_PAUSE_SECONDS = 8.0
_MAX_FILE_BYTES = 2**30
_MAX_WORDS = 300
"""Characters quoted of what a server says."""
_MIN_SECRET_CHARS = 12
"""A shorter key, such as the EMPTY that local servers are given, may be a word of an answer."""
_SECRET = re.compile(r"\b(?:sk|pk|hf|gsk|xai)[-_][\w*.-]{6,}|(?<=Bearer )\S+|(?<=://)[^\s/@]+@")


class ServerConfig(BackendConfig):
    packages: ClassVar[dict[str, str]] = {"httpx": "openai"}
    model: str
    """The model's name on the server."""
    base_url: str = runtime("https://api.openai.com/v1")
    """The server's address, up to and with `/v1`."""
    api_key_variable: str = runtime("OPENAI_API_KEY")
    """The environment variable that holds the key, which is written nowhere; a server that wants none gets a
    placeholder."""
    concurrency: int = runtime(32, ge=1)
    """Requests that a worker has under way at once."""
    max_retries: int = runtime(10, ge=0)
    """How often a request is sent again, with growing pauses of up to 8 s, or as long as the server says."""
    timeout_seconds: float = runtime(120.0, gt=0)
    """Without a byte of the answer for so long, the request is sent again."""
    max_answer_seconds: float = runtime(600.0, gt=0)
    """The same where the complete answer takes longer than this."""

    @model_validator(mode="after")
    def _address(self) -> Self:
        url = urlsplit(self.base_url)
        if url.scheme not in ("http", "https") or not url.hostname:
            raise ValueError("base_url: expected an address such as http://localhost:8000/v1")
        if url.username is not None or url.query or url.fragment:
            raise ValueError(
                "base_url: holds a user name, a password or a query, which would be recorded: leave them out "
                "and set api_key_variable to the environment variable that holds the key"
            )
        return self


class Server:
    """A connection for one section of the recipe."""

    def __init__(self, config: ServerConfig, section: str, max_answer_bytes: int) -> None:
        with needs_extra("openai", f"{section}.backend openai"):
            import httpx
        self._config, self._section, self._max_answer_bytes = config, section, max_answer_bytes
        key = os.environ.get(config.api_key_variable, "").strip() or "none"
        if not (key.isascii() and key.isprintable()):
            raise SynthClipError(
                f"{section}: {config.api_key_variable} holds characters that HTTP does not take: set it again"
            )
        self._secret = key if len(key) >= _MIN_SECRET_CHARS else None
        self._open = partial(
            httpx.AsyncClient,
            headers={"Authorization": f"Bearer {key}", "Accept-Encoding": "identity"},
            timeout=config.timeout_seconds,
            limits=httpx.Limits(max_connections=config.concurrency),
            verify=httpx.create_ssl_context(),
        )
        self._free = asyncio.Semaphore(config.concurrency)
        self._announced, self._announced_at = 0, 0.0

    def all(self, request: Callable[..., Awaitable[_T]], *arguments: Sequence[Any]) -> list[_T]:
        """What comes of `request`, which uses `post`, for the first of each of `arguments`, prompts and seeds
        say, then the second, in order.

        Raises SynthClipError where the server cannot be used; the first failure ends the others.
        """
        return self.run(lambda: self._all(request, zip(*arguments, strict=True)))

    async def _all(self, request: Callable[..., Awaitable[_T]], asked: Iterable[tuple[Any, ...]]) -> list[_T]:
        async def one(arguments: tuple[Any, ...]) -> _T:
            async with self._free:
                return await request(*arguments)

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(one(arguments)) for arguments in asked]
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None
        return [task.result() for task in tasks]

    def run(self, work: Callable[[], Awaitable[_T]]) -> _T:
        """What comes of `work`, which uses the connection. Threads that call it at once share the connection
        and its limit, so that one's last requests do not leave the server idle."""

        async def working() -> _T:
            return await work()

        running = asyncio.run_coroutine_threadsafe(working(), self._loop)
        try:
            return running.result()
        except BaseException:
            running.cancel()
            raise

    @cached_property
    def _loop(self) -> asyncio.AbstractEventLoop:
        loop = asyncio.new_event_loop()
        threading.Thread(target=loop.run_forever, daemon=True, name=f"{self._section} requests").start()
        return loop

    @cached_property
    def _client(self) -> "httpx.AsyncClient":
        return self._open()

    def get(self, path: str) -> dict[str, Any]:
        """The server's answer about something that it holds; raises as `post` does."""
        answer = self.run(lambda: self.retried(lambda: self.once("GET", path)))
        if isinstance(answer, Refused):
            raise self.error(f"refused a request ({answer.text})", "look at the server")
        return answer

    def content(self, path: str) -> bytes:
        """A file of lines that the server holds, which may be large; raises as `post` does."""
        return self.run(lambda: self.download(path, _MAX_FILE_BYTES))

    async def download(self, path: str, max_bytes: int | None = None) -> bytes:
        """A file on the server, or at an address that an answer names: the key goes to no other host."""

        async def read() -> bytes:
            status, raw, pause = await self._exchange("GET", path, max_bytes or self._max_answer_bytes)
            if status != 200:
                self.judged(status, _json(raw), pause)
            return raw

        return await self.retried(read)

    async def post(self, path: str, body: dict[str, Any]) -> dict[str, Any] | Refused:
        """The server's answer to `body`, a JSON object, or that its content filter refuses it.

        Raises SynthClipError with the server's words where the service is at fault and waiting does not help.
        """
        return await self.retried(lambda: self.once("POST", path, json=body))

    async def retried(self, attempt_once: Callable[[], Awaitable[_T]]) -> _T:
        """What comes of an attempt, or of later ones while it raises a ServiceError that may pass."""
        retries, attempt = self._config.max_retries, 0
        while True:
            try:
                return await attempt_once()
            except ServiceError as fault:
                if not fault.passing or attempt == retries:
                    tried = f" after {retries} retries" if fault.passing else ""
                    raise self.error(f"{fault.what}{tried}{fault.detail}", fault.remedy) from None
                pause = min(_MAX_PAUSE_SECONDS, 0.5 * 2 ** min(attempt, 8)) * random.uniform(0.75, 1)
                attempt += 1
                self._announce(fault, attempt)
                await asyncio.sleep(pause if fault.pause_seconds is None else fault.pause_seconds)

    def malformed(self, what: str) -> SynthClipError:
        """For an answer that is not of OpenAI's form; `what` says where it differs."""
        return self.error(
            f"answers, but not as OpenAI's API does ({what})",
            f"check {self._section}.base_url (it ends in /v1 as a rule)",
        )

    async def once(self, method: str, path: str, **options: Any) -> dict[str, Any] | Refused:
        """One request, `options` as httpx takes them. Raises ServiceError where the service is at fault."""
        status, raw, pause = await self._exchange(method, path, self._max_answer_bytes, **options)
        answer = _json(raw)
        if status == 200 and not isinstance(answer, dict):
            raise self.malformed("no JSON object")
        if status == 200 and failure(answer) is None:
            return dict(answer)
        return self.judged(status, answer, pause)

    async def _exchange(
        self, method: str, path: str, max_bytes: int, **options: Any
    ) -> tuple[int, bytes, str | None]:
        """The status, the body without the key, and what the server says of a pause."""
        import httpx

        config, section = self._config, self._section
        start = f"check {section}.base_url, or start the server; the same command goes on from here"
        try:
            async with asyncio.timeout(config.max_answer_seconds):
                base = config.base_url.rstrip("/")
                url = path if path.startswith(("http://", "https://")) else f"{base}/{path}"
                request = self._client.build_request(method, url, **options)
                if urlsplit(url).netloc != urlsplit(base).netloc:
                    del request.headers["Authorization"]
                # Of pictures at an address, which may lie elsewhere; httpx sends the key to no other host.
                follows = method == "GET"
                response = await self._client.send(request, stream=True, follow_redirects=follows)
                try:
                    raw = await self._read(response, max_bytes)
                finally:
                    await response.aclose()
        except TimeoutError:
            what = f"took longer than {config.max_answer_seconds:g} s for an answer"
            remedy = f"look at the server, or raise {section}.max_answer_seconds"
            raise ServiceError(what, "", remedy, passing=True) from None
        except (httpx.TransportError, httpx.InvalidURL) as error:
            cause = self._hidden(str(error) or type(error).__name__)
            if isinstance(error, httpx.TimeoutException):
                cause = f"no answer within {config.timeout_seconds:g} s"
            raise ServiceError("cannot be reached", f" ({cause})", start, passing=True) from None
        raw = raw.replace(self._secret.encode(), b"[key]") if self._secret else raw
        return response.status_code, raw, response.headers.get("retry-after")

    async def _read(self, response: "httpx.Response", max_bytes: int) -> bytes:
        """The body, up to its limit."""
        parts, size = [], 0
        async for part in response.aiter_bytes():
            size += len(part)
            if size > max_bytes:
                raise self.error(f"an answer is larger than {max_bytes:,} bytes", "look at the server")
            parts.append(part)
        return b"".join(parts)

    def judged(self, status: int, answer: Any, retry_after: str | None = None) -> Refused:
        """The content filter's refusal. Raises ServiceError where the fault is the service's."""
        error = error_in(answer)
        named = self._section, self._config.api_key_variable
        return refusal(status, error, self._words(error), retry_after, *named)

    def _announce(self, fault: ServiceError, attempt: int) -> None:
        """One line for each further attempt, however many requests wait for the same server."""
        now = time.monotonic()
        if attempt > self._announced or now - self._announced_at > _MAX_PAUSE_SECONDS:
            self._announced, self._announced_at = attempt, now
            _LOG.warning(
                "%s: %s: %s%s, trying again (%d of %d)",
                self._section,
                self._config.base_url,
                fault.what,
                fault.detail,
                attempt,
                self._config.max_retries,
            )

    def error(self, what: str, remedy: str) -> SynthClipError:
        """A fault of this server in one line."""
        return SynthClipError(f"{self._section}: {self._config.base_url}: {what}: {remedy}")

    def _words(self, error: Any) -> str:
        """What the server says, in one line without secrets."""
        said = error
        if isinstance(error, dict):
            said = next((error[name] for name in ("message", "detail", "error") if error.get(name)), error)
        if not said:
            return ""
        return self._hidden(said if isinstance(said, str) else json.dumps(said, ensure_ascii=False))

    def _hidden(self, text: str) -> str:
        text = _SECRET.sub("[key]", text.replace(self._secret, "[key]") if self._secret else text)
        text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
        return text if len(text) <= _MAX_WORDS else text[: _MAX_WORDS - 1] + "…"


def _json(raw: bytes) -> Any:
    """The value, None where it is none."""
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        return None
