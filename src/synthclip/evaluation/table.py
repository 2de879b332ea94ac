"""Tables for people: results beside the paper's rows, and two runs beside each other."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from synthclip.evaluation.comparing import Difference
from synthclip.evaluation.paper import METRICS, Row, delta_mtl, paper_rows, published_delta_mtl, row_of
from synthclip.recipe.section import differences
from synthclip.run.store import RunDirectory

SHOWN_ROWS = ("CC12M", "SynthCI-30M")


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


def run_table(run_a: Path, run_b: Path) -> Table:
    """The recipe values of finished stages, and the rows of each, in which two runs differ."""
    table = Table("differs", str(run_a), str(run_b), box=None, pad_edge=False)
    a, b = (_description(run) for run in (run_a, run_b))
    for key, ours, theirs in differences(a, b):
        table.add_row(key, str(ours), str(theirs))
    return table


def _description(run: Path) -> dict[str, Any]:
    directory = RunDirectory(run)
    stages = [path.parent.name for path in sorted(run.glob("*/stage.json"))]
    values: dict[str, Any] = {}
    for stage in stages:
        values |= directory.read_json(f"{stage}/stage.json") or {}
    rows = {
        f"{stage} rows": sum(manifest.rows for manifest in directory.manifests(stage)) for stage in stages
    }
    return {**values, **rows}


def difference_table(differences: Sequence[Difference]) -> Table:
    """Both figures in percent, and their difference with its paired interval where there is one."""
    table = Table(box=None, pad_edge=False)
    for column in ("task", "data set", "metric"):
        table.add_column(column, no_wrap=True)
    for column in ("A", "B", "B - A", "95 % interval", "p", "paired items"):
        table.add_column(column, justify="right", no_wrap=True)
    for found in differences:
        paired = ["-", "-", "items differ"]
        if found.interval is not None:
            low, high = found.interval
            paired = [f"{100 * low:+.1f} to {100 * high:+.1f}", f"{found.p_value:.4f}", str(found.paired_n)]
        table.add_row(
            found.task,
            found.dataset,
            found.metric,
            f"{100 * found.a:.1f}",
            f"{100 * found.b:.1f}",
            f"{100 * (found.b - found.a):+.1f}",
            *paired,
        )
    return table
