"""The paper's table of results, Delta_MTL, its one figure for a whole model, and tables for people."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from rich.table import Table

from synthclip.errors import SynthClipError
from synthclip.evaluation.results import Difference, read_results
from synthclip.recipe.section import differences, nearest
from synthclip.run.store import RunDirectory

METRICS = {
    "linear_probe": "top1",
    "few_shot": "top1",
    "image_retrieval": "R@5",
    "text_retrieval": "R@5",
    "zero_shot": "top1",
}
"""The paper's five tasks, and the metric it gives for each."""

SHOWN_ROWS = ("CC12M", "SynthCI-30M")

COVERS = (
    "95 % intervals are over other test images and captions of this kind (images of one caption, and "
    "captions of one image, count once; few-shot: over other classes), not over trainings with another seed"
)
"""What intervals say, and what not, for people."""

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
    return row_of(name, read_results(path))


def _table() -> Any:
    return json.loads((resources.files("synthclip.evaluation") / "paper_tables.json").read_bytes())


def results_table(results: Sequence[dict[str, Any]], against: Sequence[Row] = ()) -> Table:
    """Every figure in percent with its interval, chance and n, and the same cell of other models.

    Cells that the paper has come with its rows `SHOWN_ROWS`; those of `against` follow.
    """
    rows = [*(paper_rows()[name] for name in SHOWN_ROWS), *against]
    table = Table(box=None, pad_edge=False)
    for column in ("task", "data set", "metric"):
        table.add_column(column, no_wrap=True)
    for column in ("value", "95 % interval", "chance", "n", *(row.name for row in rows)):
        table.add_column(column, justify="right", no_wrap=True)
    for result in results:
        beside = [
            row.scores.get((result["task"], result["dataset"]))
            if METRICS.get(result["task"]) == result["metric"]
            else None
            for row in rows
        ]
        table.add_row(
            result["task"],
            result["dataset"],
            result["metric"],
            f"{100 * result['value']:.1f}",
            f"{100 * result['ci95_low']:.1f} to {100 * result['ci95_high']:.1f}",
            f"{100 * result['chance']:.1f}",
            str(result["n"]),
            *("" if score is None else f"{score:.1f}" for score in beside),
        )
    return table


def delta_lines(results: Sequence[dict[str, Any]], against: Sequence[Row] = ()) -> list[str]:
    """Delta_MTL against the paper's two baselines and others, a line each."""
    model = row_of("this model", results)
    lines = []
    for row in [*(paper_rows()[name] for name in published_delta_mtl()), *against]:
        found = delta_mtl(model, row)
        if found is not None:
            part = "" if found.complete else f", over {found.tasks} of 5 tasks and the data sets at hand only"
            lines.append(f"Delta_MTL against {row.name}: {found.value:+.1f} %{part}")
    return lines


def run_table(runs: Sequence[Path]) -> Table:
    """`run_differences` as a table."""
    table = Table("differs", *map(str, runs), box=None, pad_edge=False)
    for key, values in run_differences(runs).items():
        table.add_row(key, *values)
    return table


def run_differences(runs: Sequence[Path]) -> dict[str, list[str]]:
    """The recipe values of finished stages, and the rows of each, in which runs differ from the first: for
    each run its value."""
    base, *others = (_description(run) for run in runs)
    changed = [{key: (old, new) for key, old, new in differences(base, other)} for other in others]
    found = {}
    for key in sorted({key for one in changed for key in one}):
        old = next(one[key][0] for one in changed if key in one)
        found[key] = [str(old), *(str(one[key][1] if key in one else old) for one in changed)]
    return found


def _description(run: Path) -> dict[str, Any]:
    directory = RunDirectory(run, read_only=True)
    stages = [path.parent.name for path in sorted(run.glob("*/stage.json"))]
    values: dict[str, Any] = {}
    for stage in stages:
        values |= directory.read_json(f"{stage}/stage.json") or {}
    rows = {
        f"{stage} rows": sum(manifest.rows for manifest in directory.manifests(stage)) for stage in stages
    }
    return {**values, **rows}


def difference_table(differences: Mapping[str, Sequence[Difference]]) -> Table:
    """Both figures in percent, and their difference with its paired interval where there is one; by the name
    of the run B."""
    table = Table(box=None, pad_edge=False)
    several = len(differences) > 1
    for column in ("task", "data set", "metric", *(["B"] if several else [])):
        table.add_column(column, no_wrap=True)
    for column in ("A", "B", "B - A", "95 % interval", "p", "paired items"):
        table.add_column(column, justify="right", no_wrap=True)
    rows = [(_place(found), name, found) for name, of_run in differences.items() for found in of_run]
    order = list(dict.fromkeys(place for place, _, _ in rows))
    for place, name, found in sorted(rows, key=lambda row: order.index(row[0])):
        table.add_row(*place, *([name] if several else []), *_compared(found))
    return table


def _place(found: Difference) -> tuple[str, str, str]:
    return found.task, found.dataset, found.metric


def _compared(found: Difference) -> list[str]:
    paired = ["-", "-", "no items" if found.metric == "mean_per_class" else "items differ"]
    if found.interval is not None:
        low, high = found.interval
        paired = [f"{100 * low:+.1f} to {100 * high:+.1f}", f"{found.p_value:.4f}", str(found.paired_n)]
    return [
        f"{100 * found.a:.1f}",
        f"{100 * found.b:.1f}",
        f"{100 * (found.b - found.a):+.1f}",
        *paired,
    ]
