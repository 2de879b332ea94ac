"""A text-to-image backend that composes drawings, where no diffusion model can be had.

It draws what a caption names and what it says of it (number, colour, size, place, setting, time of day,
weather) on procedural backgrounds, with the drawings of one of several artists. Its pictures show that a
pipeline works, and do not measure what a diffusion model's pictures teach.

A package of its own, found by its name as any backend of yours: it imports of `synthclip` only what such a
backend needs. `language` reads a caption, `painter` arranges and draws what it found, `artists` have the
drawings, `scenery` draws what stands behind them.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field

from synthclip.backends import Painted, TextToImage
from synthclip.recipe.backends import BackendConfig
from synthclip.recipe.section import later

if TYPE_CHECKING:
    from synthclip_compositor.language import Thing

Artist = Literal["openmoji-color", "openmoji-black", "openmoji-silhouette", "noto", "fontawesome", "material"]


class Config(BackendConfig):
    artist: Artist = later("openmoji-color")
    """Whose drawings: OpenMoji's in colour, as line art or as silhouettes, Noto's one-colour emoji, or the
    icons of Font Awesome or Material Design."""
    size_px: int = Field(128, ge=32, le=1024)
    """Side of the pictures."""

    @property
    def needs(self) -> dict[str, str]:
        from synthclip_compositor.artists import STYLES

        return dict.fromkeys(STYLES[self.artist].packages, "demo")

    def undrawable(self, texts: Sequence[str]) -> list[str]:
        from synthclip_compositor.language import read

        return [text for text in texts if not (things := read(text).things) or _missing(self.artist, things)]


def build(config: Config) -> TextToImage:
    return _Compositor(config.size_px, config.artist)


class _Compositor:
    batch_size = 32

    def __init__(self, size_px: int, artist: Artist) -> None:
        from synthclip_compositor.artists import STYLES, title
        from synthclip_compositor.painter import Painter

        self.name = f"compositor of {title(artist)} (no diffusion model)"
        self.licence = STYLES[artist].licence
        self._painter, self._artist = Painter(size_px, artist), artist

    def generate(self, prompts: Sequence[str], seeds: Sequence[int]) -> Painted:
        """Images uint8 [B, size, size, 3] in RGB; bit for bit the same for the same prompt and seed.

        Prompts that name a thing of which the artist has no drawing are refused.
        """
        from synthclip_compositor.language import read

        refused = {
            at: f"no drawing of {missing[0]}"
            for at, prompt in enumerate(prompts)
            if (missing := _missing(self._artist, read(prompt).things))
        }
        painted = [
            self._painter.paint("" if at in refused else prompt, seed)
            for at, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True))
        ]
        return Painted(np.stack(painted), refused)


def _missing(artist: Artist, things: "Sequence[Thing]") -> list[str]:
    """Those of the things that the artist does not draw."""
    from synthclip_compositor.artists import drawable

    return [thing.glyph for thing in things if thing.glyph not in drawable(artist)]
