"""A model's results as a table beside the paper's rows."""

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from synthclip.evaluation.paper import METRICS, Row, delta_mtl, paper_rows, published_delta_mtl, row_of

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
