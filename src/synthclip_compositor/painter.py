"""Puts a scene together: background, shadows, glyphs, weather, light."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from synthclip_compositor import scenery
from synthclip_compositor.glyphs import Rasters
from synthclip_compositor.language import COLOURS, Time, Weather, read
from synthclip_compositor.layout import Piece, place

Canvas = NDArray[np.uint8]
Rng = np.random.Generator

_TILT_DEGREES = 12.0
_LIGHT: dict[Time, tuple[float, float, float]] = {
    "day": (1.0, 1.0, 1.0),
    "dusk": (1.03, 0.93, 0.85),
    "night": (0.72, 0.76, 0.9),
}


class Painter:
    """Paints captions at one size."""

    def __init__(self, size_px: int) -> None:
        import cv2

        # Workers are processes: one image is too small to be worth several threads.
        cv2.setNumThreads(1)
        self._size_px = size_px
        self._rasters = Rasters(math.ceil(size_px * 0.8))
        self._shadow = _disc(64)

    def paint(self, caption: str, seed: int) -> Canvas:
        """uint8 [size, size, 3] in RGB; the same caption and seed give the same bytes."""
        scene = read(caption)
        rng = np.random.default_rng(seed)
        canvas = np.empty((self._size_px, self._size_px, 3), np.uint8)
        setting, time = scenery.choose(scene, rng)
        scenery.paint(canvas, setting, time, rng)
        floating = setting in scenery.FLOATING
        for piece in place(scene, floating, self._height, rng):
            self._draw(canvas, piece, rng, shadow=not floating)
        _weather(canvas, scene.weather, rng)
        return _lit(canvas, time, rng)

    def _height(self, glyph: str) -> float:
        height, width = self._rasters.get(glyph, 16).shape[:2]
        return float(height / max(height, width))

    def _draw(self, canvas: Canvas, piece: Piece, rng: Rng, shadow: bool) -> None:
        import cv2

        side_px = piece.side * self._size_px
        raster = self._rasters.get(piece.glyph, side_px)
        scale = side_px / max(raster.shape[:2])
        if piece.colour is not None:
            raster = _tinted(raster, COLOURS[piece.colour])
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


def _tinted(raster: NDArray[np.uint8], colour: tuple[int, int, int]) -> NDArray[np.uint8]:
    """The glyph in another colour: its own shading and its dark outline stay."""
    bright = raster[..., :3].astype(np.float32) @ np.array((0.30, 0.59, 0.11), np.float32) / 255
    cover = raster[..., 3].astype(np.float32) / 255
    relative = np.clip(bright / np.maximum(cover, 1e-3) / 0.6, 0, 1.25) * cover
    tinted = relative[..., None] * np.array(colour, np.float32)
    mixed = 0.88 * tinted + 0.12 * raster[..., :3]
    rgb = np.clip(np.minimum(mixed, raster[..., 3:]), 0, 255).astype(np.uint8)
    return np.concatenate([rgb, raster[..., 3:]], axis=2)


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
