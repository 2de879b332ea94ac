"""Compares every file of a run with the checksum that was recorded when it was written."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from synthclip.errors import SynthClipError
from synthclip.keys import sha256_of
from synthclip.recipe import RECIPE_FILE, load_recipe
from synthclip.run.durable import read_lines, replace_text, seal, stays_inside, to_line
from synthclip.run.pipeline import STAGES, build_stage, run
from synthclip.run.progress import Console, Tasks
from synthclip.run.store import CHECKSUMS, LOGS, METRICS, RunDirectory


@dataclass(frozen=True)
class Damage:
    """A file that is not what was written."""

    path: str
    """Relative to the run."""
    problem: str
    stage: str | None = None
    shard: str | None = None
    """The shard that it belongs to, None for a file of the run or of the whole stage."""


def verify(out: Path | str, tasks: Tasks | None = None) -> list[Damage]:
    """Read every file that a run recorded; what differs from its record, in the order of the paths.

    Raises SynthClipError where `out` is no run directory, or one of another version.
    """
    directory = RunDirectory(out)
    if not (directory.path / RECIPE_FILE).is_file() and not list(directory.path.glob("*/manifests")):
        raise SynthClipError(f"{directory.path}: not a run directory: it holds no {RECIPE_FILE}")
    directory.check_version()
    found = [*_damaged_small_files(directory), *_damaged_shards(directory, tasks or Tasks())]
    return sorted(found, key=lambda damage: damage.path)


def repair(out: Path | str, damaged: list[Damage], console: Console, *, trust: bool = False) -> None:
    """Make the shards of damaged files again, and what else a run can write again.

    `trust` is that of `load_recipe`. Raises SynthClipError where something cannot be made again, such as the
    recipe.
    """
    directory = RunDirectory(out)
    if any(damage.path == RECIPE_FILE for damage in damaged):
        raise SynthClipError(
            f"{directory.path / RECIPE_FILE}: damaged or edited, and there is no copy: run "
            f"`synthclip run RECIPE --out {directory.path}` with the recipe it was made from, then repair"
        )
    recipe = load_recipe(directory.path, trust=trust)
    with directory.lock():
        paths = {damage.path for damage in damaged}
        for stage, shard in dict.fromkeys((damage.stage, damage.shard) for damage in damaged):
            if shard and stage in STAGES:
                directory.remove(str(stage), shard)
        for stage in STAGES:
            if f"{stage}/stage.json" in paths:
                directory.write_stage_values(stage, build_stage(stage, recipe, directory).values)
        if METRICS in paths:
            lines = read_lines(directory.path / METRICS)[0]
            replace_text(directory.path / METRICS, "".join(to_line(line) for line in lines))
        if any(path.startswith(f"{LOGS}/") for path in paths):  # nothing is made from them
            directory.record(LOGS)
        if CHECKSUMS in paths:
            replace_text(directory.path / CHECKSUMS, seal(_small_files(directory)))
    stages = [stage for stage in STAGES if any(damage.stage == stage for damage in damaged)]
    there = [stage for stage in STAGES if stage in stages or directory.shard_names(stage)]
    if stages and all(damage.stage for damage in damaged):
        there = there[there.index(stages[0]) : there.index(stages[-1]) + 1]
    # Else a file beside the stages: whichever wrote it writes it again when nothing else is to do.
    run(recipe, directory.path, stages=there, console=console)
    if left := verify(out):
        raise SynthClipError(
            f"{directory.path / left[0].path}: {left[0].problem}: no stage makes it, remove or restore it"
        )


def _damaged_small_files(directory: RunDirectory) -> Iterator[Damage]:
    checksums = directory.checksums()
    if checksums is None:
        yield Damage(CHECKSUMS, "damaged or missing")
    for path, checksum in (checksums or {}).items():
        found = directory.path / path
        if not stays_inside(path) or not found.is_file() or sha256_of(found) != checksum:
            stage = path.partition("/")[0]
            yield Damage(path, "not what was written last", stage if stage in STAGES else None)
    for number in read_lines(directory.path / METRICS)[1]:
        yield Damage(METRICS, f"line {number} is damaged")


def _small_files(directory: RunDirectory) -> dict[str, str]:
    """The checksum of every file that no manifest covers."""
    root = directory.path
    covered = {METRICS, CHECKSUMS, ".lock"}
    for folder in root.glob("*/manifests"):
        stage = folder.parent.name
        manifests = (directory.read_manifest(stage, shard) for shard in directory.shard_names(stage))
        covered |= {f"{stage}/{entry.path}" for one in manifests if one for entry in one.files}
    paths = (path.relative_to(root) for path in sorted(root.rglob("*")) if path.is_file())
    return {
        path.as_posix(): sha256_of(root / path)
        for path in paths
        if path.as_posix() not in covered and not {"manifests", "partial"} & set(path.parts)
    }


def _damaged_shards(directory: RunDirectory, tasks: Tasks) -> Iterator[Damage]:
    for folder in sorted(path.parent for path in directory.path.glob("*/manifests")):
        stage = folder.name
        tasks.begin(stage)
        shards = directory.shard_names(stage)
        for done, shard in enumerate(shards, 1):
            manifest = directory.read_manifest(stage, shard)
            if manifest is None:
                yield Damage(f"{stage}/manifests/{shard}.json", "damaged", stage, shard)
            else:
                for path, problem in manifest.damaged(folder):
                    yield Damage(f"{stage}/{path}", problem, stage, shard)
            tasks.update(done, len(shards))
