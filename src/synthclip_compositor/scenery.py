"""Backgrounds: a ground and a sky, or a room, drawn from a few numbers.

Everything is painted in place on uint8 [H, W, 3] in RGB, lengths in shares of the side.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from synthclip_compositor.language import Scene, Setting, Time

Canvas = NDArray[np.uint8]
Rng = np.random.Generator
_Colour = tuple[float, float, float]

_SKIES: dict[Time, tuple[_Colour, _Colour]] = {
    "day": ((95, 165, 235), (205, 230, 250)),
    "dusk": ((95, 75, 140), (250, 165, 95)),
    "night": ((10, 14, 45), (45, 55, 105)),
}
"""At the top, and at the horizon."""

_LIGHT: dict[Time, _Colour] = {"day": (1.0, 1.0, 1.0), "dusk": (1.0, 0.86, 0.74), "night": (0.5, 0.55, 0.72)}
"""What the time of day does to the colours of the ground."""

_OUTDOORS: tuple[Setting, ...] = (
    "beach",
    "city",
    "desert",
    "field",
    "forest",
    "mountain",
    "sea",
    "sky",
    "snow",
)
FLOATING: frozenset[Setting] = frozenset({"sky", "space", "sea"})


def choose(scene: Scene, rng: Rng) -> tuple[Setting | None, Time]:
    """The setting and the time of day, drawn where the caption is silent; None is a plain backdrop."""
    if scene.setting is not None:
        setting: Setting | None = scene.setting
    elif scene.time is not None or scene.weather is not None:
        setting = _OUTDOORS[rng.integers(len(_OUTDOORS))]
    else:
        several: list[Setting | None] = [
            None,
            None,
            "room",
            "table",
            "field",
            "city",
            "beach",
            "snow",
            "desert",
        ]
        setting = several[rng.integers(len(several))]
    time: Time = scene.time or ("dusk" if scene.setting is None and rng.random() < 0.1 else "day")
    return setting, time


def paint(canvas: Canvas, setting: Setting | None, time: Time, rng: Rng) -> None:
    """Fill the canvas with the setting."""
    if setting is None:
        _backdrop(canvas, rng)
    elif setting in ("room", "table"):
        _room(canvas, setting == "table", rng)
        if time != "day":
            _shade(canvas, _LIGHT[time])
    elif setting == "space":
        _gradient(canvas, (8, 6, 25), (30, 15, 60))
        _stars(canvas, 60, rng)
    else:
        horizon = round(canvas.shape[0] * (1.0 if setting == "sky" else rng.uniform(0.45, 0.7)))
        sky, ground = canvas[:horizon], canvas[horizon:]
        _sky(sky, time, rng)
        if setting != "sky":
            _GROUNDS[setting](canvas, horizon, rng)
            _shade(ground, _LIGHT[time])


def _sky(sky: Canvas, time: Time, rng: Rng) -> None:
    import cv2

    top, low = _SKIES[time]
    _gradient(sky, _vary(top, rng), _vary(low, rng))
    height, width = sky.shape[:2]
    x, y = int(rng.uniform(0.1, 0.9) * width), int(rng.uniform(0.12, 0.35) * height)
    if time == "night":
        _stars(sky, 35, rng)
        cv2.circle(sky, (x, y), round(width * 0.06), (235, 235, 215), -1, cv2.LINE_AA)
    else:
        if rng.random() < 0.6:
            cv2.circle(sky, (x, y), round(width * 0.07), (255, 240, 170), -1, cv2.LINE_AA)
        for _ in range(rng.integers(0, 4)):
            _cloud(sky, rng)


def _cloud(sky: Canvas, rng: Rng) -> None:
    import cv2

    height, width = sky.shape[:2]
    x, y = rng.uniform(0, width), rng.uniform(0.08, 0.5) * height
    tone = int(rng.integers(225, 252))
    for _ in range(4):
        at = (int(x + rng.normal(0, 0.06) * width), int(y + rng.normal(0, 0.012) * width))
        axes = (round(width * rng.uniform(0.06, 0.12)), round(width * rng.uniform(0.02, 0.045)))
        cv2.ellipse(sky, at, axes, 0, 0, 360, (tone, tone, tone), -1, cv2.LINE_AA)


def _field(canvas: Canvas, horizon: int, rng: Rng) -> None:
    if rng.random() < 0.6:
        _ridge(canvas, horizon, 0.10, _vary((110, 160, 95), rng), rng)
    _gradient(canvas[horizon:], _vary((120, 180, 80), rng), _vary((70, 140, 55), rng))
    _grain(canvas[horizon:], 14, rng)


def _forest(canvas: Canvas, horizon: int, rng: Rng) -> None:
    import cv2

    _gradient(canvas[horizon:], _vary((75, 110, 60), rng), _vary((55, 85, 45), rng))
    _grain(canvas[horizon:], 16, rng)
    side = canvas.shape[0]
    for x in np.sort(rng.uniform(-0.05, 1.05, int(rng.integers(9, 15)))):
        height, foot = rng.uniform(0.3, 0.55) * side, horizon + int(rng.uniform(0, 0.05) * side)
        half, at = rng.uniform(0.05, 0.09) * side, x * side
        trunk = (int(at - half / 6), foot - int(height * 0.2)), (int(at + half / 6), foot)
        cv2.rectangle(canvas, *trunk, (95, 70, 45), -1)
        crown = np.array(
            [[at - half, foot - height * 0.15], [at + half, foot - height * 0.15], [at, foot - height]]
        )
        cv2.fillConvexPoly(canvas, crown.astype(np.int32), _vary((50, 110, 60), rng), cv2.LINE_AA)


def _mountain(canvas: Canvas, horizon: int, rng: Rng) -> None:
    _ridge(canvas, horizon, 0.42, _vary((130, 140, 160), rng), rng, jagged=True)
    _ridge(canvas, horizon, 0.22, _vary((95, 110, 115), rng), rng, jagged=True)
    _gradient(canvas[horizon:], _vary((120, 140, 95), rng), _vary((90, 115, 75), rng))
    _grain(canvas[horizon:], 14, rng)


def _beach(canvas: Canvas, horizon: int, rng: Rng) -> None:
    shore = horizon + int(rng.uniform(0.06, 0.16) * canvas.shape[0])
    _gradient(canvas[horizon:shore], _vary((40, 130, 185), rng), _vary((90, 190, 205), rng))
    _gradient(canvas[shore:], _vary((240, 222, 170), rng), _vary((225, 198, 140), rng))
    canvas[shore : shore + max(1, canvas.shape[0] // 90)] = (245, 250, 250)
    _grain(canvas[shore:], 9, rng)


def _sea(canvas: Canvas, horizon: int, rng: Rng) -> None:
    import cv2

    _gradient(canvas[horizon:], _vary((60, 140, 195), rng), _vary((20, 80, 145), rng))
    side = canvas.shape[0]
    for _ in range(30):
        y = int(horizon + rng.random() ** 1.3 * (side - horizon))
        x, length = int(rng.random() * side), int(rng.uniform(0.03, 0.12) * side)
        cv2.line(canvas, (x, y), (x + length, y), (150, 200, 225), 1, cv2.LINE_AA)


def _desert(canvas: Canvas, horizon: int, rng: Rng) -> None:
    _ridge(canvas, horizon, 0.12, _vary((215, 165, 105), rng), rng)
    _gradient(canvas[horizon:], _vary((235, 195, 125), rng), _vary((215, 160, 90), rng))
    _grain(canvas[horizon:], 10, rng)


def _snow(canvas: Canvas, horizon: int, rng: Rng) -> None:
    _ridge(canvas, horizon, 0.14, _vary((200, 215, 232), rng), rng)
    _gradient(canvas[horizon:], (228, 236, 246), (246, 249, 253))
    _grain(canvas[horizon:], 5, rng)


def _city(canvas: Canvas, horizon: int, rng: Rng) -> None:
    side = canvas.shape[0]
    at = 0
    while at < side:
        width, height = int(rng.uniform(0.12, 0.24) * side), int(rng.uniform(0.2, 0.55) * side)
        roof = max(0, horizon - height)
        tone = np.array(_vary((150, 140, 135), rng, 40), np.uint8)
        canvas[roof:horizon, at : at + width - 1] = tone
        step = max(4, side // 28)
        glass = canvas[roof + step : horizon - step, at + step : at + width - step]
        rows, columns = np.arange(glass.shape[0]) % step, np.arange(glass.shape[1]) % step
        glass[np.ix_(rows < step // 2, columns < step // 2)] = (
            (210, 220, 225) if rng.random() < 0.7 else (245, 220, 140)
        )
        at += width
    _gradient(canvas[horizon:], _vary((115, 115, 120), rng), _vary((85, 85, 90), rng))
    canvas[horizon : horizon + side // 25] = (175, 172, 168)
    middle = (horizon + side) // 2
    canvas[middle : middle + max(1, side // 60), np.arange(side) % (side // 5) < side // 9] = (235, 225, 170)


_GROUNDS: dict[Setting, Callable[[Canvas, int, Rng], None]] = {
    "beach": _beach,
    "city": _city,
    "desert": _desert,
    "field": _field,
    "forest": _forest,
    "mountain": _mountain,
    "sea": _sea,
    "snow": _snow,
}


def _room(canvas: Canvas, table: bool, rng: Rng) -> None:
    side = canvas.shape[0]
    edge = int(rng.uniform(0.5 if table else 0.6, 0.65 if table else 0.8) * side)
    wall = _pastel(rng)
    _gradient(canvas[:edge], wall, tuple(channel * 0.9 for channel in wall))  # type: ignore[arg-type]
    if rng.random() < 0.4:
        stripe = int(rng.integers(side // 16, side // 6))
        canvas[:edge, np.arange(side) % (2 * stripe) < stripe] -= 8
    wood = _vary((165, 120, 75) if rng.random() < 0.7 else (150, 150, 155), rng)
    _gradient(canvas[edge:], wood, tuple(channel * 0.75 for channel in wood))  # type: ignore[arg-type]
    if table:
        canvas[edge : edge + max(2, side // 50)] = np.clip(np.array(wood) + 35, 0, 255).astype(np.uint8)
    else:
        canvas[edge - max(2, side // 40) : edge] = (240, 238, 232)
        canvas[edge :: max(5, side // 14)] //= 2
        canvas[edge :: max(5, side // 14)] += 40
    _grain(canvas[edge:], 6, rng)


def _backdrop(canvas: Canvas, rng: Rng) -> None:
    """A plain or mottled studio wall."""
    _gradient(canvas, _pastel(rng), _pastel(rng))
    if rng.random() < 0.5:
        _grain(canvas, 18, rng, cells=int(rng.integers(3, 9)))


def _pastel(rng: Rng) -> _Colour:
    low = rng.uniform(70, 200)
    return tuple(rng.uniform(low, 245, 3))


def _gradient(area: Canvas, top: _Colour, bottom: _Colour) -> None:
    import cv2

    if not area.size:
        return
    share = np.linspace(0, 1, area.shape[0], dtype=np.float32)[:, None]
    column = np.asarray(top, np.float32) * (1 - share) + np.asarray(bottom, np.float32) * share
    cv2.repeat(column.astype(np.uint8)[:, None], 1, area.shape[1], dst=area)


def _vary(colour: _Colour, rng: Rng, by: float = 14) -> _Colour:
    own, shared = rng.uniform(-by, by, 3).tolist(), rng.uniform(-by, by)
    red, green, blue = (
        min(max(channel + off + shared, 0.0), 250.0) for channel, off in zip(colour, own, strict=True)
    )
    return red, green, blue


def _ridge(
    canvas: Canvas, horizon: int, height: float, colour: _Colour, rng: Rng, jagged: bool = False
) -> None:
    """Hills, or peaks, along the horizon."""
    import cv2

    side = canvas.shape[0]
    knots = rng.uniform(0.15, 1, int(rng.integers(5, 9)))
    xs = np.linspace(0, len(knots) - 1, side)
    if jagged:
        ys = np.interp(xs, np.arange(len(knots)), knots)
    else:
        smooth = cv2.resize(knots.reshape(1, -1), (side, 1), interpolation=cv2.INTER_CUBIC)
        ys = smooth[0]
    outline = np.stack([np.arange(side), horizon - ys * height * side], axis=1)
    closed = np.concatenate([outline, [[side, horizon], [0, horizon]]]).astype(np.int32)
    cv2.fillPoly(canvas, [closed], colour, cv2.LINE_AA)


def _grain(area: Canvas, strength: float, rng: Rng, cells: int = 24) -> None:
    """Soft blotches of light and dark."""
    import cv2

    if not area.size:
        return
    coarse = rng.normal(0, strength, (max(2, cells * area.shape[0] // area.shape[1]), cells)).astype(
        np.float32
    )
    fine: Any = cv2.resize(coarse, (area.shape[1], area.shape[0]), interpolation=cv2.INTER_LINEAR)
    cv2.add(area, cv2.merge([fine, fine, fine]), dst=area, dtype=cv2.CV_8U)


def _stars(area: Canvas, count: int, rng: Rng) -> None:
    height, width = area.shape[:2]
    ys, xs = (rng.random(count) * height).astype(int), (rng.random(count) * width).astype(int)
    area[ys, xs] = rng.integers(170, 256, (count, 1))


def _shade(area: Canvas, light: _Colour) -> None:
    if light != (1.0, 1.0, 1.0):
        area[:] = (area * np.asarray(light, np.float32)).astype(np.uint8)
