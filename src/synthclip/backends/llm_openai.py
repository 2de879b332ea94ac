"""Any server with OpenAI's API: vLLM, llama.cpp, SGLang, TGI, hosted ones.

Servers that batch requests do not promise the same text twice, whatever the seed.
"""

from collections.abc import Sequence
from typing import Any, Self

from pydantic import model_validator

from synthclip.backends import Refused, SamplingConfig
from synthclip.backends.completions import first_choice, said
from synthclip.backends.servers import Server, ServerConfig
from synthclip.recipe.section import later

_MAX_ANSWER_BYTES = 4 * 2**20


class Config(SamplingConfig, ServerConfig):
    """`chat` asks `chat/completions`, else `completions`."""

    max_completion_tokens: int | None = later(None, ge=1)
    """Sent in the place of `max_tokens`, for models that refuse that."""
    seeded: bool = later(True)
    """Send each request's seed; off for servers that refuse the field."""
    extra_body: dict[str, Any] = later({})
    """More fields of every request, such as `{chat_template_kwargs: {enable_thinking: false}}` or
    `{reasoning_effort: low}`; one that is null is not sent."""

    @model_validator(mode="after")
    def _leaves_room(self) -> Self:
        if reserved := sorted({"messages", "prompt", "stream", "n"} & self.extra_body.keys()):
            raise ValueError(f"extra_body: {reserved[0]!r} is not a field to set here")
        return self

    def sampling(self) -> dict[str, object]:
        values = super().sampling()
        if self.max_completion_tokens is not None:
            values.pop("max_tokens", None)
            values["max_completion_tokens"] = self.max_completion_tokens
        return values


def build(config: Config) -> "OpenAIServer":
    return OpenAIServer(config)


class OpenAIServer:
    """`LLM` on a server."""

    def __init__(self, config: Config) -> None:
        self.name = config.model
        self.batch_size = 8 * config.concurrency
        self.continues = not config.chat
        self._server = Server(config, "llm", _MAX_ANSWER_BYTES)
        self._config = config
        self._sampling: dict[str, Any] = {"model": config.model, **config.sampling()}

    def generate(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[str | Refused]:
        """One completion for each prompt; an empty one where the model gives none.

        What the server's content filter holds back is refused. Raises SynthClipError where the server is at
        fault.
        """
        return self._server.all(self._one, prompts, seeds)

    async def _one(self, prompt: str, seed: int) -> str | Refused:
        path = "completions" if self.continues else "chat/completions"
        answer = await self._server.post(path, self._body(prompt, seed))
        return answer if isinstance(answer, Refused) else self._completion(answer)

    def _body(self, prompt: str, seed: int) -> dict[str, Any]:
        body = dict(self._sampling)
        if self._config.seeded:
            body["seed"] = seed % 2**31  # which every server takes
        if self.continues:
            body["prompt"] = prompt
        else:
            body["messages"] = [{"role": "user", "content": prompt}]
        body |= self._config.extra_body
        return {name: value for name, value in body.items() if value is not None}

    def _completion(self, answer: dict[str, Any]) -> str | Refused:
        """The text in a checked answer. Raises SynthClipError where it is not of OpenAI's form."""
        try:
            if error := first_choice(answer).get("error"):
                return self._server.fault_in(error)
            return said(answer, not self.continues)
        except ValueError as error:
            raise self._server.malformed(str(error)) from None
