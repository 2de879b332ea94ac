"""Any server with OpenAI's API: vLLM, llama.cpp, SGLang, TGI, hosted ones.

Servers that batch requests do not promise the same text twice, whatever the seed.
"""

import base64
import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from synthclip.backends import Refused, SamplingConfig, Tokens, caption_list
from synthclip.backends.batches import MAX_REQUESTS, Batch
from synthclip.backends.completions import count as count_tokens
from synthclip.backends.completions import said
from synthclip.backends.servers import Server, ServerConfig
from synthclip.recipe.section import Section, later, runtime

_MAX_ANSWER_BYTES = 4 * 2**20


class Prices(Section):
    """Of a million tokens, in any currency."""

    input: float = Field(ge=0)
    """Of the prompt."""
    output: float = Field(ge=0)
    """Thinking counts as output."""


class Config(SamplingConfig, ServerConfig):
    """`chat` asks `chat/completions`, else `completions`."""

    sees: ClassVar[bool] = True
    max_completion_tokens: int | None = later(None, ge=1)
    """Sent in the place of `max_tokens`, for models that refuse that."""
    seeded: bool = later(True)
    """Send each request's seed; off for servers that refuse the field."""
    extra_body: dict[str, Any] = later({})
    """More fields of every request, such as `{chat_template_kwargs: {enable_thinking: false}}` or
    `{reasoning_effort: low}`; one that is null is not sent."""

    batch: bool = runtime(False)
    """Send each shard's requests to the batch endpoint, which answers within a day at a lower price."""
    batch_poll_seconds: float = runtime(60.0, gt=0)
    """How often to ask whether a batch is done."""
    prices: Prices | None = runtime(None)
    """What the service asks for its tokens: `plan` and `status` then say what the captions cost."""
    guide: Literal["response_format", "structured_outputs", "guided_json", "json_schema"] | None = later(
        "response_format"
    )
    """The field that binds an answer to a JSON list, where `captions.per_request` asks for one: OpenAI's,
    those of vLLM and of vLLM before 0.12, or llama.cpp's. null for servers that know none."""

    @model_validator(mode="after")
    def _leaves_room(self) -> Self:
        if reserved := sorted({"messages", "model", "n", "prompt", "stream"} & self.extra_body.keys()):
            raise ValueError(f"extra_body: {reserved[0]!r} is not a field to set here")
        return self

    def sampling(self, count: int = 1) -> dict[str, object]:
        values = super().sampling(count)
        if self.max_completion_tokens is not None:
            values.pop("max_tokens", None)
            values["max_completion_tokens"] = count * self.max_completion_tokens
        return values


def build(config: Config) -> "OpenAIServer":
    return BatchServer(config) if config.batch else OpenAIServer(config)


class OpenAIServer:
    """`LLM` on a server."""

    def __init__(self, config: Config) -> None:
        self.name = config.model
        self.batch_size = 8 * config.concurrency
        self.pictures_at_once = config.concurrency
        self.continues = not config.chat
        self._server = Server(config, "llm", _MAX_ANSWER_BYTES)
        self._config = config
        self.tokens = Tokens()

    def generate(
        self, prompts: Sequence[str], seeds: Sequence[int], counts: Sequence[int] | None = None
    ) -> list[str | Refused]:
        """One completion for each prompt; an empty one where the model gives none.

        What the server's content filter holds back is refused. Raises SynthClipError where the server is at
        fault.
        """
        return self._server.all(self._one, prompts, seeds, counts or [1] * len(prompts))

    def look(
        self,
        prompts: Sequence[str],
        pictures: Sequence[bytes],
        seeds: Sequence[int],
        items: Mapping[str, Any] | None = None,
    ) -> list[str | Refused]:
        """As `generate`, each prompt with its picture before it."""
        count = 1 if items is None else int(items.get("maxItems", 1))
        same = [count] * len(prompts), [items] * len(prompts)
        return self._server.all(self._one, prompts, seeds, *same, pictures)

    async def _one(self, *asked: Any) -> str | Refused:
        return self._completion(await self._server.post(self._path, self._body(*asked)))

    @property
    def _path(self) -> str:
        return "completions" if self.continues else "chat/completions"

    def _body(
        self,
        prompt: str,
        seed: int,
        count: int,
        items: Mapping[str, Any] | None = None,
        picture: bytes | None = None,
    ) -> dict[str, Any]:
        body: dict[str, Any] = {"model": self._config.model, **self._config.sampling(count)}
        if self._config.seeded:
            body["seed"] = seed % 2**31  # which every server takes
        if self.continues:
            body["prompt"] = prompt
        else:
            content = prompt if picture is None else _with_picture(prompt, picture)
            body["messages"] = [{"role": "user", "content": content}]
        if (count > 1 or items is not None) and self._config.guide is not None:
            body[self._config.guide] = _guide(self._config.guide, items or caption_list(count))
        body |= self._config.extra_body
        return {name: value for name, value in body.items() if value is not None}

    def _completion(self, answer: dict[str, Any] | Refused) -> str | Refused:
        """The text in a checked answer. Raises SynthClipError where it is not of OpenAI's form."""
        if isinstance(answer, Refused):
            return answer
        count_tokens(answer, self.tokens)
        try:
            return said(answer, not self.continues)
        except ValueError as error:
            raise self._server.malformed(str(error)) from None


class BatchServer(OpenAIServer):
    """`Deferred`, and `LLM` inside a folder, on a server's batch endpoint; outside it asks one by one."""

    max_requests = MAX_REQUESTS

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._folder: Path | None = None
        self._tell: Callable[[str], None] = lambda text: None

    def submit(
        self, folder: Path, prompts: Sequence[str], seeds: Sequence[int], counts: Sequence[int]
    ) -> None:
        self._batch(folder, prompts, seeds, counts).submit()

    def inside(self, folder: Path, tell: Callable[[str], None]) -> "BatchServer":
        found = copy.copy(self)
        found._folder, found._tell, found.batch_size = folder, tell, self.max_requests
        return found

    def generate(
        self, prompts: Sequence[str], seeds: Sequence[int], counts: Sequence[int] | None = None
    ) -> list[str | Refused]:
        if self._folder is None:
            return super().generate(prompts, seeds, counts)
        batch = self._batch(self._folder, prompts, seeds, counts or [1] * len(prompts))
        answers = batch.answers(self._config.batch_poll_seconds, self._tell)
        return [self._completion(answer) for answer in answers]

    def _batch(self, folder: Path, *asked: Sequence[Any]) -> Batch:
        bodies = [self._body(*one) for one in zip(*asked, strict=True)]
        return Batch(self._server, self._path, folder, bodies)


def _with_picture(prompt: str, picture: bytes) -> list[dict[str, Any]]:
    url = f"data:image/jpeg;base64,{base64.b64encode(picture).decode()}"
    return [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": prompt}]


def _guide(field: str, items: Mapping[str, Any]) -> dict[str, Any]:
    """What the field takes to bind an answer to a list of that schema."""
    if field == "structured_outputs":
        return {"json": items}
    if field != "response_format":
        return dict(items)
    name = items.get("title", "captions")
    named = {name: items}  # OpenAI takes objects alone
    schema = {"type": "object", "properties": named, "required": [name], "additionalProperties": False}
    return {"type": "json_schema", "json_schema": {"name": name, "strict": True, "schema": schema}}
