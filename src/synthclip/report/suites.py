"""What `synthclip eval RUN --suite …` found, for the report, beside the same figures of the paper's models.

Images of public data sets stay out: a report is made to be passed on, and they are not ours to pass on.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow.parquet as pq

from synthclip.evaluation.paper import METRICS, delta_mtl, paper_rows, row_of
from synthclip.evaluation.results import ON_PUBLIC_DATA
from synthclip.report.pictures import files
from synthclip.run.store import RunDirectory

OURS = "this model"
_WORST = 8


@dataclass(frozen=True)
class Bars:
    """One of the paper's tasks: each model's mean in percent over the data sets at hand, highest first."""

    task: str
    datasets: tuple[str, ...]
    models: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Classes:
    """Zero-shot by class on one data set."""

    dataset: str
    accuracy: tuple[float, ...]
    """Top-1 of every class, highest first."""
    worst: tuple[Mapping[str, Any], ...]
    """Rows of `schema.EVAL_CLASS`, lowest first."""


@dataclass(frozen=True)
class Suites:
    results: tuple[Mapping[str, Any], ...]
    """Rows of `schema.EVAL_RESULT`."""
    bars: tuple[Bars, ...]
    classes: tuple[Classes, ...]
    delta_mtl: tuple[tuple[str, float, bool], ...]
    """The paper's model it is taken against, its value in percent, and whether every cell is there."""


def read_suites(run: RunDirectory) -> Suites | None:
    """The evaluations of a run on public data sets; None where there is none.

    A figure that several suites have is shown once, as the last of them by name has it.
    """
    results: dict[tuple[str, str, str], Mapping[str, Any]] = {}
    for row in _rows(run, "results.parquet"):
        results[row["dataset"], row["task"], row["metric"]] = row
    if not results:
        return None
    classes: dict[str, dict[int, Mapping[str, Any]]] = {}
    for row in _rows(run, "per_class.parquet"):
        classes.setdefault(row["dataset"], {})[row["class_id"]] = row
    ours = row_of(OURS, list(results.values()))
    deltas = ((name, delta_mtl(ours, row)) for name, row in paper_rows().items())
    return Suites(
        tuple(results.values()),
        tuple(_bars(ours.scores)),
        tuple(_classes(dataset, list(rows.values())) for dataset, rows in classes.items()),
        tuple((name, delta.value, delta.complete) for name, delta in deltas if delta is not None),
    )


def _rows(run: RunDirectory, name: str) -> list[dict[str, Any]]:
    return [
        row for path in files(run, ON_PUBLIC_DATA, "", f"/{name}") for row in pq.read_table(path).to_pylist()
    ]


def _bars(ours: Mapping[tuple[str, str], float]) -> list[Bars]:
    bars = []
    for task in METRICS:
        cells = [cell for cell in ours if cell[0] == task]
        if cells:
            models = {OURS: ours} | {name: row.scores for name, row in paper_rows().items()}
            means = [
                (name, sum(scores[cell] for cell in cells) / len(cells)) for name, scores in models.items()
            ]
            ranked = sorted(means, key=lambda mean: -mean[1])
            bars.append(Bars(task, tuple(dataset for _, dataset in cells), tuple(ranked)))
    return bars


def _classes(dataset: str, rows: Sequence[Mapping[str, Any]]) -> Classes:
    ranked = sorted(rows, key=lambda row: (row["top1"], row["name"]))
    worst = tuple(row for row in ranked[:_WORST] if row["top1"] < 1)
    return Classes(dataset, tuple(row["top1"] for row in reversed(ranked)), worst)
