"""The page of a sweep: one HTML file that needs nothing beside it."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from markupsafe import Markup

from synthclip import schema
from synthclip.evaluation.results import figure_name
from synthclip.recipe.shareable import shareable
from synthclip.report import charts
from synthclip.report.page import environment
from synthclip.run.store import RunDirectory
from synthclip.sweeps.audition import Rank, ranking_rows
from synthclip.sweeps.law import Fitted
from synthclip.sweeps.results import COVERS, Finding, Found, span
from synthclip.sweeps.runs import Swept

FILE = "sweep.html"
_STYLES = ("s1", "s2", "s3", "s4", "s5", "s6")
_EQUAL = {
    "epochs": "Each variant is trained for the epochs of its own recipe.",
    "samples": "All variants see as many samples as the base.",
    "cost": "All variants cost what synthclip plan estimates for the base's captions, images and training.",
}
_SMOOTHED = 25
"""Points of a loss curve: each the mean of its part of the steps."""


def render(
    swept: Swept,
    found: Found,
    laws: Mapping[str, Fitted] | None = None,
    ranks: Sequence[Rank] = (),
    price: float | None = None,
) -> str:
    """The page. `laws` are what `scaling` fitted, by figure; `ranks` the painters of an audition."""
    figures: dict[tuple[str, str], dict[str, list[dict[str, Any]]]] = {}
    for one in found.findings:
        tasks = figures.setdefault((one.dataset, one.task), {})
        tasks.setdefault(one.metric, []).append(_row(one, price))
    return (
        environment("synthclip.sweeps")
        .get_template("sweep.html.j2")
        .render(
            name=swept.directory.path.name,
            sweep=swept.sweep,
            base=swept.sweep.base_name,
            equal=_EQUAL[swept.sweep.equal],
            figures=figures,
            painters=ranking_rows(ranks, price) if ranks else None,
            price=price,
            found=found,
            covers=COVERS,
            loss=_loss_chart(swept),
            curves=_figure_charts(swept),
            laws=[_law(figure, fitted) for figure, fitted in (laws or {}).items()],
            recipe=shareable(swept.sweep.recipe),
            variants={name: _shown(values) for name, values in swept.sweep.all_variants().items()},
        )
    )


def _shown(overrides: Iterable[str]) -> list[str]:
    """As they may be passed on: without local paths and keys."""
    values = {key: value for key, _, value in (override.partition("=") for override in overrides)}
    return [f"{key}={value}" for key, value in shareable(values).items()]


def _row(one: Finding, price: float | None) -> dict[str, Any]:
    low, high = (float("nan") if end is None else end for end in (one.ci95_low, one.ci95_high))
    hours = one.device_hours
    return {
        "variant": one.variant,
        "value": one.value,
        "interval": span(one.ci95_low, one.ci95_high),
        "strip": charts.interval(one.value, low, high, one.chance),
        "difference": "" if one.difference is None else f"{100 * one.difference:+.1f}",
        "between": span(one.difference_low, one.difference_high, "+"),
        "p": "" if one.p_value is None else f"{one.p_value:.4f}",
        "seeds": one.seeds,
        "hours": "" if hours is None else f"{hours:.3f}",
        "cost": "" if hours is None or price is None else f"{hours * price:,.2f}",
    }


def _tables(swept: Swept, file: str) -> Iterable[tuple[str, list[pa.Table]]]:
    """By variant a file of each of its finished trainings; of as many variants as a chart has colours."""
    for variant in list(swept.sweep.all_variants())[: len(_STYLES)]:
        tables = []
        for one in swept.runs:
            manifest = RunDirectory(swept.path(one)).manifest("train", "all")
            if one.variant == variant and manifest and any(entry.path == file for entry in manifest.files):
                tables.append(schema.read_table(swept.path(one) / "train" / file))
        if tables:
            yield variant, tables


def _loss_chart(swept: Swept) -> Markup:
    """The loss over samples seen, smoothed, the mean over seeds."""
    series = []
    for (variant, tables), style in zip(_tables(swept, "curve.parquet"), _STYLES, strict=False):
        parts = [
            [
                (float(part["samples_seen"][-1].as_py()), float(np.mean(part["loss"])))
                for part in _parts(table)
            ]
            for table in tables
        ]
        samples, loss = np.mean([one[: min(map(len, parts))] for one in parts], axis=0).T
        series.append(charts.Series(variant, samples, loss, style))
    return charts.lines(series, charts.Axis("samples seen"), charts.Axis("contrastive loss"))


def _parts(curve: pa.Table) -> list[pa.Table]:
    ends = np.unique(np.linspace(0, curve.num_rows, min(_SMOOTHED, curve.num_rows) + 1).astype(int))
    return [curve.slice(start, end - start) for start, end in itertools.pairwise(ends)]


def _figure_charts(swept: Swept) -> dict[str, Markup]:
    """The first metric of each task that was taken in training, the mean over seeds."""
    lines: dict[str, dict[str, dict[int, list[float]]]] = {}
    shown: dict[tuple[str, str], str] = {}
    for variant, tables in _tables(swept, "figures.parquet"):
        for row in (row for table in tables for row in table.to_pylist()):
            if shown.setdefault((row["dataset"], row["task"]), row["metric"]) == row["metric"]:
                points = lines.setdefault(figure_name(row), {}).setdefault(variant, {})
                points.setdefault(row["step"], []).append(100 * row["value"])
    return {
        figure: charts.lines(
            [
                charts.Series(
                    variant, sorted(points), [np.mean(points[step]) for step in sorted(points)], style
                )
                for (variant, points), style in zip(by_variant.items(), _STYLES, strict=False)
            ],
            charts.Axis("step"),
            charts.Axis("%"),
        )
        for figure, by_variant in lines.items()
    }


def _law(figure: str, fitted: Fitted) -> dict[str, Any]:
    points, law = fitted.points, fitted.law
    measured_sizes, errors, _ = points.means()
    measured = charts.Series("measured", measured_sizes, 100 * errors, "s2")
    series = [measured]
    if law is not None:
        sizes = np.geomspace(points.sizes.min(), 4 * points.sizes.max(), 60)
        low, high = np.array([law.interval(float(size)) for size in sizes]).T
        series += [
            charts.Series("law", sizes, 100 * law.error(sizes), "s1"),
            charts.Series("95 %", sizes, 100 * low, "s1", faint=True),
            charts.Series("", sizes, 100 * high, "s1", faint=True),
        ]
    axes = charts.Axis("pairs trained on", log=True), charts.Axis("error, %")
    return {"figure": figure, "says": "; ".join(fitted.lines()), "chart": charts.lines(series, *axes)}
