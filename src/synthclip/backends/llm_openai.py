"""Any server with OpenAI's API (vLLM, llama.cpp, SGLang, TGI, hosted ones), by OpenAI's own client.

Servers that batch requests do not promise the same text twice, whatever the seed.
"""

from collections.abc import Sequence
from typing import Any

from synthclip.backends import SamplingConfig
from synthclip.backends.servers import Server, ServerConfig


class Config(SamplingConfig, ServerConfig):
    """`chat` asks `chat/completions`, else `completions`."""


def build(config: Config) -> "OpenAIServer":
    return OpenAIServer(config)


class OpenAIServer:
    """`LLM` on a server."""

    def __init__(self, config: Config) -> None:
        self.name = config.model
        self.batch_size = 8 * config.concurrency
        self.continues = not config.chat
        self._server = Server(config, "llm")
        self._sampling: dict[str, Any] = {"model": config.model, **config.sampling()}

    def generate(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[str]:
        """One completion for each prompt; where the server gives none, an empty one.

        Raises SynthClipError where the server cannot be used at all.
        """
        return self._server.all(self._one, prompts, seeds)

    async def _one(self, prompt: str, seed: int) -> str:
        client, seed = self._server.client, seed % 2**31  # which every server takes
        answer: Any
        try:
            if self.continues:
                answer = await client.completions.create(prompt=prompt, seed=seed, **self._sampling)
            else:
                message: Any = {"role": "user", "content": prompt}
                answer = await client.chat.completions.create(messages=[message], seed=seed, **self._sampling)
        except ValueError:
            answer = None
        if not hasattr(answer, "choices"):
            raise self._server.no_such_api()
        if not answer.choices:
            return ""
        [choice, *_] = answer.choices
        said = choice if self.continues else getattr(choice, "message", None)
        return getattr(said, "text" if self.continues else "content", None) or ""
