"""Named lists of data sets and tasks, and a model's evaluation on one."""

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from synthclip.errors import SynthClipError
from synthclip.evaluation.data import KNOWN, DataSet, MissingDataError, open_dataset, some, test_pictures
from synthclip.evaluation.evaluators import EVALUATORS, Settings, able_evaluators
from synthclip.evaluation.features import Features
from synthclip.evaluation.paper import cells
from synthclip.evaluation.results import ON_PUBLIC_DATA, Tables
from synthclip.keys import digest
from synthclip.recipe.section import did_you_mean, nearest
from synthclip.recipe.training import METRICS
from synthclip.run.progress import Tasks
from synthclip.run.store import Outcome, RunDirectory, disk_errors
from synthclip.samples.files import cache_folder

_MAX_NAME = 80
"""Characters of the folder of a suite: what more data sets would give is cut, with a digest after it."""

Plan = dict[str, tuple[str, ...]]
"""Evaluators by data set; none given means all that the set has what it takes for."""


def _paper() -> Plan:
    evaluator_of = {task: evaluator for evaluator, tasks in METRICS.items() for task in tasks}
    plan: dict[str, dict[str, None]] = {}
    for task, dataset in cells():
        plan.setdefault(dataset, {})[evaluator_of[task]] = None
    return {dataset: tuple(evaluators) for dataset, evaluators in plan.items()}


def _robustness() -> Plan:
    kin = ("imagenet-v2", "imagenet-a", "imagenet-r", "imagenet-o", "imagenet-sketch", "objectnet")
    return dict.fromkeys(kin, ("zero_shot",))


def _quick() -> Plan:
    return {"cifar10": (), "flickr8k": ()}


SUITES: dict[str, Callable[[], Plan]] = {"paper": _paper, "quick": _quick, "robustness": _robustness}


@dataclass(frozen=True)
class Suite:
    """The data sets of a suite, opened."""

    datasets: dict[str, tuple[DataSet, tuple[str, ...]]]
    """Each with its evaluators, by name."""
    missing: tuple[str, ...]
    """What was not there, a line each."""
    failed: tuple[str, ...]
    """What was there and could not be used, a line each."""


@dataclass
class SuiteResult(Tables):
    """What a model's evaluation came to."""

    missing: list[str] = field(default_factory=list)
    """Data sets that were not there, a line each."""
    failed: list[str] = field(default_factory=list)
    """Data sets and tasks that were there and could not be evaluated, a line each."""
    notes: list[str] = field(default_factory=list)
    """What a reader of the figures must know, a line each."""
    files: Path | None = None
    """The folder the tables were written to."""


def plan_of(suite: str) -> Plan:
    """The plan of names with commas between them, each a suite or a data set."""
    names = [name.strip() for name in suite.split(",") if name.strip()]
    if not names:
        raise SynthClipError(f"--suite {suite!r}: name a suite or data sets{nearest(suite, list(SUITES))}")
    return plan_of_names(names)


def plan_of_names(names: Sequence[str], evaluators: Collection[str] = EVALUATORS) -> Plan:
    """The plan of suites and data sets together.

    Of a suite's tasks those among `evaluators`; a set that is left with none is left out.
    """
    plan: Plan = {}
    for name in names:
        for dataset, planned in (SUITES[name]() if name in SUITES else {name: ()}).items():
            wanted = tuple(evaluator for evaluator in planned if evaluator in evaluators)
            if wanted or not planned:
                plan[dataset] = wanted
    return plan


def open_suite(suite: str, root: Path, *, download: bool = False) -> Suite:
    """Open the data sets of a suite, or of a list of names, below `root`.

    What is missing or broken is skipped, and named in the result. Raises SynthClipError where no set is
    left.
    """
    if download:
        with disk_errors(root, "--data"):
            root.mkdir(parents=True, exist_ok=True)
    if not root.is_dir():
        raise SynthClipError(
            f"{root}: no such folder: --data names the one that holds the data sets, --download makes it"
        )
    if not download and not any(root.iterdir()):
        raise SynthClipError(f"{root}: an empty folder: --data names the one that holds the data sets")
    datasets: dict[str, tuple[DataSet, tuple[str, ...]]] = {}
    missing: list[str] = []
    failed: list[str] = []
    for name, evaluators in plan_of(suite).items():
        try:
            dataset = open_dataset(name, root, download=download)
        except MissingDataError as error:
            missing.append(str(error))
        except SynthClipError as error:
            failed.append(str(error))
        else:
            datasets[name] = dataset, evaluators or able_evaluators(dataset)
    if not datasets:
        lines = failed + missing
        close = "" if suite in SUITES else did_you_mean(suite, SUITES)
        of = f"none of the suite's {len(lines)} data sets can be used: " if len(lines) > 1 else ""
        raise SynthClipError(f"{of}{lines[0]}{close}")
    return Suite(datasets, tuple(missing), tuple(failed))


def evaluate(
    model: str | Path,
    suite: str = "paper",
    *,
    data: str | Path,
    out: str | Path | None = None,
    cache: str | Path | None = None,
    download: bool = False,
    batch_size: int = 64,
    settings: Settings | None = None,
    tasks: Tasks | None = None,
    make_features: Callable[..., Features] = Features,
) -> SuiteResult:
    """Evaluate a model on public data sets and write its tables.

    `model` is whatever `load_model` takes, `suite` one of `SUITES` or data sets with commas between them,
    `data` the folder that holds them. The tables go to `<out>/suites/<suite>/`, where `out` is the run itself
    if the model is a run, else `evaluations/<checkpoint>`. Features are kept below `cache`, so that a second
    evaluation of the same model and images encodes nothing. `tasks` shows the progress. `make_features` may
    share the work with other processes; the tables are then those of the process that writes.

    Raises SynthClipError where there is no such model, or none of the data sets can be evaluated.
    """
    opened = open_suite(suite, Path(data), download=download)
    result = SuiteResult(missing=list(opened.missing), failed=list(opened.failed))
    tasks = tasks or Tasks()
    folder = Path(cache) if cache else cache_folder() / "features"
    features = make_features(str(model), folder, batch_size=batch_size, progress=tasks.update)
    for name, (dataset, evaluators) in opened.datasets.items():
        for evaluator in evaluators:
            tasks.begin(f"{name} {evaluator}")
            try:
                found = EVALUATORS[evaluator](features, dataset, settings or Settings())
            except SynthClipError as error:
                result.failed.append(f"{name}, {evaluator}: {error}")
            else:
                result.add(name, found, features.checkpoint)
                result.notes += (f"{name}: {note}" for note in found.notes)
        result.notes += _notes(name, dataset, result.unreadable.get(name, {}))
    if not result.results:
        raise SynthClipError(f"none of the suite's tasks could be evaluated: {result.failed[0]}")
    if out is None:
        is_run = (Path(model) / "recipe.yaml").is_file()
        out = model if is_run else Path("evaluations") / features.checkpoint
    if features.writes:
        result.files = _write(Path(out), suite, features.checkpoint, result)
    return result


def _notes(name: str, dataset: DataSet, unreadable: Iterable[str]) -> list[str]:
    notes, names = [f"{name}: {note}" for note in dataset.notes], list(unreadable)
    if names:
        notes.append(f"{name}: {len(names)} images cannot be read and are left out ({some(names)})")
    usual = KNOWN[name].test_images if name in KNOWN else None
    pictures = test_pictures(dataset)
    if usual is not None and len(pictures) != usual:
        notes.append(
            f"{name}: {len(pictures)} test images, not the usual {usual}: "
            "not comparable with published results"
        )
    return notes


def _write(out: Path, suite: str, checkpoint: str, result: SuiteResult) -> Path:
    name = re.sub(r"[^\w.+=-]+", "-", suite.replace(",", "+")).strip(".")
    if len(name) > _MAX_NAME:
        name = f"{name[:_MAX_NAME]}-{digest(suite)[:8]}"
    with RunDirectory(out).begin(ON_PUBLIC_DATA, name, digest(suite, checkpoint)) as writer:
        result.write(writer, f"{name}/")
        notes = {"warnings": result.notes} if result.notes else {}
        writer.commit(Outcome(len(result.results), notes=notes))
    return RunDirectory(out).file(ON_PUBLIC_DATA, name)
