"""What goes on in a run just now: who holds its lock, and what `metrics.jsonl` says of the stage at work."""

import contextlib
import fcntl
import os
import platform
import re
import socket
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from synthclip.errors import SynthClipError
from synthclip.run.durable import disk_errors

LOCK = ".lock"
_TRIES, _PAUSE_SECONDS = 5, 0.05
"""A reader that looks whether the lock is held holds it for a moment itself."""


@contextlib.contextmanager
def locked(run: Path) -> Iterator[None]:
    """Hold the lock of a run directory; the kernel frees it when the holder dies, however it dies.

    Raises SynthClipError where another process holds it.
    """
    with disk_errors(run):
        try:
            run.mkdir(parents=True, exist_ok=True)
        except FileNotFoundError as error:  # what /proc and some network mounts answer
            raise SynthClipError(f"{run}: no folder can be made there: choose another --out") from error
        handle = (run / LOCK).open("a+")
    with handle:
        for left in reversed(range(_TRIES)):
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if not left:
                    handle.seek(0)
                    holder = handle.read().strip() or "another process"
                    raise SynthClipError(
                        f"{run} is in use by {holder}: wait for it, or choose another --out"
                    ) from None
                time.sleep(_PAUSE_SECONDS)
        with disk_errors(run):
            handle.truncate(0)
            handle.write(f"process {os.getpid()} on {socket.gethostname()}")
            handle.flush()
        yield


def machine(engine: str) -> str:
    """What the work runs on, such as `8 x NVIDIA H100, 64 CPUs (x86_64)`; of a cluster, by which engine."""
    if engine != "local":
        return f"a cluster, by {engine}"
    cards: Counter[str] = Counter()
    for path in Path("/proc/driver/nvidia/gpus").glob("*/information"):
        with contextlib.suppress(OSError):
            named = re.search(r"^Model:\s*(.+)$", path.read_text(), re.MULTILINE)
            cards[named[1].strip() if named else "GPU"] += 1
    shown = [f"{count} x {name}" for name, count in sorted(cards.items())]
    return ", ".join([*shown, f"{os.cpu_count()} CPUs ({platform.machine()})"])


def holder(run: Path) -> str | None:
    """Who writes to a run, such as `process 12 on node3`; None where nobody does."""
    try:
        with (run / LOCK).open(encoding="utf-8", errors="replace") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                return handle.read().strip() or "another process"
    except OSError:
        pass
    return None


@dataclass(frozen=True)
class Activity:
    """The stage that a run is at, or was at when it was stopped."""

    stage: str
    unit: str
    """Of `done` and `total`: `shards`, in training `steps`."""
    done: int
    total: int
    rate_per_s: float | None = None
    """Units a second, without the time before the first; None before there are two."""
    left_s: float | None = None
    figures: Mapping[str, float] = field(default_factory=dict)
    """The last figures of a training, by name."""
    checkpoint_age_s: float | None = None
    """How old the newest checkpoint of a training is."""


def activity(run: Path, metrics: Sequence[Mapping[str, Any]], now: float) -> Activity | None:
    """From the lines of `metrics.jsonl`; None where no stage was begun that is not finished."""
    begun: Mapping[str, Any] | None = None
    since: list[Mapping[str, Any]] = []
    for line in metrics:
        if line.get("event") == "begin":
            begun, since = line, []
        elif line.get("event") == "stage" and begun and line["stage"] == begun["stage"]:
            begun = None
        else:
            since.append(line)
    if begun is None:
        return None
    training = [line for line in since if line.get("event") == "training"]
    if begun["stage"] == "train" and training:
        return _training(run, training[-1], since, now)
    times = [line["time"] for line in since if line.get("event") == "shard"]
    rate = (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 and times[-1] > times[0] else None
    made, todo = len(times), begun["shards"]
    left = max(0.0, (todo - made) / rate - (now - times[-1])) if rate else None
    return Activity(begun["stage"], "shards", begun["total"] - todo + made, begun["total"], rate, left)


def _training(
    run: Path, begun: Mapping[str, Any], since: Sequence[Mapping[str, Any]], now: float
) -> Activity:
    figures: dict[str, Any] = {}
    for line in since:
        if line.get("event") == "train":
            figures = {name: value for name, value in line.items() if name not in ("event", "stage")}
    step, logged_at = figures.pop("step", begun["step"]), figures.pop("time", now)
    left = figures.pop("eta_s", None)
    saved = [path.stat().st_mtime for path in run.glob("train/partial/*/step-*.pt")]
    return Activity(
        "train",
        "steps",
        step,
        begun["steps"],
        rate_per_s=(begun["steps"] - step) / left if left else None,
        left_s=max(0.0, left - (now - logged_at)) if left is not None else None,
        figures=figures,
        checkpoint_age_s=now - max(saved) if saved else None,
    )
