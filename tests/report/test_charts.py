from xml.etree import ElementTree as ET

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from synthclip.report import charts

NUMBERS = st.floats(-1e12, 1e12)


def svg(markup: str) -> ET.Element:
    return ET.fromstring(str(markup).split("</svg>")[0] + "</svg>")


def points(chart: str) -> list[tuple[float, float]]:
    """The points of the first line."""
    path = svg(chart).find(".//{*}g[@class='line']/{*}path")
    assert path is not None
    pairs = path.attrib["d"].replace("M", " ").replace("L", " ").split()
    return list(zip(map(float, pairs[::2]), map(float, pairs[1::2]), strict=True))


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=60), st.booleans(), st.booleans())
def test_lines_stay_inside_the_chart_whatever_the_data(
    data: list[tuple[float, float]], log_x: bool, log_y: bool
) -> None:
    x, y = np.array(data).T
    drawn = charts.lines([charts.Series("", x, y)], charts.Axis("x", log_x), charts.Axis("y", log_y))
    if not drawn:
        assert not ((x > 1e-37) | (not log_x)).all() or not ((y > 1e-37) | (not log_y)).all()
        return
    for left, top in points(drawn):
        assert 0 <= left <= charts.WIDTH
        assert 0 <= top <= charts.HEIGHT


@settings(deadline=None, max_examples=20)
@given(st.dictionaries(st.integers(0, 500), st.integers(1, 10**9), min_size=1))
def test_bars_of_a_histogram_hold_every_count(counts: dict[int, int]) -> None:
    chart = svg(charts.histogram(counts, "words", "captions"))
    titles = [title.text or "" for title in chart.iterfind(".//{*}title")]
    assert sum(int(title.split(": ")[1].replace(",", "")) for title in titles) == sum(counts.values())
    assert len(titles) <= charts.MAX_BARS


def test_the_heights_of_bars_are_in_the_ratio_of_the_counts() -> None:
    chart = svg(charts.histogram({3: 10, 4: 40, 6: 20}, "words", "captions"))
    heights = []
    for path in chart.iterfind(".//{*}g[@class='bar']/{*}path"):
        tops = [float(number) for number in path.attrib["d"].replace("z", "").split()[2::3]]
        heights.append(max(tops) - min(tops))
    assert heights == pytest.approx([heights[1] / 4, heights[1], heights[1] / 2])
    assert heights[1] > charts.HEIGHT / 2


def test_labels_are_escaped_and_log_axes_say_so() -> None:
    chart = charts.lines(
        [charts.Series("<i>", [1, 2], [1, 2])], charts.Axis("<x>", log=True), charts.Axis("<y> $a$")
    )
    assert "<i>&lt;" not in chart
    assert "<x>" not in chart
    assert "&lt;i&gt;" in chart
    texts = [text.text for text in svg(chart).iterfind(".//{*}text")]
    assert {"<x> (log scale)", "<y> $a$"} <= set(texts)


def test_a_long_line_is_thinned_to_what_can_be_seen_and_keeps_its_ends() -> None:
    steps = np.arange(1_000_000)
    pairs = points(charts.lines([charts.Series("", steps, steps)], charts.Axis("x"), charts.Axis("y")))
    assert len(pairs) <= charts.MAX_POINTS
    ends = points(
        charts.lines([charts.Series("", [0, 999_999], [0, 999_999])], charts.Axis("x"), charts.Axis("y"))
    )
    assert [pairs[0], pairs[-1]] == ends


def test_equal_data_gives_equal_bytes_in_colours_of_the_page() -> None:
    def draw() -> str:
        line = charts.Series("loss", [1, 2, 3], [3, 2, 1], "s2")
        return charts.lines([line], charts.Axis("step"), charts.Axis("loss"), marks={"chance": 4})

    assert draw() == draw()
    assert "var(--s2)" in draw()
    assert "#" not in draw(), "a colour that the page's CSS cannot change"
    assert "id=" not in draw(), "a name that two charts of a page would share"


@pytest.mark.parametrize(("value", "chance"), [(0.0, 0.0), (1.0, 1.0), (0.5, float("nan"))])
def test_an_interval_is_drawn_inside_its_strip(value: float, chance: float) -> None:
    strip = svg(charts.interval(value, value - 0.2, value + 0.2, chance))
    for mark in [*strip.iter("line"), *strip.iter("circle")]:
        for name in ("x1", "x2", "cx"):
            assert 0 <= float(mark.attrib.get(name, 0)) <= 180
