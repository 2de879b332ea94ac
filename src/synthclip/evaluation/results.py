"""The rows that an evaluation writes."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from synthclip import schema
from synthclip.errors import SynthClipError
from synthclip.evaluation.metrics import Measurement
from synthclip.recipe.training import HELDOUT

ON_PUBLIC_DATA = "suites"
"""The folder of a run for what `synthclip eval RUN --suite …` finds. It is no stage of the pipeline."""


def result_row(dataset: str, measured: Measurement, checkpoint: str | None) -> dict[str, Any]:
    """A row of `schema.EVAL_RESULT`; `step` is left to who knows it."""
    low, high = measured.interval
    return {
        "dataset": dataset,
        "task": measured.task,
        "metric": measured.metric,
        "value": measured.value,
        "ci95_low": low,
        "ci95_high": high,
        "chance": measured.chance,
        "n": measured.n,
        "checkpoint": checkpoint,
        "step": None,
    }


def figure_name(row: Mapping[str, Any]) -> str:
    """What logs and `training.eval.metric` call a figure: `task/metric` of the held-out set,
    `set/task/metric` of a data set."""
    of = () if row["dataset"] == HELDOUT else (row["dataset"],)
    return "/".join((*of, row["task"], row["metric"]))


def item_rows(dataset: str, measured: Measurement, items: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Rows of `schema.EVAL_ITEM`, one for each item that the figure was taken over."""
    for item, value in zip(items, measured.items.tolist(), strict=True):
        yield {
            "dataset": dataset,
            "task": measured.task,
            "metric": measured.metric,
            "item": item,
            "value": value,
        }


def class_rows(
    dataset: str, names: Sequence[str], labels: NDArray[np.int64], ranked: NDArray[np.int64]
) -> Iterator[dict[str, Any]]:
    """Rows of `schema.EVAL_CLASS` from labels [N] and the classes ranked for each image [N, K]."""
    order = np.argsort(labels, kind="stable")
    classes, starts = np.unique(labels[order], return_index=True)
    for label, mine in zip(classes.tolist(), np.split(order, starts[1:]), strict=True):
        right = ranked[mine] == label
        wrong = ranked[mine, 0][~right[:, 0]]
        named, times = np.unique(wrong, return_counts=True)
        most = int(times.argmax()) if len(wrong) else None
        yield {
            "dataset": dataset,
            "class_id": label,
            "name": names[label],
            "n": len(mine),
            "top1": float(right[:, 0].mean()),
            "top5": float(right.any(axis=1).mean()),
            "confused_with": None if most is None else names[int(named[most])],
            "confused_n": 0 if most is None else int(times[most]),
        }


def read_results(path: Path) -> list[dict[str, Any]]:
    """The rows of a `results.parquet`. Raises SynthClipError where the file is something else."""
    try:
        table = pq.read_table(path)
        return list(table.select(schema.EVAL_RESULT.names).to_pylist())
    except (OSError, KeyError, pa.ArrowInvalid) as error:
        raise SynthClipError(f"{path}: not a table of results ({error}): name a results.parquet") from None
