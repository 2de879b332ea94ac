"""The paper's table of results, and Delta_MTL, its one figure for a whole model."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from synthclip.errors import SynthClipError
from synthclip.recipe.section import nearest

METRICS = {
    "linear_probe": "top1",
    "few_shot": "top1",
    "image_retrieval": "R@5",
    "text_retrieval": "R@5",
    "zero_shot": "top1",
}
"""The paper's five tasks, and the metric it gives for each."""

Cell = tuple[str, str]
"""A task and a data set."""


@dataclass(frozen=True)
class Row:
    """One model's line of the table."""

    name: str
    scores: Mapping[Cell, float]
    """Percent, by task and data set."""


@dataclass(frozen=True)
class DeltaMTL:
    """How much better a model is than a baseline over all tasks, in percent."""

    value: float
    tasks: int
    """How many of the five tasks it was taken over."""
    complete: bool
    """False where a cell of the paper's table is missing: such a value is not comparable with the paper's."""


@cache
def cells() -> tuple[Cell, ...]:
    """Every cell of the paper's table, in its order."""
    return tuple(next(iter(paper_rows().values())).scores)


@cache
def paper_rows() -> dict[str, Row]:
    """The paper's models, by the data they were trained on."""
    table = _table()
    sets: dict[str, Sequence[str]] = {
        "linear_probe": table["datasets"],
        "few_shot": table["datasets"],
        "image_retrieval": table["retrieval_datasets"],
        "text_retrieval": table["retrieval_datasets"],
        "zero_shot": ["imagenet"],
    }
    rows = {}
    for name, by_task in table["rows"].items():
        scores: dict[Cell, float] = {}
        for task, names in sets.items():
            values = by_task[task] if isinstance(by_task[task], list) else [by_task[task]]
            scores |= {(task, dataset): value for dataset, value in zip(names, values, strict=True)}
        rows[name] = Row(name, scores)
    return rows


def published_delta_mtl() -> dict[str, dict[str, float]]:
    """Delta_MTL as the paper prints it: by baseline, then by model."""
    return {name.removeprefix("vs_"): values for name, values in _table()["delta_mtl"].items()}


def delta_mtl(model: Row, baseline: Row) -> DeltaMTL | None:
    """The mean over tasks of the relative difference, each task averaged over its data sets first (paper,
    section 4). Taken over the cells that both rows have; None where there is none."""
    differences = []
    for task in METRICS:
        both = [cell for cell in baseline.scores if cell[0] == task and cell in model.scores]
        if both:
            ours, theirs = (sum(row.scores[cell] for cell in both) / len(both) for row in (model, baseline))
            differences.append((ours - theirs) / theirs * 100)
    if not differences:
        return None
    complete = set(cells()) <= model.scores.keys() & baseline.scores.keys()
    return DeltaMTL(sum(differences) / len(differences), len(differences), complete)


def row_of(name: str, results: Sequence[Mapping[str, Any]]) -> Row:
    """The row of a model from rows of `schema.EVAL_RESULT`: those of the paper's tasks and metrics."""
    scores = {
        (row["task"], row["dataset"]): 100 * row["value"]
        for row in results
        if METRICS.get(row["task"]) == row["metric"] and (row["task"], row["dataset"]) in cells()
    }
    return Row(name, scores)


def find_row(name: str) -> Row:
    """A row of the paper by name, or a model's from its `results.parquet`."""
    rows = paper_rows()
    if name in rows:
        return rows[name]
    path = Path(name)
    if path.is_dir():
        path = path / "results.parquet"
    if not path.is_file():
        raise SynthClipError(
            f"{name}: neither a row of the paper nor a results.parquet{nearest(name, list(rows))}"
        )
    from synthclip.evaluation.results import read_results

    return row_of(name, read_results(path))


def _table() -> Any:
    return json.loads((resources.files("synthclip.evaluation") / "paper_tables.json").read_bytes())
