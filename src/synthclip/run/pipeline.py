"""The order of the stages, and which of them a changed recipe makes stale."""

import importlib
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from synthclip.errors import SynthClipError
from synthclip.recipe import RECIPE_FILE, Recipe, load_saved_recipe, saved_recipe_name
from synthclip.recipe.section import differences
from synthclip.run.engine import Done, Progress, Shard, build_engine
from synthclip.run.preflight import refuse_missing_packages
from synthclip.run.progress import Console, last_line
from synthclip.run.stage import Stage, StageLoad, StageState, Status
from synthclip.run.store import Manifest, RunDirectory, disk_errors

STAGES = {
    "concepts": "synthclip.textgen.concepts:Concepts",
    "captions": "synthclip.textgen.captions:Captions",
    "match": "synthclip.textgen.match:Match",
    "balance": "synthclip.textgen.balance:Balance",
    "images": "synthclip.imagegen:Images",
    "train": "synthclip.training.stage:Train",
    "eval": "synthclip.evaluation.stage:Eval",
    "report": "synthclip.report:Report",
}
"""Every stage, in order, and where it is written."""


def run(
    recipe: Recipe,
    out: Path | str,
    *,
    stages: Sequence[str] = tuple(STAGES),
    console: Console | None = None,
) -> RunDirectory:
    """Bring the given stages of the run in `out` up to date with the recipe; nothing current is made again.

    Raises SynthClipError where `out` holds another recipe or something else, is in use, or lacks what the
    given stages read.
    """
    console = console or Console()
    directory = RunDirectory(out)
    _refuse_foreign(directory, recipe)
    with directory.lock():
        directory.write_text(RECIPE_FILE, recipe.to_yaml())
        states = survey(recipe, directory)
        _refuse_stale_inputs(states, stages, directory)
        todo = [state.stage for state in states if state.stage in stages and state.state != "current"]
        refuse_missing_packages(recipe, todo)
        console.plan([state for state in states if state.stage in stages])
        for name in stages:
            _bring_up_to_date(_stage(name, recipe, directory), console)
    return directory


def status(out: Path | str, recipe: Recipe | None = None) -> Status:
    """How the run in `out` stands against its own recipe, or a given one.

    Raises SynthClipError where `out` is no run directory.
    """
    directory = RunDirectory(out)
    recipe = recipe or load_saved_recipe(directory.path)
    seconds: dict[str, float] = {}
    failed: dict[str, list[dict[str, Any]]] = {}
    evaluated = None
    for line in directory.metrics():
        event = line.pop("event", None)
        if event == "stage":
            seconds[line["stage"]] = line["seconds"]
        elif event == "failed":
            failed.setdefault(line["stage"], []).append(line)
        elif event == "eval":
            evaluated = {name: value for name, value in line.items() if name != "time"}
    return Status(directory.path, tuple(survey(recipe, directory)), seconds, evaluated, failed)


def survey(recipe: Recipe, directory: RunDirectory) -> list[StageState]:
    """The state of every stage, in order."""
    states: dict[str, StageState] = {}
    told: set[str] = set()
    for name in STAGES:
        stage = _stage(name, recipe, directory)
        blocked = [read for read in stage.reads if not states[read].usable]
        changes = _changes(stage) if directory.manifests(name) else []
        # What waits anyway repeats no change that an earlier stage has told.
        states[name] = _state(stage, blocked, [one for one in changes if not blocked or one not in told])
        told.update(changes)
    return list(states.values())


def _state(stage: Stage, blocked: Sequence[str], changes: Sequence[str]) -> StageState:
    whole = stage.run.manifests(stage.name)
    if blocked:
        reason = "; ".join([*changes, f"after {', '.join(blocked)}"])
        state: Literal["new", "waiting"] = "waiting" if whole else "new"
        return StageState(stage.name, state, reason, manifests=tuple(whole))
    try:
        shards = stage.shards()
    except SynthClipError as error:
        if not whole:
            return StageState(stage.name, "new", str(error))
        if changes:
            return StageState(stage.name, "stale", "; ".join(changes))
        return StageState(stage.name, "unchecked", str(error), manifests=tuple(whole))
    current = _current(stage, shards, whole)
    if len(current) == len(shards):
        return StageState(stage.name, "current", "", len(shards), tuple(current.values()))
    if not whole:
        return StageState(stage.name, "new", "", len(shards))
    kept = tuple(current.values())
    if changes:
        return StageState(stage.name, "stale", "; ".join(changes), len(shards), kept)
    names = [shard.name for shard in shards if shard.name not in current]
    of = f"{len(names)} of {len(shards)} shards"
    there = {manifest.shard for manifest in whole}
    if any(name in there for name in names):
        reads = " or ".join(stage.reads) or "the files it reads"
        return StageState(stage.name, "stale", f"{of} made before {reads} changed", len(shards), kept)
    shown = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
    return StageState(stage.name, "incomplete", f"{of} missing: {shown}", len(shards), kept)


def _current(stage: Stage, shards: Sequence[Shard], whole: Sequence[Manifest]) -> dict[str, Manifest]:
    """The shards that are whole and made of just what they would be made of now."""
    by_name = {manifest.shard: manifest for manifest in whole}
    return {
        shard.name: by_name[shard.name]
        for shard in shards
        if shard.name in by_name and by_name[shard.name].fingerprint == stage.fingerprint(shard)
    }


def _bring_up_to_date(stage: Stage, console: Console) -> None:
    directory = stage.run
    shards = stage.shards()
    whole = directory.manifests(stage.name)
    current = _current(stage, shards, whole)
    todo = [shard for shard in shards if shard.name not in current]
    wanted = {shard.name for shard in shards}
    superfluous = [manifest for manifest in whole if manifest.shard not in wanted]
    if todo or superfluous:
        for manifest in superfluous:
            directory.remove(stage.name, manifest)
        _drop_stale_partials(stage, todo)
        directory.write_json(f"{stage.name}/stage.json", stage.values)
        _make(stage, todo, len(shards), console)
        whole = directory.manifests(stage.name)
    stage.finish(whole)


def _make(stage: Stage, todo: Sequence[Shard], total: int, console: Console) -> None:
    started = time.monotonic()
    if todo:
        stage.prepare()
    engine = build_engine(stage.recipe.engine)
    with console.stage(stage.name, todo, total) as bar:
        for event in engine.map(
            StageLoad(type(stage), stage.recipe, stage.run.path), todo, stage.resources()
        ):
            if isinstance(event, Progress):
                bar.progress(event)
            elif isinstance(event, Done):
                bar.done(event)
                stage.run.log(
                    event="shard",
                    stage=stage.name,
                    shard=event.shard.name,
                    rows=event.outcome.rows,
                    rejected=dict(event.outcome.rejected),
                    seconds=round(event.seconds, 3),
                )
            else:
                bar.failed(event)
                stage.run.log(
                    event="failed",
                    stage=stage.name,
                    shard=event.shard.name,
                    attempt=event.attempt,
                    final=event.final,
                    error=last_line(event.error),
                )
    seconds = round(time.monotonic() - started, 3)
    stage.run.log(event="stage", stage=stage.name, shards=len(todo), seconds=seconds)


def _drop_stale_partials(stage: Stage, todo: Sequence[Shard]) -> None:
    keep = {stage.partial(shard).name for shard in todo}
    for path in stage.run.stage(stage.name).glob("partial/*"):
        if path.name not in keep:
            shutil.rmtree(path, ignore_errors=True)


def _refuse_foreign(directory: RunDirectory, recipe: Recipe) -> None:
    path = directory.path
    with disk_errors(path):
        if not path.exists():
            return
    if not path.is_dir():
        raise SynthClipError(f"{path}: a file stands there: choose another --out")
    held = saved_recipe_name(path)
    if held == recipe.name:
        return
    if held is not None:
        raise SynthClipError(
            f"{path}: holds a run of recipe {held!r}, not of {recipe.name!r}: choose another --out"
        )
    others = sorted(entry.name for entry in path.iterdir() if entry.name != ".lock")
    if others:
        raise SynthClipError(
            f"{path}: not empty ({others[0]!r}, …) and no run directory: choose another --out"
        )


def _refuse_stale_inputs(
    states: Sequence[StageState], stages: Sequence[str], directory: RunDirectory
) -> None:
    """A stage run by itself never brings up to date what it reads: it says what to run."""
    by_name = {state.stage: state for state in states}
    for name in stages:
        for read in _class(name).reads:
            if read not in stages and not by_name[read].usable:
                told = by_name[read].reason
                raise SynthClipError(
                    f"{directory.path}: stage {name!r} reads {read!r}, which is "
                    f"{by_name[read].state}{f' ({told})' if told else ''}: run `synthclip {read}` first, "
                    "or `synthclip run` for all"
                )


def _changes(stage: Stage) -> list[str]:
    """`dotted.key: old -> new` for every recipe value that the stage was made with another of."""
    saved = stage.run.read_json(f"{stage.name}/stage.json") or {}
    return [f"{key}: {_short(old)} -> {_short(new)}" for key, old, new in differences(saved, stage.values)]


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:37] + "…"


def _class(name: str) -> type[Stage]:
    module, _, cls = STAGES[name].partition(":")
    found: type[Stage] = getattr(importlib.import_module(module), cls)
    return found


def _stage(name: str, recipe: Recipe, directory: RunDirectory) -> Stage:
    return _class(name)(recipe, directory)
