"""Any server with OpenAI's API: vLLM, llama.cpp, SGLang, TGI, hosted ones.

Servers that batch requests do not promise the same text twice, whatever the seed.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from synthclip.backends import Refused, SamplingConfig
from synthclip.backends.servers import Server, ServerConfig

_MAX_ANSWER_BYTES = 4 * 2**20


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
        self._server = Server(config, "llm", _MAX_ANSWER_BYTES)
        self._sampling: dict[str, Any] = {"model": config.model, **config.sampling()}

    def generate(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[str | Refused]:
        """One completion for each prompt; an empty one where the model gives none.

        What the server's content filter holds back is refused. Raises SynthClipError where the server is at
        fault.
        """
        return self._server.all(self._one, prompts, seeds)

    async def _one(self, prompt: str, seed: int) -> str | Refused:
        asked = {**self._sampling, "seed": seed % 2**31}  # which every server takes
        if self.continues:
            answer = await self._server.post("completions", {**asked, "prompt": prompt})
        else:
            message = [{"role": "user", "content": prompt}]
            answer = await self._server.post("chat/completions", {**asked, "messages": message})
        return answer if isinstance(answer, Refused) else self._completion(answer)

    def _completion(self, answer: dict[str, Any]) -> str | Refused:
        """The text in a checked answer. Raises SynthClipError where it is not of OpenAI's form."""
        choices = answer.get("choices", self)
        if choices is self or not isinstance(choices, list | None):
            raise self._server.malformed("no list of choices")
        choice = choices[0] if choices else {}
        if not isinstance(choice, dict):
            raise self._server.malformed("a choice is no object")
        if choice.get("error"):
            return self._server.fault_in(choice["error"])
        said: Any = choice if self.continues else choice.get("message") or {}
        if not isinstance(said, dict):
            raise self._server.malformed("a message is no object")
        text = self._joined(said.get("text" if self.continues else "content"))
        if choice.get("finish_reason") == "content_filter":
            return Refused("content filter", text)
        refusal = said.get("refusal")
        return Refused("refusal", refusal) if not text and refusal and isinstance(refusal, str) else text

    def _joined(self, content: Any) -> str:
        """A text, or the texts of a list of parts. Raises SynthClipError for anything else."""
        if content is None or isinstance(content, str):
            return content or ""
        if not isinstance(content, list):
            raise self._server.malformed(f"a text is of type {type(content).__name__}")
        return "".join(self._texts(content))

    def _texts(self, parts: list[Any]) -> Iterator[str]:
        for part in parts:
            text = part.get("text", "") if isinstance(part, dict) else part
            if not isinstance(text, str):
                raise self._server.malformed(f"a part of a text is of type {type(text).__name__}")
            yield text
