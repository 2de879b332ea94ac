"""Charts as inline SVG, drawn by matplotlib: deterministic, and coloured by the page's CSS, light or dark."""

import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

import numpy as np
from markupsafe import Markup
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH, HEIGHT = 520, 260
"""Of a chart's viewBox."""
MAX_POINTS = 400
MAX_BARS = 40
_NAMES = ("ink", "muted", "rule", "s1", "s2", "s3", "s4", "s5", "s6")
_COLOURS = {name: f"#0102{number:02x}" for number, name in enumerate(_NAMES)}
"""What matplotlib draws in where the page shall have its CSS variable of that name."""
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "synthclip",
    "font.size": 11,
    "text.parse_math": False,
    "axes.edgecolor": _COLOURS["rule"],
    "axes.labelcolor": _COLOURS["ink"],
    "axes.axisbelow": True,
    "xtick.color": _COLOURS["muted"],
    "ytick.color": _COLOURS["muted"],
    "figure.subplot.left": 0.115,
    "figure.subplot.right": 0.975,
    "figure.subplot.bottom": 0.18,
    "figure.subplot.top": 0.95,
}


@dataclass(frozen=True)
class Series:
    """One line: x and y of equal length [N]. `style` is its colour in the page's CSS, `s1` to `s6`."""

    name: str
    x: ArrayLike
    y: ArrayLike
    style: str = "s1"
    faint: bool = False


@dataclass(frozen=True)
class Axis:
    label: str
    log: bool = False


def lines(series: Sequence[Series], x: Axis, y: Axis, *, marks: Mapping[str, float] | None = None) -> Markup:
    """A line chart, empty where no point can be shown; `marks` are horizontal reference lines by label.

    Points that a logarithmic axis cannot show are left out; a longer line is thinned to MAX_POINTS.
    """
    drawn = [(one, *_points(one, x, y)) for one in series]
    if not any(px.size for _, px, _ in drawn):
        return Markup("")

    def draw(axes: "Axes") -> None:
        for one, px, py in drawn:
            width, alpha = (1.0, 0.3) if one.faint else (2.0, 1.0)
            colour = _COLOURS[one.style]
            axes.plot(px, py, color=colour, linewidth=width, alpha=alpha, clip_on=False, gid="line")
        for label, value in (marks or {}).items():
            axes.axhline(value, color=_COLOURS["muted"], linewidth=1, linestyle="--", clip_on=False)
            axes.text(axes.get_xlim()[1], value, label, ha="right", va="bottom", color=_COLOURS["muted"])
        if not y.log:
            axes.set_ylim(min(axes.get_ylim()[0], 0), max(axes.get_ylim()[1], 0))

    keys = [
        Markup('<span class="key {}"><i></i>{}</span>').format(one.style, one.name)
        for one in series
        if one.name
    ]
    legend = Markup('<div class="legend">{}</div>').format(Markup("").join(keys)) if keys else Markup("")
    return _chart(draw, x, y) + legend


def histogram(counts: Mapping[int, int], x_label: str, y_label: str) -> Markup:
    """Vertical bars over whole numbers, at most MAX_BARS of equal width, each with its count as a tooltip."""
    from matplotlib.ticker import MaxNLocator

    if not counts:
        return Markup("")
    low, high = min(counts), max(counts)
    width = math.ceil((high - low + 1) / MAX_BARS)
    bins: dict[int, int] = {}
    for value, count in sorted(counts.items()):
        start = low + (value - low) // width * width
        bins[start] = bins.get(start, 0) + count

    def draw(axes: "Axes") -> None:
        for start, count in bins.items():
            (bar,) = axes.bar(
                start + (width - 1) / 2, count, 0.88 * width, color=_COLOURS["s1"], clip_on=False
            )
            shown = str(start) if width == 1 else f"{start} to {start + width - 1}"
            bar.set_gid(f"title {shown}: {count:,}")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator("auto", integer=True))

    return _chart(draw, Axis(x_label), Axis(y_label))


def interval(value: float, low: float, high: float, chance: float) -> Markup:
    """A strip from 0 to 1: the value as a dot on its 95 % interval, the chance level as a tick."""

    def at(share: float) -> float:
        return round(5 + 170 * min(max(share, 0.0), 1.0), 1)

    parts = ['<line class="track" x1="5" x2="175" y1="9" y2="9"/>']
    if math.isfinite(chance):
        parts.append(f'<line class="chance" x1="{at(chance)}" x2="{at(chance)}" y1="2" y2="16"/>')
    if math.isfinite(low) and math.isfinite(high):
        parts.append(f'<line class="span" x1="{at(low)}" x2="{at(high)}" y1="9" y2="9"/>')
    parts.append(f'<circle class="dot" cx="{at(value)}" cy="9" r="4"/>')
    opened = f'<svg viewBox="0 0 180 18" class="strip" role="img" aria-label="{value:.1%}">'
    return Markup(opened + "".join(parts) + "</svg>")


def _points(series: Series, x: Axis, y: Axis) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    px, py = np.asarray(series.x, dtype=np.float64), np.asarray(series.y, dtype=np.float64)
    least = float(np.finfo(np.float32).tiny)  # below it an axis has no room for its margins
    shown = np.isfinite(px) & np.isfinite(py) & ((px > least) | (not x.log)) & ((py > least) | (not y.log))
    px, py = px[shown], py[shown]
    if px.size > MAX_POINTS:
        space = np.geomspace if x.log else np.linspace
        chosen = np.unique(space(1, px.size, MAX_POINTS).round().astype(int)) - 1
        px, py = px[chosen], py[chosen]
    return px, py


def _chart(draw: "Callable[[Axes], None]", x: Axis, y: Axis) -> Markup:
    """The SVG of what `draw` puts on the axes."""
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, LogLocator, NullLocator

    short = EngFormatter(sep="")
    out = io.StringIO()
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(WIDTH / 72, HEIGHT / 72))  # an SVG has 72 pixels an inch
        axes = figure.add_subplot()
        axes.spines[["left", "right", "top"]].set_visible(False)
        axes.grid(axis="y", color=_COLOURS["rule"])
        for axis, of, name in ((axes.xaxis, x, "x"), (axes.yaxis, y, "y")):
            axes.set(**{f"{name}scale": "log" if of.log else "linear"})
            axis.set_label_text(f"{of.label} (log scale)" if of.log else of.label)
        axes.margins(x=0)
        draw(axes)
        for axis in (axes.xaxis, axes.yaxis):
            if axis.get_scale() == "log":
                low, high = axis.get_view_interval()
                axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 1000 * low else (1,)))
                axis.set_minor_locator(NullLocator())
            axis.set_major_formatter(lambda value, _: short(value) if abs(value) >= 1e4 else f"{value:.4g}")
        axes.tick_params(left=False, bottom=False)
        for line in axes.get_ygridlines():
            line.set_clip_on(False)
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    return Markup(_for_the_page(out.getvalue(), f"{y.label} against {x.label}"))


def _for_the_page(svg: str, label: str) -> str:
    """Without matplotlib's ids, fonts and size; bars get their tooltips, colours become CSS variables."""
    ET.register_namespace("", "http://www.w3.org/2000/svg")
    root = ET.fromstring(svg)
    for group in root.iterfind(".//{*}g"):
        name = group.attrib.pop("id", "")
        if name == "line":
            group.set("class", name)
        elif name.startswith("title "):
            group.set("class", "bar")
            ET.SubElement(group, "title").text = name.removeprefix("title ")
    for text in root.iterfind(".//{*}text"):
        parts = text.attrib["style"].split("; ")
        text.set("style", "; ".join(part for part in parts if not part.startswith("font-family")))
    for child in [*root.iterfind("{*}metadata"), *root.iterfind("{*}defs")]:
        root.remove(child)
    del root.attrib["width"], root.attrib["height"]
    root.attrib |= {"class": "chart", "role": "img", "aria-label": label}
    drawn = ET.tostring(root, encoding="unicode")
    for name, colour in _COLOURS.items():
        drawn = drawn.replace(colour, f"var(--{name})")
    return drawn
