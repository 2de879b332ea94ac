"""The rows that evaluations write, and what is read from them: two runs compared, and the weakest classes."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from synthclip import schema
from synthclip.errors import SynthClipError
from synthclip.evaluation.metrics import Interval, Measurement, wilson
from synthclip.keys import text_id
from synthclip.recipe.training import HELDOUT
from synthclip.run.store import ShardWriter

ON_PUBLIC_DATA = "suites"
"""The folder of a run for what `synthclip eval RUN --suite …` finds. It is no stage of the pipeline."""

RESAMPLES = 20_000
PAIRED = (
    "intervals and p: paired bootstrap over the items that both models judged (images of one caption "
    "together, few-shot: episodes), not over trainings with another seed"
)
"""What comparing says, and what not, for people."""

Key = tuple[str, str, str]
"""Data set, task and metric."""
Items = Mapping[str, tuple[float, int | None]]
"""By an item's name its value and its group."""


@dataclass(frozen=True)
class Evaluation:
    """What one task of one data set came to."""

    figures: list[tuple[Measurement, Sequence[str]]]
    """Each with the names of the items it was taken over."""
    classes: list[dict[str, Any]] = field(default_factory=list)
    """Rows of `schema.EVAL_CLASS`."""
    unreadable: tuple[str, ...] = ()
    """Images that could not be read; the figures leave them out."""
    prompts: str | None = None
    """What zero-shot was asked with."""
    notes: tuple[str, ...] = ()
    """What a reader of the figures must know."""


@dataclass
class Tables:
    """Evaluations as rows of the three tables that are written of them."""

    results: list[dict[str, Any]] = field(default_factory=list)
    """Rows of `schema.EVAL_RESULT`."""
    classes: list[dict[str, Any]] = field(default_factory=list)
    """Rows of `schema.EVAL_CLASS`."""
    items: list[dict[str, Any]] = field(default_factory=list)
    """Rows of `schema.EVAL_ITEM`."""
    unreadable: dict[str, dict[str, None]] = field(default_factory=dict)
    """By data set the images that could not be read, each once."""

    def add(self, dataset: str, found: Evaluation, checkpoint: str | None) -> None:
        self.unreadable.setdefault(dataset, {}).update(dict.fromkeys(found.unreadable))
        self.classes += found.classes
        for figure, items in found.figures:
            self.results.append(result_row(dataset, figure, checkpoint) | {"prompts": found.prompts})
            if figure.metric != "mean_per_class":  # no mean over items
                self.items += item_rows(dataset, figure, items)

    def write(self, writer: ShardWriter, folder: str = "") -> None:
        """The tables as files of a shard, in this folder of it."""
        writer.rows(f"{folder}results.parquet", schema.EVAL_RESULT, self.results)
        writer.rows(f"{folder}per_class.parquet", schema.EVAL_CLASS, self.classes)
        writer.rows(f"{folder}items.parquet", schema.EVAL_ITEM, self.items)


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
        "prompts": None,
    }


def figure_name(row: Mapping[str, Any]) -> str:
    """What logs and `training.eval.metric` call a figure: `task/metric` of the held-out set,
    `set/task/metric` of a data set."""
    of = () if row["dataset"] == HELDOUT else (row["dataset"],)
    return "/".join((*of, row["task"], row["metric"]))


def item_rows(dataset: str, measured: Measurement, items: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Rows of `schema.EVAL_ITEM`, one for each item that the figure was taken over."""
    groups = [None] * measured.n if measured.groups is None else measured.groups.tolist()
    for item, value, group in zip(items, measured.items.tolist(), groups, strict=True):
        yield {
            "dataset": dataset,
            "task": measured.task,
            "metric": measured.metric,
            "item": item,
            "value": value,
            "group": group,
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
            "classes": len(names),
        }


def read_results(path: Path) -> list[dict[str, Any]]:
    """The rows of a `results.parquet`. Raises SynthClipError where the file is something else."""
    try:
        table = pq.read_table(path)
        return list(table.select(schema.EVAL_RESULT.names).to_pylist())
    except (OSError, KeyError, pa.ArrowInvalid) as error:
        raise SynthClipError(f"{path}: not a table of results ({error}): name a results.parquet") from None


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


def paired_bootstrap(
    a: NDArray[np.float64], b: NDArray[np.float64], groups: NDArray[np.int64] | None = None, seed: int = 0
) -> tuple[Interval, float]:
    """The 95 % interval of mean(b - a) and its two-sided p-value (Efron and Tibshirani, 1993, chapter 16).

    `a` and `b` float64 [N] are two models' values of the same items; items of one of `groups` int64 [N] are
    drawn together. Drawing with replacement is one multinomial draw over the distinct differences of groups,
    so the resamples cost no more for many items than for few.
    """
    group = np.arange(len(a)) if groups is None else np.unique(groups, return_inverse=True)[1]
    sums = np.round(np.bincount(group, weights=b - a), 12)
    distinct, counts = np.unique(np.stack([sums, np.bincount(group)]), axis=1, return_counts=True)
    random = np.random.Generator(np.random.Philox(seed))
    drawn = random.multinomial(counts.sum(), counts / counts.sum(), size=RESAMPLES)
    differences, items = distinct
    means = drawn @ differences / (drawn @ items)
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
    items_a, items_b = (read_items(tables_of(run, "items.parquet")) for run in (run_a, run_b))
    found = []
    for key in (key for key in a if key in b):
        difference = Difference(*key, a[key], b[key], None)
        (ours, theirs), groups = aligned([items_a.get(key, {}), items_b.get(key, {})])
        if len(ours):
            interval, p_value = paired_bootstrap(ours, theirs, groups)
            difference = replace(difference, paired_n=len(ours), interval=interval, p_value=p_value)
        found.append(difference)
    return found


def not_current(run: Path) -> list[str]:
    """Figures of a run that do not follow from its recipe and its model as they are, a line each."""
    from synthclip.evaluation.features import digest_of_files
    from synthclip.recipe import RECIPE_FILE, inspect_recipe
    from synthclip.run.pipeline import status

    lines = []
    if (run / RECIPE_FILE).is_file():
        recipe = inspect_recipe(run / RECIPE_FILE)
        (held,) = (state for state in status(run, recipe).stages if state.stage == "eval")
        if held.state not in ("current", "unchecked", "new"):
            why = f", {held.reason}" if held.reason else ""
            lines.append(f"{run}: the figures on held-out data are not current ({held.state}{why})")
    model = (digest_of_files(str(run)) or "")[:16]
    for path in tables_of(run, "results.parquet"):
        folder = path.parent
        if folder.parent == run / ON_PUBLIC_DATA and any(
            row["checkpoint"] not in (model, None) for row in read_results(path)
        ):
            lines.append(f"{run}: the figures in {ON_PUBLIC_DATA}/{folder.name} are of another model")
    return [f"{line}: run `synthclip eval {run}` again" for line in lines]


def tables_of(run: Path, name: str) -> list[Path]:
    """The tables of this name that a run's evaluations wrote: on its held-out set, then on suites, then those
    of the sweep that it is part of."""
    judged = run.absolute().parent.parent / "judged" / run.absolute().name
    folders = (run / "eval", *sorted((run / ON_PUBLIC_DATA).glob("*")), judged)
    return [path for folder in folders if (path := folder / name).is_file()]


def key_of(row: Mapping[str, Any]) -> Key:
    return row["dataset"], row["task"], row["metric"]


def _figures(run: Path) -> dict[Key, float]:
    paths = tables_of(run, "results.parquet")
    if not paths:
        raise SynthClipError(f"{run}: no results of an evaluation: run `synthclip eval {run}` first")
    return {key_of(row): row["value"] for path in paths for row in read_results(path)}


def read_items(paths: Iterable[Path]) -> Mapping[Key, Items]:
    """The items of each figure in files `items.parquet`."""
    found: dict[Key, dict[str, tuple[float, int | None]]] = {}
    for path in paths:
        for row in schema.read_table(path).to_pylist():
            found.setdefault(key_of(row), {})[row["item"]] = row["value"], row.get("group")
    return found


def aligned(items: Sequence[Items]) -> tuple[NDArray[np.float64], NDArray[np.int64] | None]:
    """The values of several models on the same items, float64 [models, items], and the groups of these; no
    items where they differ."""
    names = list(items[0]) if items else []
    if not names or any(one.keys() != items[0].keys() for one in items):
        return np.empty((len(items), 0)), None
    values = np.array([[one[name][0] for name in names] for one in items])
    groups = [items[0][name][1] for name in names]
    return values, None if None in groups else np.array(groups, np.int64)


@dataclass(frozen=True)
class WeakClass:
    dataset: str
    name: str
    n: int
    top1: float
    confused_with: str | None
    """What most of its wrong answers were."""


def ranked_classes(rows: Sequence[Mapping[str, Any]], *, best: bool) -> list[Mapping[str, Any]]:
    """Rows of `schema.EVAL_CLASS`, the surest successes first, or the surest failures.

    Ordered by the nearer end of Wilson's 95 % interval, so that a class with one unlucky image does not stand
    before one that fails on a hundred. Equals come in a random order, the same each time.
    """

    def sureness(row: Mapping[str, Any]) -> tuple[float, int]:
        low, high = wilson(round(row["n"] * row["top1"]), row["n"])
        return (-low if best else high), text_id(row["name"])

    return sorted(rows, key=sureness)


def never_tested(rows: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Of rows of `schema.EVAL_CLASS`: how many classes had no image, by data set, where there are such."""
    tested = Counter(row["dataset"] for row in rows)
    classes = {row["dataset"]: row.get("classes") or 0 for row in rows}
    return {name: classes[name] - tested[name] for name in classes if classes[name] > tested[name]}


def class_table(run: Path) -> list[dict[str, Any]]:
    """A run's zero-shot results by class, from all its evaluations: rows of `schema.EVAL_CLASS`."""
    paths = tables_of(run, "per_class.parquet")
    rows = [row for path in paths for row in schema.read_table(path).to_pylist()]
    if not rows:
        raise SynthClipError(f"{run}: no zero-shot results by class: run `synthclip eval {run}` first")
    return rows


def weakest_classes(run: Path, count: int) -> list[WeakClass]:
    """The `count` classes with the lowest zero-shot accuracy in a run's evaluations, the surest first; a name
    that several data sets have counts once."""
    worst: dict[str, WeakClass] = {}
    for row in ranked_classes(class_table(run), best=False):
        if row["top1"] < 1:
            fields = (row[name] for name in ("dataset", "name", "n", "top1", "confused_with"))
            worst.setdefault(row["name"], WeakClass(*fields))
    return list(worst.values())[:count]


def concept_list(classes: Sequence[WeakClass]) -> str:
    """One concept a line, as `synthclip captions --fill --concepts` and a source of kind `text` read it."""
    return "".join(f"{found.name}\n" for found in classes)
