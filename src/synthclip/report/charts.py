"""Charts as inline SVG: static, styled by the page's CSS, every text escaped by the XML writer."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from xml.etree import ElementTree as ET

import numpy as np
from markupsafe import Markup
from numpy.typing import ArrayLike, NDArray

_WIDTH, _HEIGHT = 520.0, 260.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 52.0, 12.0, 14.0, 40.0
_MAX_POINTS = 400
_MAX_BARS = 40


@dataclass(frozen=True)
class Series:
    """One line: x and y of equal length [N]. `style` is its CSS class."""

    name: str
    x: ArrayLike
    y: ArrayLike
    style: str = "s1"


@dataclass(frozen=True)
class Axis:
    label: str
    log: bool = False


def lines(series: Sequence[Series], x: Axis, y: Axis, *, marks: Mapping[str, float] | None = None) -> Markup:
    """A line chart. `marks` are horizontal reference lines by their labels.

    Points that a logarithmic axis cannot show are left out; a line of more points than the chart has
    pixels is thinned.
    """
    drawn = [(one, *_points(one, x, y)) for one in series]
    xs = np.concatenate([points for _, points, _ in drawn])
    ys = np.concatenate([points for _, _, points in drawn] + [np.array(list((marks or {}).values()))])
    if xs.size == 0:
        return Markup("")
    across = _Scale(xs, x.log, _LEFT, _WIDTH - _RIGHT)
    up = _Scale(ys if y.log else np.append(ys, 0.0), y.log, _HEIGHT - _BOTTOM, _TOP)
    svg = _canvas(f"{y.label} against {x.label}")
    _grid(svg, across, up, x, y)
    for label, value in (marks or {}).items():
        level = _round(up(value))
        _add(svg, "line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=level, y2=level, **{"class": "mark"})
        _text(svg, label, _WIDTH - _RIGHT, level - 4, "end")
    for one, px, py in drawn:
        path = " ".join(
            f"{_round(across(a))},{_round(up(b))}" for a, b in zip(px.tolist(), py.tolist(), strict=True)
        )
        _add(svg, "polyline", points=path, **{"class": f"line {one.style}"})
    legend = [one for one, _, _ in drawn if one.name]
    return _finish(svg, legend)


def histogram(counts: Mapping[int, int], x_label: str, y_label: str) -> Markup:
    """Vertical bars over whole numbers; neighbours share a bar where there would be too many."""
    if not counts:
        return Markup("")
    low, high = min(counts), max(counts)
    width = math.ceil((high - low + 1) / _MAX_BARS)
    binned: dict[int, int] = {}
    for value, count in counts.items():
        start = low + (value - low) // width * width
        binned[start] = binned.get(start, 0) + count
    across = _Scale(np.array([low, high + width]), False, _LEFT, _WIDTH - _RIGHT, whole=True)
    up = _Scale(np.array([0, max(binned.values())]), False, _HEIGHT - _BOTTOM, _TOP, whole=True)
    svg = _canvas(f"{y_label} by {x_label}")
    _grid(svg, across, up, Axis(x_label), Axis(y_label), centred=width == 1)
    for start, count in sorted(binned.items()):
        left, top = across(start) + 1, up(count)
        bar = _add(
            svg,
            "rect",
            x=_round(left),
            y=_round(top),
            width=_round(across(start + width) - left - 1),
            height=_round(up(0) - top),
            rx=1.5,
            **{"class": "bar"},
        )
        told = str(start) if width == 1 else f"{start} to {start + width - 1}"
        _add(bar, "title").text = f"{told}: {count:,}"
    return _finish(svg, [])


def interval(value: float, low: float, high: float, chance: float) -> Markup:
    """A strip from 0 to 1: the value as a dot on its 95 % interval, the chance level as a tick."""
    width, height = 180.0, 18.0
    svg = ET.Element("svg", {"viewBox": f"0 0 {width:g} {height:g}", "class": "strip", "role": "img"})
    svg.set("aria-label", f"{value:.1%}")
    middle = height / 2

    def at(share: float) -> float:
        return _round(5 + min(max(share, 0.0), 1.0) * (width - 10))

    _add(svg, "line", x1=at(0), x2=at(1), y1=middle, y2=middle, **{"class": "track"})
    if math.isfinite(chance):
        _add(svg, "line", x1=at(chance), x2=at(chance), y1=2, y2=height - 2, **{"class": "chance"})
    if math.isfinite(low) and math.isfinite(high):
        _add(svg, "line", x1=at(low), x2=at(high), y1=middle, y2=middle, **{"class": "span"})
    _add(svg, "circle", cx=at(value), cy=middle, r=4, **{"class": "dot"})
    return _serialise(svg)


class _Scale:
    """Data to pixels, linear or logarithmic, with its ticks. `whole` keeps ticks to whole numbers."""

    def __init__(
        self, values: NDArray[np.float64], log: bool, start: float, end: float, *, whole: bool = False
    ) -> None:
        self._low, self._high = float(values.min()), float(values.max())
        if self._low == self._high:
            self._high = self._low * 10 if log else self._low + 1
        self.log, self._start, self._end = log, start, end
        ticks = _log_ticks(self._low, self._high) if log else _ticks(self._low, self._high, whole)
        self.ticks = [tick for tick in ticks if self._low <= tick <= self._high]

    def __call__(self, value: float) -> float:
        low, high = self._low, self._high
        if self.log:
            value, low, high = math.log10(value), math.log10(low), math.log10(high)
        return self._start + (value - low) / (high - low) * (self._end - self._start)


def _ticks(low: float, high: float, whole: bool) -> list[float]:
    """About six round numbers around `low` to `high`."""
    magnitude = 10.0 ** math.floor(math.log10((high - low) / 6))
    step = next(magnitude * k for k in (1, 2, 2.5, 5, 10) if (high - low) / (magnitude * k) <= 6)
    step = max(1.0, math.ceil(step)) if whole else step
    return [k * step for k in range(math.floor(low / step), math.ceil(high / step) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten, with their doubles and fives where there are few."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    within = (1, 2, 5) if len(decades) <= 3 else (1,)
    return [k * 10.0**decade for decade in decades for k in within]


def _points(series: Series, x: Axis, y: Axis) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    px, py = np.asarray(series.x, dtype=np.float64), np.asarray(series.y, dtype=np.float64)
    shown = np.isfinite(px) & np.isfinite(py)
    if x.log:
        shown &= px > 0
    if y.log:
        shown &= py > 0
    px, py = px[shown], py[shown]
    if px.size > _MAX_POINTS:
        space = np.geomspace if x.log else np.linspace
        chosen = np.unique(space(1, px.size, _MAX_POINTS).round().astype(int)) - 1
        px, py = px[chosen], py[chosen]
    return px, py


def _grid(svg: ET.Element, across: _Scale, up: _Scale, x: Axis, y: Axis, centred: bool = False) -> None:
    for tick in up.ticks:
        level = _round(up(tick))
        _add(svg, "line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=level, y2=level, **{"class": "grid"})
        _text(svg, _short(tick), _LEFT - 7, level + 4, "end")
    shift = (across(1) - across(0)) / 2 if centred else 0.0
    for tick in across.ticks:
        if (place := across(tick) + shift) <= _WIDTH - _RIGHT:
            _text(svg, _short(tick), _round(place), _HEIGHT - _BOTTOM + 17, "middle")
    _text(svg, x.label, (_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 5, "middle", "label")
    caption = _text(svg, y.label, 0, 0, "middle", "label")
    caption.set("transform", f"translate(11 {(_TOP + _HEIGHT - _BOTTOM) / 2:g}) rotate(-90)")


def _short(value: float) -> str:
    for unit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 10 * unit or (abs(value) >= unit and unit > 1e3):
            return f"{value / unit:g}{letter}"
    return f"{value:.4g}"


def _canvas(told: str) -> ET.Element:
    size = {"viewBox": f"0 0 {_WIDTH:g} {_HEIGHT:g}"}
    return ET.Element("svg", {**size, "class": "chart", "role": "img", "aria-label": told})


def _add(parent: ET.Element, tag: str, **attributes: float | str) -> ET.Element:
    told = {key: value if isinstance(value, str) else f"{value:g}" for key, value in attributes.items()}
    return ET.SubElement(parent, tag, told)


def _text(svg: ET.Element, text: str, x: float, y: float, anchor: str, style: str = "tick") -> ET.Element:
    element = _add(svg, "text", x=x, y=y, **{"text-anchor": anchor, "class": style})
    element.text = text
    return element


def _finish(svg: ET.Element, legend: Sequence[Series]) -> Markup:
    keys = [Markup('<span class="key {}"><i></i>{}</span>').format(one.style, one.name) for one in legend]
    under = Markup('<div class="legend">{}</div>').format(Markup("").join(keys)) if keys else Markup("")
    return _serialise(svg) + under


def _serialise(svg: ET.Element) -> Markup:
    return Markup(ET.tostring(svg, encoding="unicode"))


def _round(value: float) -> float:
    return round(value, 1)
