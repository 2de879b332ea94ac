"""Results on public data sets beside the paper's models, and zero-shot by class."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from synthclip import keys, schema
from synthclip.evaluation.paper import METRICS, delta_mtl, paper_rows, row_of
from synthclip.evaluation.results import ON_PUBLIC_DATA
from synthclip.recipe.shareable import shareable
from synthclip.report.reader import Reader
from synthclip.run.store import RunDirectory

OURS = "this model"
CLASSES_SHOWN = 10
MIN_CLASS_IMAGES = 5
"""Below it a class is not ranked among the best or worst."""


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
    """Top-1 of every class that was tested, highest first."""
    best: tuple[Mapping[str, Any], ...]
    """Rows of `schema.EVAL_CLASS` of classes with MIN_CLASS_IMAGES or more, highest first; may be empty."""
    worst: tuple[Mapping[str, Any], ...]
    """The same from the other end, lowest first."""
    ranked: int
    """How many classes have MIN_CLASS_IMAGES images or more."""
    untested: int | None = None
    """How many have none; None where that is not known."""


@dataclass(frozen=True)
class Suites:
    """What `synthclip eval RUN --suite …` found, beside the same figures of the paper's models.

    Images of public data sets stay out: a report is made to be passed on, and they are not ours to pass on.
    """

    results: tuple[Mapping[str, Any], ...]
    """Rows of `schema.EVAL_RESULT`."""
    bars: tuple[Bars, ...]
    classes: tuple[Classes, ...]
    delta_mtl: tuple[tuple[str, float, bool], ...]
    """The paper's model it is taken against, its value in percent, and whether every cell is there."""
    warnings: tuple[str, ...]
    """What the evaluations warned of: why a figure is not comparable with published ones, say."""


def read_suites(run: RunDirectory) -> Suites | None:
    """The evaluations of a run on public data sets; None where there is none.

    A figure that several suites have is shown once, as the last of them by name has it.
    """
    reader = Reader(run)

    def rows(name: str) -> Iterable[dict[str, Any]]:
        for path in reader.files(ON_PUBLIC_DATA, suffix=f"/{name}"):
            yield from schema.read_table(path).to_pylist()

    results = {(row["dataset"], row["task"], row["metric"]): row for row in rows("results.parquet")}
    if not results:
        return None
    classes: dict[str, dict[int, Mapping[str, Any]]] = {}
    for row in rows("per_class.parquet"):
        classes.setdefault(row["dataset"], {})[row["class_id"]] = row
    ours = row_of(OURS, list(results.values()))
    deltas = ((name, delta_mtl(ours, row)) for name, row in paper_rows().items())
    return Suites(
        tuple(results.values()),
        tuple(_bars(ours.scores)),
        tuple(classes_of(dataset, list(by_id.values())) for dataset, by_id in classes.items()),
        tuple((name, delta.value, delta.complete) for name, delta in deltas if delta is not None),
        tuple(
            str(shareable(warning))
            for manifest in reader.run.manifests(ON_PUBLIC_DATA)
            for warning in manifest.notes.get("warnings", ())
        ),
    )


def _bars(ours: Mapping[tuple[str, str], float]) -> Iterator[Bars]:
    models = {OURS: ours} | {name: row.scores for name, row in paper_rows().items()}
    for task in METRICS:
        if cells := [cell for cell in ours if cell[0] == task]:
            means = {
                name: sum(scores[cell] for cell in cells) / len(cells) for name, scores in models.items()
            }
            ranked = sorted(means.items(), key=lambda mean: -mean[1])
            yield Bars(task, tuple(dataset for _, dataset in cells), tuple(ranked))


def classes_of(dataset: str, rows: Sequence[Mapping[str, Any]], total: int | None = None) -> Classes:
    """Classes of few images are not ranked: their accuracy says little. Ties go by the number of images, then
    by a hash of the name."""

    def order(row: Mapping[str, Any]) -> tuple[int, int]:
        return -row["n"], keys.seed_of(row["name"], stream="report.classes", seed=0)

    known = sorted((row for row in rows if row["n"] >= MIN_CLASS_IMAGES), key=order)
    worst = [row for row in sorted(known, key=lambda row: row["top1"])[:CLASSES_SHOWN] if row["top1"] < 1]
    best = sorted(known, key=lambda row: -row["top1"])[:CLASSES_SHOWN]
    return Classes(
        dataset,
        tuple(sorted((row["top1"] for row in rows), reverse=True)),
        tuple(best) if len(known) >= 2 * CLASSES_SHOWN else (),
        tuple(worst),
        len(known),
        None if total is None else total - len(rows),
    )
