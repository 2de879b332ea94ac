"""Any server with OpenAI's API (vLLM, llama.cpp, SGLang, TGI, hosted ones), by OpenAI's own client.

The client retries what is worth a retry: a server that is busy, fails, hangs or cannot be reached. Servers
that batch requests do not promise the same text twice, whatever the seed.
"""

import asyncio
import os
from collections.abc import Coroutine, Sequence
from typing import Any

from pydantic import Field

from synthclip.backends import BackendConfig
from synthclip.config import runtime
from synthclip.errors import SynthClipError

_SAMPLING = {"frequency_penalty", "max_tokens", "presence_penalty", "temperature", "top_p"}


class Config(BackendConfig):
    model: str
    """The model's name on the server."""
    base_url: str = runtime("https://api.openai.com/v1")
    chat: bool = True
    """Ask `chat/completions`; off for `completions`, which goes on from a few-shot prompt or a prefill."""
    temperature: float = Field(0.7, ge=0)
    top_p: float = Field(0.95, gt=0, le=1)
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    max_tokens: int = Field(64, ge=1)
    stop: tuple[str, ...] = ()
    api_key_variable: str = runtime("OPENAI_API_KEY")
    """The environment variable that holds the key, which is written nowhere; a server that wants none gets a
    placeholder."""
    concurrency: int = runtime(32, ge=1)
    """Requests that a worker has under way at once."""
    max_retries: int = runtime(10, ge=0)
    """With growing pauses of up to 8 s, or as long as the server says."""
    timeout_seconds: float = runtime(120.0, gt=0)


def build(config: Config) -> "OpenAIServer":
    return OpenAIServer(config)


class OpenAIServer:
    """`LLM` on a server."""

    def __init__(self, config: Config) -> None:
        try:
            import openai
        except ImportError:
            raise SynthClipError(
                "backend 'openai' needs the package openai: `pip install 'synthclip[openai]'`"
            ) from None
        self.name = config.model
        self.batch_size = 8 * config.concurrency
        self.continues = not config.chat
        self._config = config
        self._runner = asyncio.Runner()
        self._client = openai.AsyncOpenAI(
            base_url=config.base_url,
            api_key=os.environ.get(config.api_key_variable) or "none",
            max_retries=config.max_retries,
            timeout=config.timeout_seconds,
        )
        self._free = asyncio.Semaphore(config.concurrency)
        self._sampling = config.model_dump(include=_SAMPLING)
        self._sampling["stop"] = list(config.stop) or openai.omit

    def generate(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[str]:
        """One completion for each prompt; where the server gives none, an empty one.

        Raises SynthClipError where the server cannot be used at all.
        """
        asked = [self._one(prompt, seed % 2**31) for prompt, seed in zip(prompts, seeds, strict=True)]
        return self._runner.run(_all(asked))

    async def _one(self, prompt: str, seed: int) -> str:
        import openai

        config = self._config
        sampling = {"model": config.model, "seed": seed, **self._sampling}
        try:
            async with self._free:
                if config.chat:
                    message: Any = {"role": "user", "content": prompt}
                    answer: Any = await self._client.chat.completions.create(messages=[message], **sampling)
                else:
                    answer = await self._client.completions.create(prompt=prompt, **sampling)
        except openai.BadRequestError as error:
            raise SynthClipError(
                f"llm: {config.base_url}: refused a request: {_short(error)}: mend the recipe's llm section"
            ) from None
        except openai.APIStatusError as error:
            remedy = {
                401: f"set {config.api_key_variable}",
                403: f"set {config.api_key_variable} to a key that may use the model",
                404: "mend llm.base_url or llm.model",
                429: "wait, or lower llm.concurrency",
            }.get(error.status_code, "look at the server")
            raise SynthClipError(
                f"llm: {config.base_url}: answered {error.status_code} after {config.max_retries} retries: "
                f"{remedy}"
            ) from None
        except openai.APIConnectionError as error:
            raise SynthClipError(
                f"llm: {config.base_url}: cannot be reached after {config.max_retries} retries "
                f"({_short(error.__cause__ or error)}): mend llm.base_url, or start the server; "
                "the same command goes on from here"
            ) from None
        except ValueError:
            answer = None
        if not hasattr(answer, "choices"):
            raise SynthClipError(
                f"llm: {config.base_url}: answers, but not as OpenAI's API does: mend llm.base_url "
                "(it ends in /v1 as a rule)"
            )
        if not answer.choices:
            return ""
        [choice, *_] = answer.choices
        return (choice.message.content if config.chat else choice.text) or ""


async def _all(asked: Sequence[Coroutine[Any, Any, str]]) -> list[str]:
    """All answers, in order; the first failure ends the others."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one) for one in asked]
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]


def _short(error: object) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 200 else text[:199] + "…"
