"""Two runs side by side: recipe, data and figures, with significance where both judged the same items."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from synthclip.errors import SynthClipError
from synthclip.evaluation.metrics import Interval
from synthclip.evaluation.results import ON_PUBLIC_DATA, read_results

RESAMPLES = 20_000

_Key = tuple[str, str, str]
"""Data set, task and metric."""


@dataclass(frozen=True)
class Difference:
    """B less A in one figure."""

    dataset: str
    task: str
    metric: str
    a: float
    b: float
    paired_n: int | None
    """The items that both judged; None where their items differ, and no test is made."""
    interval: Interval | None = None
    """95 % of the difference, by paired bootstrap."""
    p_value: float | None = None
    """Two-sided: how likely so large a difference is where there is none."""


def paired_bootstrap(a: NDArray[np.float64], b: NDArray[np.float64], seed: int = 0) -> tuple[Interval, float]:
    """The 95 % interval of mean(b - a) and its two-sided p-value (Efron and Tibshirani, 1993, chapter 16).

    `a` and `b` float64 [N] are two models' values of the same items. Drawing N items with replacement is one
    multinomial draw over the distinct differences, so the resamples cost no more for many items than for few.
    """
    differences, counts = np.unique(np.round(b - a, 12), return_counts=True)
    random = np.random.Generator(np.random.Philox(seed))
    n = len(a)
    drawn = random.multinomial(n, counts / n, size=RESAMPLES)
    means = drawn @ differences / n
    low, high = np.percentile(means, [2.5, 97.5])
    tail = min((means <= 0).sum(), (means >= 0).sum())
    return (float(low), float(high)), min(1.0, 2 * (int(tail) + 1) / (RESAMPLES + 1))


def compare_figures(run_a: Path, run_b: Path) -> list[Difference]:
    """Every figure that both runs have, from their held-out evaluation and their suites."""
    a, b = _figures(run_a), _figures(run_b)
    if not a.keys() & b.keys():
        raise SynthClipError(
            f"{run_a} and {run_b} have no figure in common: evaluate both on the same data first"
        )
    items_a, items_b = _items(run_a), _items(run_b)
    found = []
    for key in a:
        if key not in b:
            continue
        dataset, task, metric = key
        ours, theirs = items_a.get(key), items_b.get(key)
        if ours and theirs and ours.keys() == theirs.keys():
            values = np.array([(value, theirs[item]) for item, value in ours.items()])
            interval, p_value = paired_bootstrap(values[:, 0], values[:, 1])
            found.append(Difference(dataset, task, metric, a[key], b[key], len(values), interval, p_value))
        else:
            found.append(Difference(dataset, task, metric, a[key], b[key], None))
    return found


def _folders(run: Path) -> list[Path]:
    return [
        folder
        for folder in (run / "eval", *sorted((run / ON_PUBLIC_DATA).glob("*")))
        if (folder / "results.parquet").is_file()
    ]


def _figures(run: Path) -> dict[_Key, float]:
    folders = _folders(run)
    if not folders:
        raise SynthClipError(f"{run}: no results of an evaluation: run `synthclip eval {run}` first")
    return {
        (row["dataset"], row["task"], row["metric"]): row["value"]
        for folder in folders
        for row in read_results(folder / "results.parquet")
    }


def _items(run: Path) -> dict[_Key, dict[str, float]]:
    found: dict[_Key, dict[str, float]] = {}
    for folder in _folders(run):
        for row in pq.read_table(folder / "items.parquet").to_pylist():
            key = (row["dataset"], row["task"], row["metric"])
            found.setdefault(key, {})[row["item"]] = row["value"]
    return found
