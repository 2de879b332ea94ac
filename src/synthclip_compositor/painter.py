"""Draws a scene: arranges its things, then puts background, shadows, glyphs, weather and light together.

The picture is cut into columns; what stands on, in, under, above, behind or in front of something shares its
column. Coordinates are shares of the side: (0, 0) is the upper left corner, (1, 1) the lower right.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from synthclip_compositor import Artist, artists, scenery
from synthclip_compositor.language import COLOURS, Place, Relation, Scene, Thing, Time, Weather, read
from synthclip_compositor.scenery import Canvas, Rng

Colour = tuple[int, int, int]

_TILT_DEGREES = 12.0
_LIGHT: dict[Time, tuple[float, float, float]] = {
    "day": (1.0, 1.0, 1.0),
    "dusk": (1.03, 0.93, 0.85),
    "night": (0.72, 0.76, 0.9),
}
_MOST_OF_A_KIND = 6
_SMALLEST, _LARGEST = 0.16, 0.9
_ALONE = (0.62, 0.88)
"""Side of a single thing in the picture."""


@dataclass(frozen=True)
class Piece:
    """One glyph to draw."""

    glyph: str
    colour: str | None
    x: float
    """Of its middle."""
    base: float
    """Of its lower edge."""
    side: float
    """Of its longer side."""
    depth: int = 0
    """The smaller is drawn earlier."""


@dataclass(frozen=True)
class _Member:
    """A thing in a column, and how it stands to the one below it."""

    thing: int
    place: Place = "beside"


_Column = list[_Member]


def place(scene: Scene, floating: bool, height: Callable[[str], float], rng: Rng) -> list[Piece]:
    """The pieces in the order in which they are drawn.

    `floating`: nothing needs ground under it. `height` of a glyph is a share of its longer side.
    """
    columns = _columns(scene, rng)
    pieces = [
        piece
        for at, column in enumerate(columns)
        for piece in _column(
            scene, column, (at / len(columns), (at + 1) / len(columns)), floating, height, rng
        )
    ]
    return sorted(pieces, key=lambda piece: piece.depth)


def _columns(scene: Scene, rng: Rng) -> list[_Column]:
    columns: list[_Column] = [[_Member(0)]] if scene.things else []
    for relation in scene.relations:
        subject, other = relation.subject, relation.object
        known = {member.thing for column in columns for member in column}
        new = other if subject in known else subject
        old = subject if new == other else other
        home = next(at for at, column in enumerate(columns) if any(m.thing == old for m in column))
        if relation.place in ("beside", "left", "right", "between"):
            columns.insert(_slot(relation, new == other, home, len(columns), rng), [_Member(new)])
        else:
            columns[home] = _stacked(columns[home], relation, new)
    return columns


def _slot(relation: Relation, new_is_object: bool, home: int, columns: int, rng: Rng) -> int:
    """Before which column the new one goes."""
    if relation.place == "left":
        return home + 1 if new_is_object else home
    if relation.place == "right":
        return home if new_is_object else home + 1
    if relation.place == "between":
        # The first partner goes to the left of what it flanks, the second to the right.
        return home if columns == 1 else home + 1
    return home + int(rng.integers(2))


def _stacked(column: _Column, relation: Relation, new: int) -> _Column:
    """The column with one more: first below, last above; `behind` counts as above, with its own overlap."""
    upside_down = relation.place in ("under", "front")
    mutual: Place = {"under": "above", "front": "behind"}.get(relation.place, relation.place)  # type: ignore[assignment]
    new_is_subject = new == relation.subject
    if new_is_subject != upside_down:
        return [*column, _Member(new, mutual)]
    first, *others = column
    return [_Member(new), replace(first, place=mutual), *others]


def _column(
    scene: Scene,
    column: _Column,
    span: tuple[float, float],
    floating: bool,
    height: Callable[[str], float],
    rng: Rng,
) -> Iterator[Piece]:
    width = span[1] - span[0]
    lifts = [_LIFT.get(member.place, 1.0) for member in column[1:]]
    if width == 1 and not lifts:
        side = rng.uniform(*_ALONE)
    else:
        side = rng.uniform(0.9, 1.1) * min(width * 1.1, 0.92 / (1 + sum(lifts)))
    base = rng.uniform(0.72, 0.95) if floating and not lifts else rng.uniform(0.82, 0.96)
    below = 0.0
    for level, member in enumerate(column):
        thing = scene.things[member.thing]
        rows = _rows(thing, rng)
        most = max(len(row) for row in rows)
        # A crowd shares the room of one, a little enlarged.
        each = side if most == 1 else (1.25 * width if not lifts else 1.3 * side) / most
        each = float(np.clip(each * thing.size, _SMALLEST, _LARGEST))
        if level:
            base -= below * lifts[level - 1]
        tall = each * height(thing.glyph) * (1 + _ROW_LIFT * (len(rows) - 1))
        base = max(base, tall * 0.94)
        depth = -level if member.place in ("behind", "in") else level
        yield from _crowd(thing, rows, span, base, each, _ROW_LIFT * each * height(thing.glyph), depth, rng)
        below = tall


_ROW_LIFT = 0.65
"""By how much of its height the row at the back of a crowd is raised."""

_LIFT: dict[Place, float] = {"on": 0.85, "in": 0.6, "above": 1.05, "behind": 0.45}
"""By how much of what is below a thing its lower edge is raised."""


def _rows(thing: Thing, rng: Rng) -> list[range]:
    count = int(rng.integers(3, 6)) if thing.count is None else min(thing.count, _MOST_OF_A_KIND)
    if count <= 3:
        return [range(count)]
    return [range(count // 2), range(count - count // 2)]


def _crowd(
    thing: Thing,
    rows: Sequence[range],
    span: tuple[float, float],
    base: float,
    side: float,
    raised: float,
    depth: int,
    rng: Rng,
) -> Iterator[Piece]:
    """The pieces of one thing, the row at the back first."""
    middle = (span[0] + span[1]) / 2 + rng.uniform(-0.08, 0.08)
    for back in reversed(range(len(rows))):
        row = rows[back]
        for at in row:
            x = middle + (at - (len(row) - 1) / 2) * side * 0.92 + rng.uniform(-0.02, 0.02)
            x = float(np.clip(x, side * 0.46, 1 - side * 0.46))
            yield Piece(thing.glyph, thing.colour, x, base - back * raised, side, depth)


class Painter:
    """Paints captions at one size, with the drawings of one artist."""

    def __init__(self, size_px: int, artist: Artist = "openmoji-color") -> None:
        import cv2

        # Workers are processes: one image is too small to be worth several threads.
        cv2.setNumThreads(1)
        self._size_px = size_px
        self._rasters = Rasters(math.ceil(size_px * 0.8), artist)
        self._look = artists.STYLES[artist].look
        self._shadow = _disc(64)

    def paint(self, caption: str, seed: int) -> Canvas:
        """uint8 [size, size, 3] in RGB; the same caption and seed give the same bytes."""
        scene = read(caption)
        rng = np.random.default_rng(seed)
        canvas = np.empty((self._size_px, self._size_px, 3), np.uint8)
        ink = _ink(rng) if self._look == "silhouette" else None
        setting, time = scenery.choose(scene, rng)
        scenery.paint(canvas, setting, time, rng)
        floating = setting in scenery.FLOATING
        for piece in place(scene, floating, self._height, rng):
            self._draw(canvas, piece, rng, ink, shadow=not floating)
        _weather(canvas, scene.weather, rng)
        return _lit(canvas, time, rng)

    def _height(self, glyph: str) -> float:
        height, width = self._rasters.get(glyph, 16).shape[:2]
        return float(height / max(height, width))

    def _draw(self, canvas: Canvas, piece: Piece, rng: Rng, ink: Colour | None, shadow: bool) -> None:
        import cv2

        side_px = piece.side * self._size_px
        raster = self._rasters.get(piece.glyph, side_px)
        scale = side_px / max(raster.shape[:2])
        colour = ink if piece.colour is None else COLOURS[piece.colour]
        if colour is not None:
            raster = _tinted(raster, colour) if self._look == "coloured" else _inked(raster, colour)
        if rng.random() < 0.5:
            raster = cv2.flip(raster, 1)
        tilt = rng.uniform(-_TILT_DEGREES, _TILT_DEGREES)
        turn: Any = cv2.getRotationMatrix2D((raster.shape[1] / 2, raster.shape[0] / 2), tilt, scale)
        cos, sin = abs(turn[0, 0]), abs(turn[0, 1])
        width = math.ceil(raster.shape[1] * cos + raster.shape[0] * sin)
        height = math.ceil(raster.shape[1] * sin + raster.shape[0] * cos)
        turn[0, 2] += (width - raster.shape[1]) / 2
        turn[1, 2] += (height - raster.shape[0]) / 2
        patch = cv2.warpAffine(raster, turn, (width, height), flags=cv2.INTER_LINEAR)
        left = round(piece.x * self._size_px - width / 2)
        top = round(piece.base * self._size_px) - height
        if shadow:
            shade = cv2.resize(self._shadow, (width, max(2, round(side_px * 0.14))))
            _blend(canvas, shade, left, top + height - shade.shape[0] * 2 // 3)
        _blend(canvas, patch, left, top)


def _blend(canvas: Canvas, patch: NDArray[np.uint8], left: int, top: int) -> None:
    """Lay premultiplied RGBA over the canvas, cut at its edges."""
    import cv2

    y0, x0 = max(0, top), max(0, left)
    y1, x1 = min(canvas.shape[0], top + patch.shape[0]), min(canvas.shape[1], left + patch.shape[1])
    if y0 >= y1 or x0 >= x1:
        return
    patch = patch[y0 - top : y1 - top, x0 - left : x1 - left]
    shown: Any = cv2.cvtColor(255 - patch[..., 3], cv2.COLOR_GRAY2RGB)
    under = cv2.multiply(canvas[y0:y1, x0:x1], shown, scale=1 / 255)
    canvas[y0:y1, x0:x1] = cv2.add(under, cv2.cvtColor(patch, cv2.COLOR_RGBA2RGB))


def _tinted(raster: NDArray[np.uint8], colour: Colour) -> NDArray[np.uint8]:
    """The glyph in another colour: its own shading and its dark outline stay."""
    bright = raster[..., :3].astype(np.float32) @ np.array((0.30, 0.59, 0.11), np.float32) / 255
    cover = raster[..., 3].astype(np.float32) / 255
    relative = np.clip(bright / np.maximum(cover, 1e-3) / 0.6, 0, 1.25) * cover
    tinted = relative[..., None] * np.array(colour, np.float32)
    mixed = 0.88 * tinted + 0.12 * raster[..., :3]
    rgb = np.clip(np.minimum(mixed, raster[..., 3:]), 0, 255).astype(np.uint8)
    return np.concatenate([rgb, raster[..., 3:]], axis=2)


def _inked(raster: NDArray[np.uint8], colour: Colour) -> NDArray[np.uint8]:
    """What is white of a drawing in a colour: its dark lines stay."""
    shades = np.array((*colour, 255), np.uint16)
    inked: NDArray[np.uint8] = (raster * shades // 255).astype(np.uint8)
    return inked


def _ink(rng: Rng) -> Colour:
    """A dark colour, for silhouettes of which the caption says none."""
    red, green, blue = rng.integers(10, 100, 3).tolist()
    return red, green, blue


def _disc(size_px: int) -> NDArray[np.uint8]:
    """A soft black disc, premultiplied RGBA."""
    axis = np.linspace(-1, 1, size_px)
    radius = np.hypot(axis[:, None], axis[None, :])
    disc = np.zeros((size_px, size_px, 4), np.uint8)
    disc[..., 3] = 95 * np.clip(1 - radius, 0, 1) ** 0.8
    return disc


def _weather(canvas: Canvas, weather: Weather | None, rng: Rng) -> None:
    import cv2

    side = canvas.shape[0]
    if weather in ("cloud", "rain", "storm"):
        grey = 90 if weather == "storm" else 140
        cv2.addWeighted(canvas, 0.78, np.full_like(canvas, grey), 0.22, 0, dst=canvas)
    if weather in ("rain", "storm"):
        slant = rng.uniform(-0.03, 0.03) * side
        for x, y in rng.random((55, 2)) * side:
            end = (int(x + slant), int(y + side * 0.07))
            cv2.line(canvas, (int(x), int(y)), end, (195, 210, 230), 1, cv2.LINE_AA)
    if weather == "storm":
        xs = rng.uniform(0.1, 0.9) * side + np.cumsum(rng.normal(0, 0.05 * side, 6))
        bolt = np.stack([xs, np.linspace(0, 0.4 * side, 6)], axis=1).astype(np.int32)
        cv2.polylines(canvas, [bolt], False, (255, 250, 190), max(1, side // 90), cv2.LINE_AA)
    if weather == "snow":
        for x, y, size in rng.random((60, 3)):
            centre = (int(x * side), int(y * side))
            cv2.circle(canvas, centre, 1 + int(size * side / 90), (250, 250, 252), -1, cv2.LINE_AA)
    if weather == "fog":
        cv2.addWeighted(canvas, 0.62, np.full_like(canvas, 225), 0.38, 0, dst=canvas)


def _lit(canvas: Canvas, time: Time, rng: Rng) -> Canvas:
    """Light that falls from one side, a little warmer or colder each time."""
    import cv2

    corners = rng.uniform(0.86, 1.1, (2, 2, 1)) * rng.uniform(0.96, 1.04, 3) * np.array(_LIGHT[time])
    light: Any = cv2.resize(corners.astype(np.float32), canvas.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    lit: Any = cv2.multiply(canvas, light, dtype=cv2.CV_8U)
    return np.asarray(lit, np.uint8)


class Rasters:
    """Pixels of glyphs, rasterised when first asked for and kept for the life of the process."""

    def __init__(self, largest_px: int, artist: Artist = "openmoji-color") -> None:
        """`largest_px` is the longest side that will be drawn, in pixels."""
        self._largest_px, self._artist = largest_px, artist
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

        rgba: Any = artists.raster(self._artist, glyph, math.ceil(1.4 * self._largest_px))
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
