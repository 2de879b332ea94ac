"""The classes a model knows least, as concepts to write more captions for: evaluation feeds generation."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from synthclip.errors import SynthClipError
from synthclip.evaluation.metrics import wilson
from synthclip.evaluation.results import ON_PUBLIC_DATA


@dataclass(frozen=True)
class WeakClass:
    dataset: str
    name: str
    n: int
    top1: float
    confused_with: str | None
    """What most of its wrong answers were."""


def weakest_classes(run: Path, count: int) -> list[WeakClass]:
    """The `count` classes with the lowest zero-shot accuracy in a run's evaluations, worst first.

    Ordered by the upper end of Wilson's 95 % interval, so that a class with one unlucky image does not stand
    before one that fails on a hundred; a name that several data sets have counts once.
    """
    paths = [run / "eval" / "per_class.parquet", *sorted((run / ON_PUBLIC_DATA).glob("*/per_class.parquet"))]
    rows = [row for path in paths if path.is_file() for row in pq.read_table(path).to_pylist()]
    if not rows:
        raise SynthClipError(f"{run}: no zero-shot results by class: run `synthclip eval {run}` first")
    rows.sort(key=lambda row: (wilson(round(row["n"] * row["top1"]), row["n"])[1], row["name"]))
    worst: dict[str, WeakClass] = {}
    for row in rows:
        if row["top1"] < 1:
            fields = (row[name] for name in ("dataset", "name", "n", "top1", "confused_with"))
            worst.setdefault(row["name"], WeakClass(*fields))
    return list(worst.values())[:count]


def concept_list(classes: Sequence[WeakClass]) -> str:
    """One concept a line, as `synthclip captions --fill --concepts` and a source of kind `text` read it."""
    return "".join(f"{found.name}\n" for found in classes)
