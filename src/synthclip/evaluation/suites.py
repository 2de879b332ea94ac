"""Named lists of data sets and tasks, and a model's evaluation on one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from synthclip import schema
from synthclip.config import nearest
from synthclip.errors import SynthClipError
from synthclip.evaluation.data import Classification, MissingDataError, Retrieval, open_dataset
from synthclip.evaluation.data.known import KNOWN
from synthclip.evaluation.evaluators import EVALUATORS, Settings, able_evaluators
from synthclip.evaluation.features import Features
from synthclip.evaluation.paper import cells
from synthclip.evaluation.results import item_rows, result_row
from synthclip.keys import digest
from synthclip.store import Outcome, RunDirectory

Plan = dict[str, tuple[str, ...]]
"""Evaluators by data set; none given means all that the set has what it takes for."""

_RETRIEVAL_TASKS = ("image_retrieval", "text_retrieval")


def _paper() -> Plan:
    plan: dict[str, list[str]] = {}
    for task, dataset in cells():
        evaluator = "retrieval" if task in _RETRIEVAL_TASKS else task
        if evaluator not in plan.setdefault(dataset, []):
            plan[dataset].append(evaluator)
    return {dataset: tuple(evaluators) for dataset, evaluators in plan.items()}


def _robustness() -> Plan:
    kin = ("imagenet-v2", "imagenet-a", "imagenet-r", "imagenet-o", "imagenet-sketch", "objectnet")
    return dict.fromkeys(kin, ("zero_shot",))


def _quick() -> Plan:
    return {"cifar10": (), "flickr8k": ()}


SUITES: dict[str, Callable[[], Plan]] = {"paper": _paper, "quick": _quick, "robustness": _robustness}


@dataclass(frozen=True)
class SuiteResult:
    """What a suite came to."""

    results: list[dict[str, Any]]
    """Rows of `schema.EVAL_RESULT`."""
    missing: tuple[str, ...]
    """What was not there, a line each."""
    failed: tuple[str, ...]
    """What was there and could not be evaluated, a line each."""
    notes: tuple[str, ...]
    """What a reader of the figures must know, a line each."""
    files: Path | None = None
    """The folder the tables were written to."""


@dataclass
class _Tables:
    results: list[dict[str, Any]] = field(default_factory=list)
    classes: list[dict[str, Any]] = field(default_factory=list)
    items: list[dict[str, Any]] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def plan_of(suite: str) -> Plan:
    """The plan of a suite's name, or of a list of data sets with commas between them."""
    if suite in SUITES:
        return SUITES[suite]()
    names = [name.strip() for name in suite.split(",") if name.strip()]
    if not names:
        raise SynthClipError(f"--suite {suite!r}: name a suite or data sets{nearest(suite, list(SUITES))}")
    return dict.fromkeys(names, ())


def open_suite(
    suite: str, root: Path, *, download: bool = False
) -> tuple[list[Classification | Retrieval], list[str]]:
    """The data sets of a suite that are there, and a line for each that is missing or broken.

    Raises SynthClipError where there is none.
    """
    if not root.is_dir():
        raise SynthClipError(f"{root}: no such folder: --data names the folder that holds the data sets")
    opened: list[Classification | Retrieval] = []
    told: list[str] = []
    for name in plan_of(suite):
        try:
            opened.append(open_dataset(name, root, download=download))
        except SynthClipError as error:
            told.append(str(error))
    if not opened:
        raise SynthClipError(f"none of the suite's {len(told)} data sets can be opened: {told[0]}")
    return opened, told


def evaluate_suite(
    features: Features,
    suite: str,
    root: Path,
    *,
    settings: Settings | None = None,
    download: bool = False,
    out: Path | None = None,
) -> SuiteResult:
    """Evaluate a model on a suite's data below `root`, and write the tables into `out`, a run or any folder.

    A set that is missing or broken is told of and passed over. Raises SynthClipError where that leaves none.
    """
    settings = settings or Settings()
    if not root.is_dir():
        raise SynthClipError(f"{root}: no such folder: --data names the folder that holds the data sets")
    tables = _Tables()
    plan = plan_of(suite)
    for name, evaluators in plan.items():
        try:
            dataset = open_dataset(name, root, download=download)
        except MissingDataError as error:
            tables.missing.append(str(error))
        except SynthClipError as error:
            tables.failed.append(str(error))
        else:
            _evaluate_dataset(features, name, dataset, evaluators, settings, tables)
    if not tables.results:
        first = (tables.failed or tables.missing)[0]
        raise SynthClipError(f"none of the suite's {len(plan)} data sets could be evaluated: {first}")
    files = None if out is None else _write(out, suite, features.checkpoint, tables)
    return SuiteResult(
        tables.results, tuple(tables.missing), tuple(tables.failed), tuple(tables.notes), files
    )


def _evaluate_dataset(
    features: Features,
    name: str,
    dataset: Classification | Retrieval,
    evaluators: Sequence[str],
    settings: Settings,
    tables: _Tables,
) -> None:
    unreadable: dict[str, None] = {}
    for evaluator in evaluators or able_evaluators(dataset):
        features.watch.begin(f"{name} {evaluator}")
        try:
            found = EVALUATORS[evaluator](features, dataset, settings)
        except SynthClipError as error:
            tables.failed.append(f"{name}, {evaluator}: {error}")
            continue
        unreadable |= dict.fromkeys(found.unreadable)
        tables.classes += found.classes
        for figure, items in found.figures:
            tables.results.append(result_row(name, figure, features.checkpoint))
            if figure.metric != "mean_per_class":
                tables.items += item_rows(name, figure, items)
    tables.notes += _notes(name, dataset, tuple(unreadable))


def _notes(name: str, dataset: Classification | Retrieval, unreadable: Sequence[str]) -> list[str]:
    notes = []
    if unreadable:
        shown = ", ".join(unreadable[:3]) + (", …" if len(unreadable) > 3 else "")
        notes.append(f"{name}: {len(unreadable)} images cannot be read and are left out ({shown})")
    usual = KNOWN[name].test_images if name in KNOWN else None
    pictures = dataset.pictures if isinstance(dataset, Retrieval) else dataset.splits["test"].pictures
    if usual is not None and len(pictures) != usual:
        notes.append(
            f"{name}: {len(pictures)} test images, not the usual {usual}: its figures compare with nobody's"
        )
    return notes


def _write(out: Path, suite: str, checkpoint: str, tables: _Tables) -> Path:
    name = suite.replace(",", "+").replace("/", "-")
    with RunDirectory(out).begin("suites", name, digest(suite, checkpoint)) as writer:
        writer.rows(f"{name}/results.parquet", schema.EVAL_RESULT, tables.results)
        writer.rows(f"{name}/per_class.parquet", schema.EVAL_CLASS, tables.classes)
        writer.rows(f"{name}/items.parquet", schema.EVAL_ITEM, tables.items)
        writer.commit(Outcome(len(tables.results)))
    return RunDirectory(out).file("suites", name)
