"""What the backends for servers with OpenAI's API share: settings, retries, and errors as one line.

OpenAI's own client retries what is worth a retry: a server that is busy, fails, hangs or cannot be reached.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from typing import ClassVar, TypeVar

from synthclip.errors import SynthClipError, needs_extra
from synthclip.recipe.backends import BackendConfig
from synthclip.recipe.section import runtime

_T = TypeVar("_T")


class ServerConfig(BackendConfig):
    packages: ClassVar[dict[str, str]] = {"openai": "openai"}
    model: str
    """The model's name on the server."""
    base_url: str = runtime("https://api.openai.com/v1")
    api_key_variable: str = runtime("OPENAI_API_KEY")
    """The environment variable that holds the key, which is written nowhere; a server that wants none gets a
    placeholder."""
    concurrency: int = runtime(32, ge=1)
    """Requests that a worker has under way at once."""
    max_retries: int = runtime(10, ge=0)
    """With growing pauses of up to 8 s, or as long as the server says."""
    timeout_seconds: float = runtime(120.0, gt=0)


class Server:
    """A connection for one section of the recipe."""

    def __init__(self, config: ServerConfig, section: str) -> None:
        with needs_extra("openai", f"{section}.backend openai"):
            import openai

        self.client = openai.AsyncOpenAI(
            base_url=config.base_url,
            api_key=os.environ.get(config.api_key_variable) or "none",
            max_retries=config.max_retries,
            timeout=config.timeout_seconds,
        )
        self._config, self._section = config, section
        self._runner = asyncio.Runner()
        self._free = asyncio.Semaphore(config.concurrency)

    def all(
        self, request: Callable[[str, int], Awaitable[_T]], prompts: Sequence[str], seeds: Sequence[int]
    ) -> list[_T]:
        """What comes of `request`, which uses `client`, for each prompt and seed, in order.

        Raises SynthClipError where the server cannot be used; the first failure ends the others.
        """
        return self._runner.run(self._all(request, prompts, seeds))

    async def _all(
        self, request: Callable[[str, int], Awaitable[_T]], prompts: Sequence[str], seeds: Sequence[int]
    ) -> list[_T]:
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(self._one(request, prompt, seed))
                    for prompt, seed in zip(prompts, seeds, strict=True)
                ]
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None
        return [task.result() for task in tasks]

    async def _one(self, request: Callable[[str, int], Awaitable[_T]], prompt: str, seed: int) -> _T:
        import openai

        config, section = self._config, self._section
        try:
            async with self._free:
                return await request(prompt, seed)
        except openai.BadRequestError as error:
            raise SynthClipError(
                f"{section}: {config.base_url}: refused a request: {_short(error)}: "
                f"mend the recipe's {section} section"
            ) from None
        except openai.APIStatusError as error:
            remedy = {
                401: f"set {config.api_key_variable}",
                403: f"set {config.api_key_variable} to a key that may use the model",
                404: f"mend {section}.base_url or {section}.model",
                429: f"wait, or lower {section}.concurrency",
            }.get(error.status_code, "look at the server")
            raise SynthClipError(
                f"{section}: {config.base_url}: answered {error.status_code} after {config.max_retries} "
                f"retries: {remedy}"
            ) from None
        except openai.APIConnectionError as error:
            raise SynthClipError(
                f"{section}: {config.base_url}: cannot be reached after {config.max_retries} retries "
                f"({_short(error.__cause__ or error)}): mend {section}.base_url, or start the server; "
                "the same command goes on from here"
            ) from None

    def no_such_api(self) -> SynthClipError:
        """For an answer that is none of OpenAI's API."""
        return SynthClipError(
            f"{self._section}: {self._config.base_url}: answers, but not as OpenAI's API does: "
            f"mend {self._section}.base_url (it ends in /v1 as a rule)"
        )


def _short(error: object) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 200 else text[:199] + "…"
