"""The report's page: contents in, one HTML file out that needs nothing beside it."""

import math
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jinja2
import numpy as np
import pyarrow as pa
import yaml
from markupsafe import Markup
from numpy.typing import NDArray

from synthclip.evaluation.results import figure_name
from synthclip.recipe import Recipe
from synthclip.recipe.shareable import shareable
from synthclip.recipe.training import HELDOUT
from synthclip.report import charts
from synthclip.report.contents import ConceptCounts, Contents
from synthclip.report.facts import duration, facts, stage_times
from synthclip.report.suites import MIN_CLASS_IMAGES, OURS, Suites
from synthclip.report.terms import by_task, explained, plain
from synthclip.run.stage import tokens_spent
from synthclip.schema import HELDOUT_PAINTER

_FACTS, _TIMINGS = "<!--facts-->", "<!--timings-->"
"""Where those go that follow from the log; text from data is escaped, so they can stand nowhere else."""
_REPLACED = "\N{REPLACEMENT CHARACTER}"
_REORDERING = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
"""Unicode's classes of characters that turn the text after them around."""
_CHARS_SHOWN = 300


def render(name: str, recipe: Mapping[str, Any], contents: Contents) -> str:
    """The page of a run of the recipe `name`; `recipe` holds the resolved values by section."""
    return (
        environment()
        .get_template("page.html.j2")
        .render(
            name=name,
            recipe=yaml.safe_dump(shareable(recipe), sort_keys=False, allow_unicode=True, width=100),
            contents=contents,
            headlines=headlines(contents.results),
            concept_chart=_concept_chart(contents.counts),
            length_chart=charts.histogram(contents.caption_words, "words in a caption", "captions"),
            loss_chart=loss_chart(contents.curve, recipe),
            training=_training(contents.curve),
            figure_charts=figure_charts(contents.figures),
            chosen=_chosen(contents.figures, recipe),
            **of_suites(contents.suites),
            origins=contents.origins,
            facts=Markup(_FACTS),
            timings=Markup(_TIMINGS),
        )
    )


def of_suites(suites: Suites | None) -> dict[str, Any]:
    """What the template `suites.html.j2` shows."""
    drawn = [_class_chart(classes.accuracy) for classes in suites.classes] if suites else []
    return {"suites": suites, "ours": OURS, "class_charts": drawn, "min_class_images": MIN_CLASS_IMAGES}


def with_log(page: str, recipe: Recipe, metrics: Sequence[Mapping[str, Any]], tokens: str = "") -> str:
    """The page with what the lines of the run's log say of it: when and where it was made, how long each
    stage's present shards took, and what is to be said of the language model's `tokens`."""
    pages = environment()
    known = facts(recipe, metrics, tokens_spent(metrics))
    table = pages.get_template("timings.html.j2").render(rows=stage_times(metrics), tokens=tokens)
    page = page.replace(_FACTS, pages.get_template("facts.html.j2").render(facts=known), 1)
    return page.replace(_TIMINGS, table, 1)


def visible(text: str, most: int = _CHARS_SHOWN) -> str:
    """The text with control characters shown as their pictures, and cut where it is very long."""
    if len(text) > most:
        text = text[: most - 1] + "…"
    return "".join(_picture(char) for char in text)


def _picture(char: str) -> str:
    if ord(char) < 0x20:
        return chr(0x2400 + ord(char))
    reorders = unicodedata.bidirectional(char) in _REORDERING
    return _REPLACED if reorders or unicodedata.category(char) in ("Cc", "Cs") else char


def headlines(results: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The first metric of each task; before the others zero-shot, of the pictures of a painter that training
    never saw too."""
    first: dict[tuple[str, bool], Mapping[str, Any]] = {}
    for result in results:
        unseen = result["task"] == "zero_shot" and result["dataset"] == HELDOUT_PAINTER
        first.setdefault((result["task"], unseen), result)
    shares = [result for result in first.values() if _is_share(result)]
    return sorted(shares, key=lambda result: bool(result["task"] != "zero_shot"))[:5]


def _results(results: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [
        {
            **result,
            "strip": charts.interval(
                result["value"],
                _number(result["ci95_low"]),
                _number(result["ci95_high"]),
                _number(result["chance"]),
            )
            if _is_share(result)
            else "",
        }
        for result in results
    ]


def _is_share(result: Mapping[str, Any]) -> bool:
    return 0 <= _number(result["value"]) <= 1


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _concept_chart(counts: ConceptCounts | None) -> Markup:
    """Concepts by rank, most frequent first, before and after balancing (paper, section 3.1)."""
    if counts is None:
        return Markup("")
    ranks = np.arange(1, counts.matched.size + 1)
    return charts.lines(
        [
            charts.Series("before balancing", ranks, np.sort(counts.matched)[::-1], "s2"),
            charts.Series("after balancing", ranks, np.sort(counts.selected)[::-1], "s1"),
        ],
        charts.Axis("concepts, most frequent first", log=counts.matched.size > 1000),
        charts.Axis("captions", log=True),
    )


def loss_chart(curve: pa.Table | None, recipe: Mapping[str, Any]) -> Markup:
    if curve is None or curve.num_rows < 2:
        return Markup("")
    steps, loss = curve["step"].to_numpy(), curve["loss"].to_numpy()
    series = [charts.Series("", steps, loss, faint=True), charts.Series("", steps, _trailing_mean(loss))]
    batch = recipe.get("training", {}).get("batch_size")
    marks = {f"chance, ln {batch}": math.log(batch)} if batch else {}
    return charts.lines(series, charts.Axis("step"), charts.Axis("contrastive loss"), marks=marks)


def figure_charts(figures: pa.Table | None) -> dict[str, Markup]:
    """The figures taken in training over its steps, a chart a set: of each task the first metric."""
    if figures is None:
        return {}
    taken: dict[tuple[str, str, str], list[tuple[int, float]]] = {}
    for row in figures.to_pylist():
        key = row["dataset"], row["task"], row["metric"]
        taken.setdefault(key, []).append((row["step"], 100 * row["value"]))
    by_set: dict[str, dict[str, charts.Series]] = {}
    for (dataset, task, metric), points in taken.items():
        lines = by_set.setdefault("held-out data" if dataset == HELDOUT else dataset, {})
        if task not in lines:
            steps, percent = np.array(points).T
            name = f"{task.replace('_', ' ')}, {metric}"
            lines[task] = charts.Series(name, steps, percent, f"s{len(lines) + 1}")
    step, share = charts.Axis("step"), charts.Axis("%")
    return {of: charts.lines(list(lines.values()), step, share) for of, lines in by_set.items()}


def _chosen(figures: pa.Table | None, recipe: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The row of the figure that chose the weights, where one did: the highest, the earliest of equals."""
    asked = recipe.get("training", {}).get("eval", {})
    if figures is None or asked.get("keep") != "best":
        return None
    named = [{**row, "figure": figure_name(row)} for row in figures.to_pylist()]
    rows = [row for row in named if row["figure"] == asked["metric"]]
    best: dict[str, Any] | None = max(rows, key=lambda row: row["value"], default=None)
    return best


def _class_chart(accuracy: Sequence[float]) -> Markup:
    """Top-1 of the classes, highest first."""
    ranks = np.arange(1, len(accuracy) + 1)
    percent = [100 * value for value in accuracy]
    return charts.lines(
        [charts.Series("", ranks, percent)],
        charts.Axis("classes, best first"),
        charts.Axis("top-1, %"),
    )


def _trailing_mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean of the last fiftieth of the run up to each point, float64 [N]."""
    width = max(1, values.size // 50)
    total = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    end = np.arange(1, values.size + 1)
    start = np.maximum(0, end - width)
    return np.asarray((total[end] - total[start]) / (end - start))


def _training(curve: pa.Table | None) -> dict[str, float]:
    if curve is None or curve.num_rows == 0:
        return {}
    return {
        "steps": int(curve["step"][-1].as_py()),
        "samples": int(curve["samples_seen"][-1].as_py()),
        "loss": float(_trailing_mean(curve["loss"].to_numpy())[-1]),
        "rate": float(np.nanmedian(curve["samples_per_s"].to_numpy())),
    }


def environment(*packages: str) -> jinja2.Environment:
    """For pages: templates of this package, and of others before them."""
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader(
            [jinja2.PackageLoader(package, ".") for package in (*packages, "synthclip.report")]
        ),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["visible"] = visible
    environment.filters["count"] = lambda value: f"{value:,}"
    environment.filters["percent"] = lambda value: f"{value:.1%}".replace("%", " %")
    environment.filters["duration"] = duration
    environment.filters["plain"] = plain
    environment.filters["by_task"] = by_task
    environment.filters["explained"] = explained
    environment.filters["with_strips"] = _results
    return environment
