"""Models that stages call, one file a backend; the only place that imports their vendors.

A backend is a module with a frozen `Config` (a `BackendConfig`) and `build(config)`. A plain name such as
`llamacpp` is the file `llm_llamacpp.py` here; a dotted path is anybody's module. The vendor is imported
inside `build`, so that a recipe is checked without it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from synthclip.recipe.backends import BackendConfig, module


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


def build_llm(config: BackendConfig) -> LLM:
    """Load the language model: slow, once a worker."""
    built: LLM = module("llm", config.backend).build(config)
    return built


def build_text_to_image(config: BackendConfig) -> TextToImage:
    """Load the text-to-image model: slow, once a worker."""
    built: TextToImage = module("t2i", config.backend).build(config)
    return built
