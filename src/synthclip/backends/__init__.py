"""Models that stages call, one file a backend; the only place that imports their vendors.

A backend is a module with a frozen `Config` (a `BackendConfig`) and `build(config)`. A plain name such as
`llamacpp` is the file `llm_llamacpp.py` here; a dotted path is anybody's module. The vendor is imported
inside `build`, so that a recipe is checked without it.
"""

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, ClassVar, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, SerializeAsAny

from synthclip.config import Section, nearest

Kind = Literal["llm", "tti"]


class BackendConfig(Section):
    """What every backend's `Config` has: its own name."""

    backend: str
    gpus: ClassVar[int] = 0
    """GPUs that one worker is given, where the machine has any."""

    def inputs(self) -> dict[str, str]:
        """Digests of the local files that the model consists of.

        Raises SynthClipError where one is missing or cannot be what it should be. Called before any worker
        starts, and for `synthclip status`: quick, and without the vendor.
        """
        return {}


class LLM(Protocol):
    """A language model that continues prompts."""

    name: str
    """What is written beside every caption: the model and, where known, its revision."""
    batch_size: int
    """How many prompts are best handed over at once."""
    continues: bool
    """Whether an answer goes on from the prompt's last word; a chat model begins anew."""

    def generate(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[str]:
        """One completion for each prompt; the same prompt and seed give the same text."""
        ...


@dataclass(frozen=True)
class Painted:
    """What came of a batch of prompts."""

    images: NDArray[np.uint8]
    """[B, H, W, 3] in RGB."""
    refused: Mapping[int, str] = field(default_factory=dict)
    """Position in the batch -> why the image is none to keep: `nan`, `unsafe`, …"""
    cut: Mapping[int, str] = field(default_factory=dict)
    """Position in the batch -> the end of the prompt that the model could not read."""


class TextToImage(Protocol):
    """A model that paints prompts."""

    name: str
    """What is written beside every image: the model and, where known, its revision."""
    licence: str
    """The licence that the pictures carry, named wherever they go."""
    batch_size: int
    """How many prompts are best handed over at once."""

    def generate(self, prompts: Sequence[str], seeds: Sequence[int]) -> Painted:
        """One image for each prompt; it depends on its prompt and seed, not on its batch."""
        ...


def module(kind: Kind, name: str) -> ModuleType:
    """The backend's module. Raises ValueError where there is none of that name."""
    if "." in name:
        try:
            return importlib.import_module(name)
        except ImportError as error:
            raise ValueError(f"backend {name!r} cannot be imported: {error}") from error
    here = {path.stem.removeprefix(f"{kind}_") for path in Path(__file__).parent.glob(f"{kind}_*.py")}
    if name not in here:
        raise ValueError(f"unknown backend {name!r}{nearest(name, sorted(here))}")
    return importlib.import_module(f"{__name__}.{kind}_{name}")


def _typed(kind: Kind) -> BeforeValidator:
    def validate(value: Any) -> Any:
        if isinstance(value, dict):
            if "backend" not in value:
                raise ValueError("needs a key 'backend'")
            return module(kind, str(value["backend"])).Config.model_validate(value)
        return value

    return BeforeValidator(validate)


LLMConfig = Annotated[SerializeAsAny[BackendConfig], _typed("llm")]
"""`{backend: NAME, …}`, read as the `Config` of the language-model backend NAME."""

TextToImageConfig = Annotated[SerializeAsAny[BackendConfig], _typed("tti")]
"""`{backend: NAME, …}`, read as the `Config` of the text-to-image backend NAME."""


def build_llm(config: BackendConfig) -> LLM:
    """Load the language model: slow, once a worker."""
    built: LLM = module("llm", config.backend).build(config)
    return built


def build_text_to_image(config: BackendConfig) -> TextToImage:
    """Load the text-to-image model: slow, once a worker."""
    built: TextToImage = module("tti", config.backend).build(config)
    return built
