"""The order of the stages, and which of them a changed recipe makes stale."""

import contextlib
import gc
import importlib
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import synthclip
from synthclip.errors import SynthClipError, last_line
from synthclip.recipe import RECIPE_FILE, Recipe, load_recipe, load_saved_recipe, saved_recipe_name
from synthclip.recipe.section import differences
from synthclip.run.durable import disk_errors, is_partial, rejected_by_reason
from synthclip.run.engine import Done, Progress, Shard, build_engine
from synthclip.run.live import activity, holder, machine
from synthclip.run.preflight import refuse_missing_packages, refuse_untrusted
from synthclip.run.progress import Console
from synthclip.run.sharing import link
from synthclip.run.stage import Stage, StageLoad, StageState, Status, tokens_spent
from synthclip.run.store import LOGS, Manifest, RunDirectory

STAGES = {
    "concepts": "synthclip.textgen.concepts:Concepts",
    "captions": "synthclip.textgen.captions:Captions",
    "match": "synthclip.textgen.match:Match",
    "balance": "synthclip.textgen.balance:Balance",
    "images": "synthclip.imagegen:Images",
    "teacher": "synthclip.training.teacher:Teacher",
    "train": "synthclip.training:Train",
    "eval": "synthclip.evaluation:Eval",
    "report": "synthclip.report:Report",
}
"""Every stage, in order, and where it is written."""

_SHORT = 40
"""Characters that are shown of a value."""


def run(
    recipe: Recipe | str | Path,
    out: Path | str,
    *,
    stages: Sequence[str] = tuple(STAGES),
    console: Console | None = None,
    trust: bool = False,
    reuse: Sequence[Path] = (),
) -> RunDirectory:
    """Bring the given stages of the run in `out` up to date with the recipe; finished shards are skipped.

    What one of the runs in `reuse` holds already, made of just the same, is linked from there.
    A recipe given by its name or path is loaded as by `load_recipe`, with `trust`.
    Raises SynthClipError where `out` holds another recipe or something else, is in use, or lacks what the
    given stages read.
    """
    console = console or Console()
    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe, trust=trust)
    refuse_untrusted(recipe)
    directory = RunDirectory(out)
    refuse_foreign(directory, recipe)
    with directory.lock(), directory.cached_manifests():
        donors = [RunDirectory(path) for path in reuse]
        directory.write_text(RECIPE_FILE, recipe.to_yaml())
        states = {state.stage: state for state in survey(recipe, directory)}
        if not states.keys() & set(stages):
            raise SynthClipError(f"{directory.path}: its recipe has no stage {', '.join(stages)}")
        stages = [name for name in stages if name in states]
        _refuse_stale_inputs(states, stages, recipe, directory)
        selected = [state for state in states.values() if state.stage in stages]
        todo = [state.stage for state in selected if state.state != "current"]
        refuse_missing_packages(recipe, todo)
        check(recipe, directory, todo)
        console.plan(selected)
        for note in (note for name in todo for note in build_stage(name, recipe, directory).notes()):
            console.line(note)
        changed: set[str] = set()
        checked: set[tuple[str, str]] = set()  # (stage, shard) whose files are known to be as written
        for name in stages:
            stage, state = build_stage(name, recipe, directory), states[name]
            if state.shards is None or changed.intersection(stage.reads):
                state = _compare(stage, stage.shards(), _changes(stage))
            if _bring_up_to_date(stage, state, console, checked, donors):
                changed.add(name)
            manifests = directory.manifests(name)
            stage.finish(manifests)
            _refuse_empty(stage, manifests)
    return directory


def check(recipe: Recipe, directory: RunDirectory, stages: Sequence[str] = tuple(STAGES)) -> None:
    """Raise SynthClipError where one of the stages can be known not to work."""
    for name in stages:
        build_stage(name, recipe, directory).check()


def update(stage: Stage, console: Console) -> list[Manifest]:
    """Bring one stage up to date, whatever it belongs to; the manifests of its shards.

    Called with the lock of its directory held.
    """
    _bring_up_to_date(stage, _compare(stage, stage.shards(), _changes(stage)), console, set(), ())
    return stage.run.manifests(stage.name)


def status(out: RunDirectory | Path | str, recipe: Recipe | None = None, *, trust: bool = False) -> Status:
    """The state of the run in `out`, compared with its own recipe or a given one.

    Raises SynthClipError where `out` is no run directory, one of another version, or its recipe names
    code that only `trust` allows.
    """
    directory = out if isinstance(out, RunDirectory) else RunDirectory(out)
    directory.check_version()
    recipe = recipe or load_saved_recipe(directory.path, trust=trust)
    seconds: dict[str, float] = {}
    failed: dict[str, list[dict[str, Any]]] = {}
    evaluated = error = None
    metrics = directory.metrics()
    at = activity(directory.path, metrics, time.time())
    tokens, looked = tokens_spent(metrics, "captions"), tokens_spent(metrics, "images")
    for line in metrics:
        event = line.pop("event", None)
        if event == "stage":
            seconds[line["stage"]] = line["seconds"]
            error = None if error and error["stage"] == line["stage"] else error
        elif event == "failed":
            failed.setdefault(line["stage"], []).append(line)
            error = line if line["final"] else error
        elif event == "eval":
            evaluated = {name: value for name, value in line.items() if name != "time"}
    with directory.cached_manifests():
        states = tuple(survey(recipe, directory))
    held = holder(directory.path)
    return Status(directory.path, states, seconds, evaluated, failed, tokens, looked, held, at, error)


def survey(recipe: Recipe, directory: RunDirectory) -> list[StageState]:
    """The state of every stage that the recipe has, in order."""
    with _collector_paused():
        return list(_survey(recipe, directory).values())


@contextlib.contextmanager
def _collector_paused() -> Iterator[None]:
    """Else Python's garbage collector walks all manifests and shards time and again: a fifth of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _survey(recipe: Recipe, directory: RunDirectory) -> dict[str, StageState]:
    states: dict[str, StageState] = {}
    reported: set[str] = set()
    for name in STAGES:
        stage = build_stage(name, recipe, directory)
        if not stage.wanted:
            continue
        waits_for = [read for read in stage.reads if not states[read].usable]
        changes = _changes(stage)
        # A stage that waits anyway does not repeat the changes of an earlier one.
        shown = [change for change in changes if not waits_for or change not in reported]
        states[name] = _state(stage, waits_for, shown)
        reported.update(changes)
    return states


def _state(stage: Stage, waits_for: Sequence[str], changes: Sequence[str]) -> StageState:
    there = tuple(stage.run.manifests(stage.name))
    if waits_for:
        reason = "; ".join([*changes, f"after {', '.join(waits_for)}"])
        return StageState(stage.name, "waiting" if there else "new", reason, manifests=there)
    try:
        shards = stage.shards()
    except SynthClipError as error:
        if not there:
            return StageState(stage.name, "new", str(error))
        if changes:
            return StageState(stage.name, "stale", "; ".join(changes))
        return StageState(stage.name, "unchecked", str(error), manifests=there)
    return _compare(stage, shards, changes)


def _compare(stage: Stage, shards: Sequence[Shard], changes: Sequence[str]) -> StageState:
    """The state of a stage that should consist of `shards`: current are those made of just what they would be
    made of now."""
    there = {manifest.shard: manifest for manifest in stage.run.manifests(stage.name)}
    missing = [
        shard.name
        for shard in shards
        if shard.name not in there or there[shard.name].fingerprint != stage.fingerprint(shard)
    ]
    current = {shard.name for shard in shards}.difference(missing)
    kept = tuple(there[shard.name] for shard in shards if shard.name in current)
    state: Literal["new", "current", "incomplete", "stale"] = "stale"
    count = f"{len(missing)} of {len(shards)} shards"
    if not missing:
        state, reason = "current", ""
    elif not there:
        state, reason = "new", ""
    elif changes:
        reason = "; ".join(changes)
    elif there.keys() & set(missing):
        reason = f"{count} made before {' or '.join(stage.reads) or 'the files it reads'} changed"
    else:
        shown = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
        state, reason = "incomplete", f"{count} missing: {shown}"
    return StageState(stage.name, state, reason, shards, kept)


def _bring_up_to_date(
    stage: Stage,
    state: StageState,
    console: Console,
    checked: set[tuple[str, str]],
    donors: Sequence[RunDirectory],
) -> bool:
    """Make what is not current and remove what the stage no longer consists of; whether there was any."""
    directory, shards = stage.run, state.shards or ()
    current = {manifest.shard for manifest in state.manifests}
    todo = [shard for shard in shards if shard.name not in current]
    wanted = {shard.name for shard in shards}
    superfluous = [name for name in directory.shard_names(stage.name) if name not in wanted]
    if not todo and not superfluous:
        return False
    for name in superfluous:
        directory.remove(stage.name, name)
    _remove_stale_partials(stage, todo)
    directory.write_stage_values(stage.name, stage.values)
    linked = link(stage, todo, donors)
    if linked:
        console.line(f"{stage.name:9} {len(linked)} of {len(shards)} shards linked from another run")
        todo = [shard for shard in todo if shard.name not in linked]
    if todo or not linked:
        _make(stage, todo, len(shards), console, checked)
    directory.record(LOGS)
    return True


def _make(
    stage: Stage, todo: Sequence[Shard], total: int, console: Console, checked: set[tuple[str, str]]
) -> None:
    started = time.monotonic()
    if todo:
        _refuse_damaged_inputs(stage, checked)
        stage.prepare()
    where = {"version": synthclip.__version__, "machine": machine(stage.recipe.engine.kind)}
    stage.run.log(event="begin", stage=stage.name, shards=len(todo), total=total, **where)
    engine = build_engine(stage.recipe.engine)
    with console.stage(stage.name, todo, total) as bar:
        for event in engine.map(
            StageLoad(type(stage), stage.recipe, stage.run.path), todo, stage.resources()
        ):
            if isinstance(event, Progress):
                bar.progress(event)
                if event.note:
                    stage.run.log(event="note", stage=stage.name, shard=event.shard.name, note=event.note)
            elif isinstance(event, Done):
                stage.run.reload(stage.name, event.shard.name)
                checked.add((stage.name, event.shard.name))
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


def _refuse_empty(stage: Stage, manifests: Sequence[Manifest]) -> None:
    """Stop at a stage that made nothing, rather than at a later one that finds nothing to read."""
    if stage.may_be_empty or any(manifest.rows for manifest in manifests):
        return
    top = rejected_by_reason(manifests).most_common(1)
    why = [f", most often refused as {reason!r} ({count})" for reason, count in top]
    raise SynthClipError(
        f"{stage.run.path}: stage {stage.name!r} made no row{''.join(why)}: see {stage.name}/rejected there, "
        f"and check the recipe's {' and '.join(stage.sections)}"
    )


def _refuse_damaged_inputs(stage: Stage, checked: set[tuple[str, str]]) -> None:
    """Compare what the stage will read with its checksums, so that nothing is made from damaged files.

    Tars are left to training, which compares each picture with the SHA-256 in its shard's sidecar. Shards in
    `checked` are skipped.
    """
    directory = stage.run
    for read in stage.reads:
        for manifest in directory.manifests(read):
            if (read, manifest.shard) in checked:
                continue
            for path, problem in manifest.damaged(directory.stage(read), skip=".tar"):
                raise SynthClipError(
                    f"{directory.file(read, path)}: {problem}: "
                    f"run `synthclip verify {directory.path} --repair`"
                )
            checked.add((read, manifest.shard))


def _remove_stale_partials(stage: Stage, todo: Sequence[Shard]) -> None:
    there = list(stage.run.stage(stage.name).glob("partial/*"))
    keep = {stage.partial(shard).name for shard in todo} if there else set[str]()
    for path in there:
        if path.name not in keep:
            shutil.rmtree(path, ignore_errors=True)


def refuse_foreign(directory: RunDirectory, recipe: Recipe) -> None:
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
    # A run killed at its very first write has left no more than these.
    others = sorted(one.name for one in path.iterdir() if one.name != ".lock" and not is_partial(one.name))
    if others:
        raise SynthClipError(
            f"{path}: not empty ({others[0]!r}, …) and no run directory: choose another --out"
        )


def _refuse_stale_inputs(
    states: Mapping[str, StageState], stages: Sequence[str], recipe: Recipe, directory: RunDirectory
) -> None:
    """A stage run by itself never brings up to date what it reads: it says what to run."""
    for name in stages:
        for read in build_stage(name, recipe, directory).reads:
            if read not in stages and not states[read].usable:
                reason = f" ({states[read].reason})" if states[read].reason else ""
                raise SynthClipError(
                    f"{directory.path}: stage {name!r} reads {read!r}, which is "
                    f"{states[read].state}{reason}: run `synthclip {read}` first, or `synthclip run` for all"
                )


def _changes(stage: Stage) -> list[str]:
    """`dotted.key: old -> new` for every recipe value that has changed since the stage was made."""
    if not stage.run.manifests(stage.name):
        return []
    saved = stage.run.stage_values(stage.name)
    return [f"{key}: {_short(old, new)}" for key, old, new in differences(saved, stage.values)]


def _short(*values: Any) -> str:
    """`old -> new`, of long texts the part from a little before their first difference."""
    texts = [str(value) for value in values]
    start = 0
    if max(map(len, texts)) > _SHORT:
        pairs = enumerate(zip(*texts, strict=False))
        same = next((at for at, (*letters,) in pairs if len(set(letters)) > 1), min(map(len, texts)))
        start = max(0, same - _SHORT // 2)
    cut = [f"{'…' if start else ''}{text[start:]}" for text in texts]
    return " -> ".join(text if len(text) <= _SHORT else text[: _SHORT - 1] + "…" for text in cut)


def _class(name: str) -> type[Stage]:
    module, _, cls = STAGES[name].partition(":")
    found: type[Stage] = getattr(importlib.import_module(module), cls)
    return found


def build_stage(name: str, recipe: Recipe, directory: RunDirectory) -> Stage:
    """A stage of the pipeline, by its name."""
    return _class(name)(recipe, directory)
