"""Models that stages call, one file a backend; the only place that imports their vendors.

A backend is a module with a frozen `Config` (a `BackendConfig`) and `build(config)`. A plain name such as
`llamacpp` is the file `llm_llamacpp.py` here; a dotted path is anybody's module. The vendor is imported
inside `build`, so that a recipe is checked without it.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from synthclip.errors import SynthClipError, first_line
from synthclip.recipe.backends import BackendConfig, CustomCode, Kind, module
from synthclip.recipe.section import later


class SamplingConfig(BackendConfig):
    """How a language model draws its words; every language-model backend of this package has these."""

    chat: bool = True
    """Send the prompt as a user's message in the model's chat template. Off, the model goes on from it, as
    few-shot prompts and prefills want."""
    temperature: float | None = Field(0.7, ge=0)
    """0 takes the likeliest word each time. null leaves this, and each of the next four, to the library or
    server."""
    top_p: float | None = Field(0.95, gt=0, le=1)
    """Draw among the likeliest words that have this probability together."""
    presence_penalty: float | None = 0.0
    """Taken off the logits of tokens that the answer holds already, as in OpenAI's API."""
    frequency_penalty: float | None = 0.0
    """The same, as often as the token stands there."""
    max_tokens: int | None = Field(64, ge=1)
    """Of an answer, and as many for each further caption that it lists; thinking counts. What is not finished
    by then is refused."""
    stop: tuple[str, ...] = ()
    """The answer ends before the first of these."""

    def sampling(self, count: int = 1) -> dict[str, object]:
        """The values for an answer of `count` captions, by the names that vLLM, llama.cpp and OpenAI's API
        share, without what is null and an empty `stop`."""
        names = {"temperature", "top_p", "presence_penalty", "frequency_penalty", "max_tokens"}
        values = self.model_dump(include=names, exclude_none=True)
        if "max_tokens" in values:
            values["max_tokens"] *= count
        return values | ({"stop": list(self.stop)} if self.stop else {})


class LocalSamplingConfig(SamplingConfig):
    """For models that run in this process."""

    chat_template_kwargs: dict[str, Any] = later({})
    """Arguments of the model's chat template, such as `{enable_thinking: false}` to switch thinking off."""


def caption_list(count: int) -> dict[str, Any]:
    """The JSON schema of a list of `count` captions."""
    return {"type": "array", "items": {"type": "string"}, "minItems": count, "maxItems": count}


@dataclass
class Tokens:
    """What a model has read and written since it was loaded, thinking included."""

    read: int = 0
    written: int = 0


class Unfinished(str):
    """A text that ends at the limit of tokens, not where the model would have ended it."""

    __slots__ = ()


@dataclass(frozen=True)
class Refused:
    """In the place of a text: why the model, or a filter in front of it, gives none."""

    reason: str
    """A few words, the same for all of a kind: refused rows are counted by it."""
    text: str = ""
    """What was said instead."""


class LLM(Protocol):
    """A language model that continues prompts."""

    name: str
    """What is written beside every caption: the model and, where known, its revision."""
    batch_size: int
    """How many prompts are best handed over at once."""
    continues: bool
    """Whether an answer goes on from the prompt's last word; that of a chat model does not."""
    # A model that counts has `tokens`, too: `Tokens`.

    def generate(
        self, prompts: Sequence[str], seeds: Sequence[int], counts: Sequence[int] | None = None
    ) -> Sequence[str | Refused]:
        """One completion for each prompt; the same prompt and seed give the same text.

        `counts` say how many captions each shall list; a model that can is bound to `caption_list`. A backend
        without that parameter is asked without it.

        It is `Unfinished` where the model was cut short. Thinking may stand in it, between the marks of the
        model's family.

        A fault of a service is never a property of a sample: raise SynthClipError for it. `Refused` is for a
        single prompt that a content filter holds back.
        """
        ...


@runtime_checkable
class Sees(LLM, Protocol):
    """A language model that looks at pictures, too."""

    pictures_at_once: int
    """How many are best under way at once. `look` may be called by several threads."""

    def look(
        self,
        prompts: Sequence[str],
        pictures: Sequence[bytes],
        seeds: Sequence[int],
        items: Mapping[str, Any] | None = None,
    ) -> Sequence[str | Refused]:
        """As `generate`, each prompt with a picture (JPEG) before it. A model that can is bound to `items`,
        the JSON schema of a list, whose `title` is its name."""
        ...


@runtime_checkable
class Deferred(Protocol):
    """A language model that is asked first and answers hours later, such as a batch endpoint."""

    max_requests: int
    """How many prompts it takes at once."""

    def submit(
        self, folder: Path, prompts: Sequence[str], seeds: Sequence[int], counts: Sequence[int]
    ) -> None:
        """Ask, and note in the folder what was asked; once, however often it is called."""
        ...

    def inside(self, folder: Path, tell: Callable[[str], None]) -> LLM:
        """The model whose `generate` waits for what was submitted with this folder, or submits it; `tell` is
        given how far it has come."""
        ...


@dataclass(frozen=True)
class Painted:
    """What came of a batch of prompts."""

    images: NDArray[np.uint8]
    """[B, H, W, 3] in RGB."""
    refused: Mapping[int, str] = field(default_factory=dict)
    """Position in the batch -> why the image is refused: `nan`, `unsafe`, …"""
    cut: Mapping[int, str] = field(default_factory=dict)
    """Position in the batch -> the end of the prompt that the model could not read."""


class TextToImage(Protocol):
    """A model that paints prompts.

    One whose `generate` may be called by several threads says by how many in an attribute `calls_at_once`.
    """

    name: str
    """What is written beside every image: the model and, where known, its revision."""
    licence: str
    """The licence that the pictures carry, named wherever they go."""
    batch_size: int
    """How many prompts are best handed over at once."""

    def generate(self, prompts: Sequence[str], seeds: Sequence[int]) -> Painted:
        """One image for each prompt; it depends on its prompt and seed, not on its batch."""
        ...


@contextlib.contextmanager
def loading(what: str) -> Iterator[None]:
    """Around a vendor's code that loads a model: whatever it raises becomes one line."""
    try:
        yield
    except SynthClipError:
        raise
    except Exception as error:
        reason = first_line(error)
        raise SynthClipError(f"{what}: cannot be loaded: {type(error).__name__}: {reason}") from None


def build_llm(config: BackendConfig) -> LLM:
    """Load the language model: slow, once a worker."""
    built: LLM = _module("llm", config).build(config)
    return built


def build_text_to_image(config: BackendConfig) -> TextToImage:
    """Load the text-to-image model: slow, once a worker."""
    built: TextToImage = _module("t2i", config).build(config)
    return built


def _module(kind: Kind, config: BackendConfig) -> ModuleType:
    if isinstance(config, CustomCode):
        config.refuse()
    return module(kind, config.backend)
