"""The runs of a sweep: each an ordinary run directory, what they share made once; all judged alike."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from synthclip.errors import SynthClipError, last_line
from synthclip.evaluation.suites import open_suite
from synthclip.plan import Plan, make_plan
from synthclip.recipe import Recipe
from synthclip.run.durable import is_partial
from synthclip.run.engine.worker import exported
from synthclip.run.pipeline import check, run, update
from synthclip.run.preflight import refuse_missing_packages
from synthclip.run.progress import Console
from synthclip.run.store import Manifest, RunDirectory
from synthclip.sweeps.judge import PIXELS, UNTRAINED, Judge, questions
from synthclip.sweeps.variants import Run, Sweep, runs_of
from synthclip.training import Train
from synthclip.training.flops import Devices, devices_here

FILE = "sweep.yaml"
"""What a sweep's directory was asked last."""
_WANDB_GROUP = "WANDB_RUN_GROUP"
_DATA = ("concepts", "captions", "match", "balance", "images")
_STAGES = (*_DATA, "teacher", "train")


@dataclass(frozen=True)
class Swept:
    """What came of a sweep."""

    sweep: Sweep
    directory: RunDirectory
    runs: tuple[Run, ...]
    failed: Mapping[str, str]
    """By the run's name why it, or its evaluation, came to nothing."""
    judged: tuple[Manifest, ...]
    """The figures of each model: shards of the stage `judged`, named as the runs."""
    baselines: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """The shards of the baselines that are no variants, by name."""

    def path(self, run: Run) -> Path:
        """The run's directory."""
        return self.directory.path / "runs" / run.name


def sweep(
    asked: Sweep,
    out: Path | str,
    *,
    console: Console | None = None,
    devices: Devices | None = None,
    trust: bool = False,
) -> Swept:
    """Bring every run of a sweep up to date, and judge all models alike; what is there is not made again.

    A run that fails does not stop the others. `devices` are those that `equal: cost` is estimated for.
    Raises SynthClipError before anything is made where a variant is known not to work.
    """
    console, directory = console or Console(), RunDirectory(out)
    runs = runs_of(asked, trust=trust)
    _refuse_foreign(directory.path)
    _refuse_what_cannot_work(asked, runs, directory.path)
    same = _Equal(asked, runs, devices or devices_here())
    # wandb shows the runs as one group.
    group = {_WANDB_GROUP: os.environ.get(_WANDB_GROUP) or directory.path.name}
    with directory.lock(), exported(group):
        directory.write_text(FILE, asked.to_yaml())
        paths = {one.name: directory.path / "runs" / one.name for one in runs}
        failed: dict[str, str] = {}
        for number, one in enumerate(runs, 1):
            console.line(f"{one.name} ({number} of {len(runs)})")
            others = [path for name, path in paths.items() if name != one.name and path.is_dir()]
            try:
                recipe = same.recipe(one, paths, others, console)
                run(recipe, paths[one.name], stages=_STAGES, console=console, reuse=others)
            except Exception as error:
                failed[one.name] = last_line(error)
                directory.log(event="failed", run=one.name, error=failed[one.name])
                console.line(f"{one.name}: {failed[one.name]}")
        return _judged(asked, directory, runs, paths, failed, console)


def _judged(
    asked: Sweep,
    directory: RunDirectory,
    runs: Sequence[Run],
    paths: Mapping[str, Path],
    failed: dict[str, str],
    console: Console,
) -> Swept:
    first = {one.variant: paths[one.name] for one in reversed(runs) if one.name not in failed}
    of_base = [one for one in runs if one.variant == asked.base_name]
    models = {one.name: (str(paths[one.name]), paths[one.name]) for one in runs if one.name not in failed}
    baselines: dict[str, list[str]] = {}
    if UNTRAINED in asked.baselines:
        there = [one for one in of_base if one.name not in failed and not one.data_seed]
        models |= {f"{UNTRAINED}.s{one.seed}": (UNTRAINED, paths[one.name]) for one in there}
        baselines[UNTRAINED] = [f"{UNTRAINED}.s{one.seed}" for one in there]
    if PIXELS in asked.baselines and asked.base_name in first:
        models[PIXELS] = (PIXELS, first[asked.base_name])
        baselines[PIXELS] = [PIXELS]
    if asked.base_name not in first:
        failed |= dict.fromkeys(models, "not judged: the base, whose held-out set judges all, failed")
        return Swept(asked, directory, tuple(runs), failed, ())
    heldout: list[tuple[str | None, Path]] = [(None, first[asked.base_name])]
    heldout += [(name, first[name]) for name in asked.judges if name in first and name != asked.base_name]
    judge = Judge(of_base[0].recipe, directory)
    judge.asked = questions(models, heldout, asked.suite, asked.data)
    manifests = update(judge, console)
    return Swept(asked, directory, tuple(runs), failed, tuple(manifests), baselines)


class _Equal:
    """What every variant has in common with the base."""

    def __init__(self, asked: Sweep, runs: Sequence[Run], devices: Devices) -> None:
        self._kind = asked.equal
        self._base = {one.data_seed: one for one in runs if one.variant == asked.base_name and not one.seed}
        self._pairs: dict[str, float] = {}
        if asked.equal == "cost":
            costs = {one.variant: make_plan(one.recipe, devices) for one in runs}
            self._pairs = pairs_of_equal_cost(costs, costs[asked.base_name], {o.variant: o for o in runs})

    def recipe(self, one: Run, paths: Mapping[str, Path], reuse: Sequence[Path], console: Console) -> Recipe:
        """The run's recipe; where samples or cost are equal, with epochs that make them so."""
        base = self._base[one.data_seed]
        if self._kind == "epochs" or one.variant == base.variant:
            return one.recipe
        run(one.recipe, paths[one.name], stages=_DATA, console=console, reuse=reuse)
        config, batches = one.recipe.training, _steps_per_epoch(one.recipe, paths[one.name])
        if self._kind == "cost":
            pairs = self._pairs[one.variant]
        else:
            steps = int(base.recipe.training.epochs * _steps_per_epoch(base.recipe, paths[base.name]))
            pairs = steps * base.recipe.training.batch_size
        return with_epochs(one.recipe, (int(pairs // config.batch_size) + 0.5) / batches)


def with_epochs(recipe: Recipe, epochs: float) -> Recipe:
    """The recipe with other epochs: its warm-up and its evaluations keep their share of the training."""
    config = recipe.training
    scale = epochs / config.epochs
    every = config.eval.every_epochs
    evaluated = config.eval.model_copy(update={"every_epochs": None if every is None else every * scale})
    warmup = config.warmup_epochs * scale
    changed = {"epochs": epochs, "warmup_epochs": warmup, "eval": evaluated}
    return recipe.model_copy(update={"training": config.model_copy(update=changed)})


def _steps_per_epoch(recipe: Recipe, path: Path) -> int:
    stage = Train(recipe, RunDirectory(path))
    steps = stage.steps_per_epoch()
    if not steps:
        raise SynthClipError(f"{path}: fewer pairs than training.batch_size={recipe.training.batch_size}")
    return steps


def pairs_of_equal_cost(plans: Mapping[str, Plan], base: Plan, runs: Mapping[str, Run]) -> dict[str, float]:
    """For each variant the pairs that training may see, so that it costs what the base costs in all."""

    def seconds(plan: Plan, *stages: str) -> float:
        return sum(stage.device_s for stage in plan.stages if stage.stage in stages)

    before = ("captions", "images", "teacher")
    budget = seconds(base, *before, "train")
    pairs = {}
    for name, plan in plans.items():
        left = budget - seconds(plan, *before)
        pairs[name] = left / seconds(plan, "train") * plan.epochs * plan.pairs
        if pairs[name] < runs[name].recipe.training.batch_size:
            raise SynthClipError(
                f"variant {name!r}: what comes before its training alone costs as much as the base "
                f"({seconds(plan, *before) / 3600:.3g} of {budget / 3600:.3g} device-hours): "
                "leave it out, or compare equal samples"
            )
    return pairs


def _refuse_what_cannot_work(asked: Sweep, runs: Sequence[Run], out: Path) -> None:
    """Raise SynthClipError with a line for each variant that is known not to work."""
    problems = []
    for one in runs:
        if one.replicate == (0, 0):
            try:
                refuse_missing_packages(one.recipe, (*_STAGES, "eval"))
                check(one.recipe, RunDirectory(out / "runs" / one.name), _STAGES)
            except SynthClipError as error:
                problems += [f"variant {one.variant!r}: {line}" for line in str(error).splitlines()]
    if asked.suite:
        opened = open_suite(",".join(asked.suite), Path(asked.data or "").expanduser())
        problems += [*opened.missing, *opened.failed]
        able = [name for _, names in opened.datasets.values() for name in names]
        if PIXELS in asked.baselines and "linear_probe" not in able:
            problems.append("the baseline pixels needs a data set with a training split: name one in suite")
    if problems:
        raise SynthClipError("\n".join(problems))


def _refuse_foreign(path: Path) -> None:
    if path.is_file():
        raise SynthClipError(f"{path}: a file stands there: choose another --out")
    there = [one.name for one in path.iterdir() if one.name != ".lock"] if path.is_dir() else []
    others = sorted(name for name in there if not is_partial(name))
    if others and FILE not in others:
        raise SynthClipError(f"{path}: not empty ({others[0]!r}, …) and no sweep: choose another --out")
