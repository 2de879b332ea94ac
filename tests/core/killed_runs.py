"""Runs of the small pipeline that are killed at an operation on files, or at a moment, and then finished.

    python killed_runs.py FOLDER KILLS MOMENTS

Each run is a fork of this process, which imports everything first. Prints a line of JSON.
"""

import json
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import small_stages

from synthclip.recipe import Recipe, load_recipe
from synthclip.run import pipeline
from synthclip.run.progress import Console

OPERATIONS = {
    "open",
    "os.mkdir",
    "os.remove",
    "os.rename",
    "os.rmdir",
    "shutil.rmtree",
    "os.listdir",
    "os.scandir",
}
BEFORE = ["captions.per_concept=3"]
AFTER = ["captions.per_concept=2", "seed=1", "balance.t=5"]


def run(out: Path, recipe: Recipe) -> None:
    with Path(os.devnull).open("w") as nowhere:
        pipeline.run(recipe, out, stages=tuple(small_stages.STAGES), console=Console(nowhere))


def forked(work: Callable[[], None], kill_after_s: float | None = None) -> int:
    """Do the work in a child; its exit status, negative for a signal."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        except BaseException as error:
            print(error, file=sys.stderr)
            os._exit(1)
    if kill_after_s is not None:
        time.sleep(kill_after_s)
        os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def counting(out: Path, recipe: Recipe, kill_at: int, counted: Path | None = None) -> Callable[[], None]:
    """A run that is killed at its n-th operation on a file of the run, or that writes how many there were."""

    def work() -> None:
        count = 0

        def hook(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal count
            if event in OPERATIONS and any(str(argument).startswith(str(out)) for argument in arguments[:2]):
                count += 1
                if count == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        run(out, recipe)
        if counted is not None:
            counted.write_text(str(count))

    return work


def files(out: Path) -> dict[str, bytes]:
    """All files of a run; of the log, which holds times, and the lock, only the names."""
    found = (path for path in sorted(out.rglob("*")) if path.is_file())
    contents = {path.relative_to(out).as_posix(): path.read_bytes() for path in found}
    return contents | dict.fromkeys(contents.keys() & {"metrics.jsonl", ".lock"}, b"")


def main(folder: Path, kills: int, moments: int) -> None:
    pipeline.STAGES = small_stages.STAGES
    before, after = (load_recipe("demo", [*values, "engine.workers=0"]) for values in (BEFORE, AFTER))
    draw = random.Random(0)
    result = Counter(dict.fromkeys(["kills", "refused", "different", "stray", "missing"], 0))
    assert forked(partial(run, folder / "before", before)) == 0
    for start, recipe in ((None, before), (folder / "before", after)):
        result.update(killed(folder, start, recipe, kills // 2, moments // 2, draw))
    print(json.dumps(result))


def killed(
    folder: Path, start: Path | None, recipe: Recipe, kills: int, moments: int, draw: random.Random
) -> Counter[str]:
    """What came of runs in a new folder, or in a copy of `start`, that were killed and then finished."""
    expected, trial, counted = folder / f"expected-{recipe.seed}", folder / "trial", folder / "count"
    assert forked(partial(run, expected, recipe)) == 0
    wanted = files(expected)
    _prepare(trial, start)
    began = time.monotonic()
    assert forked(counting(trial, recipe, 0, counted)) == 0
    seconds = time.monotonic() - began
    operations = range(1, int(counted.read_text()) + 1)
    result: Counter[str] = Counter()
    for at in [*draw.sample(operations, min(len(operations), kills)), *[None] * moments]:
        _prepare(trial, start)
        if at is not None:
            assert forked(counting(trial, recipe, at)) == -signal.SIGKILL
        else:
            forked(partial(run, trial, recipe), draw.uniform(0, seconds))
        refused = forked(partial(run, trial, recipe)) != 0
        got = files(trial)
        different = sum(got[name] != wanted[name] for name in got.keys() & wanted.keys())
        result.update(kills=1, refused=int(refused), different=different)
        result.update(stray=len(got.keys() - wanted.keys()), missing=len(wanted.keys() - got.keys()))
    return result


def _prepare(trial: Path, start: Path | None) -> None:
    shutil.rmtree(trial, ignore_errors=True)
    if start is not None:
        shutil.copytree(start, trial)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
