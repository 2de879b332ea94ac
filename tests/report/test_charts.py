from xml.etree import ElementTree as ET

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from synthclip.report import charts

NUMBERS = st.floats(-1e12, 1e12)


def svg(markup: str) -> ET.Element:
    return ET.fromstring(str(markup).split("</svg>")[0] + "</svg>")


@given(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=60), st.booleans(), st.booleans())
def test_lines_stay_inside_the_chart_whatever_the_data(
    points: list[tuple[float, float]], log_x: bool, log_y: bool
) -> None:
    x, y = np.array(points).T
    drawn = charts.lines([charts.Series("", x, y)], charts.Axis("x", log_x), charts.Axis("y", log_y))
    if not drawn:
        assert not ((x > 0) | (not log_x)).all() or not ((y > 0) | (not log_y)).all()
        return
    for line in svg(drawn).iter("polyline"):
        for pair in line.attrib["points"].split():
            left, top = map(float, pair.split(","))
            assert 0 <= left <= 520
            assert 0 <= top <= 260


@given(st.dictionaries(st.integers(0, 500), st.integers(1, 10**9), min_size=1))
def test_bars_of_a_histogram_hold_every_count(counts: dict[int, int]) -> None:
    titles = [title.text or "" for title in svg(charts.histogram(counts, "words", "captions")).iter("title")]
    assert sum(int(title.split(": ")[1].replace(",", "")) for title in titles) == sum(counts.values())
    assert len(titles) <= 40


def test_the_heights_of_bars_are_in_the_ratio_of_the_counts() -> None:
    bars = list(svg(charts.histogram({3: 10, 4: 40, 6: 20}, "words", "captions")).iter("rect"))
    assert [float(bar.attrib["height"]) for bar in bars] == pytest.approx([51.5, 206, 103])


def test_labels_are_escaped() -> None:
    chart = charts.lines([charts.Series("<i>", [1, 2], [1, 2])], charts.Axis("<x>"), charts.Axis("<y>"))
    assert "<i>&lt;" not in chart
    assert "<x>" not in chart
    assert "&lt;i&gt;" in chart


def test_a_long_line_is_thinned_to_what_can_be_seen_and_keeps_its_ends() -> None:
    steps = np.arange(1_000_000)
    chart = charts.lines([charts.Series("", steps, steps)], charts.Axis("x"), charts.Axis("y"))
    pairs = next(svg(chart).iter("polyline")).attrib["points"].split()
    assert len(pairs) <= 400
    assert pairs[0] == "52.0,220.0"
    assert pairs[-1] == "508.0,14.0"


@pytest.mark.parametrize(("value", "chance"), [(0.0, 0.0), (1.0, 1.0), (0.5, float("nan"))])
def test_an_interval_is_drawn_inside_its_strip(value: float, chance: float) -> None:
    strip = svg(charts.interval(value, value - 0.2, value + 0.2, chance))
    for mark in [*strip.iter("line"), *strip.iter("circle")]:
        for name in ("x1", "x2", "cx"):
            assert 0 <= float(mark.attrib.get(name, 0)) <= 180
