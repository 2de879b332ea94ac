"""Work for engines to do: picklable, quick, and ready to fail in the ways that work fails."""

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from synthclip.errors import SynthClipError
from synthclip.run.engine import Done, Event, Shard, Tick, Work
from synthclip.run.engine.worker import asked_to_stop
from synthclip.run.store import Outcome, RunDirectory


@dataclass(frozen=True)
class Load:
    """Writes one file a shard into a run. What a shard's payload asks for happens on the first attempt:

    `die` kills the worker, `stop` stops it, `compute` adds that many numbers in one call, `error` raises,
    `mend` raises what a user can mend, `pause` waits for so many seconds, `linger` too, but it ticks and
    saves if it is asked to stop; `environment` notes the values of environment variables.
    """

    path: Path

    def __call__(self) -> Work:
        run = RunDirectory(self.path)
        _note(self.path, f"load {os.getpid()}")

        def work(shard: Shard, tick: Tick) -> Outcome:
            first = f"start {shard.name}" not in notes(self.path)
            _note(self.path, f"start {shard.name}")
            with run.begin("stage", shard.name, "f") as writer:
                writer.path(f"{shard.name}.txt").write_text(f"content of {shard.name}")
                asked = shard.payload
                if asked.get("die") and (first or asked.get("always")):
                    os.kill(os.getpid(), signal.SIGKILL)
                if asked.get("stop") and first:
                    os.kill(os.getpid(), signal.SIGSTOP)
                if asked.get("compute") and first:
                    sum(range(int(asked["compute"])))  # one call, which holds the interpreter's lock
                if asked.get("error") and (first or asked.get("always")):
                    raise ZeroDivisionError("seven by none")
                for name in asked.get("environment", ()):
                    _note(self.path, f"{name}={os.environ.get(name)}")
                if asked.get("mend"):
                    raise SynthClipError("bank.txt, row 3: empty: remove it")
                if first:
                    time.sleep(asked.get("pause", 0.0))
                _linger(asked.get("linger", 0.0), tick, self.path)
                writer.commit(Outcome(shard.size))
            tick(shard.size)
            _note(self.path, f"end {shard.name}")
            return Outcome(shard.size)

        return work


def shards(count: int, **payloads: dict[str, object]) -> list[Shard]:
    """`count` shards s0, s1, …; a payload by name."""
    return [Shard(f"s{n}", {}, payloads.get(f"s{n}", {}), size=n + 1) for n in range(count)]


def notes(path: Path) -> list[str]:
    """What the workers noted, in order."""
    log = path / "notes.txt"
    return log.read_text().splitlines() if log.exists() else []


def files(path: Path) -> dict[str, bytes]:
    """Every file of the run's stage, manifests included."""
    found = (one for one in (path / "stage").rglob("*") if one.is_file())
    return {one.relative_to(path).as_posix(): one.read_bytes() for one in found}


def done(events: Iterator[Event]) -> list[str]:
    """Run to the end; the names of the shards that were finished, sorted."""
    return sorted(event.shard.name for event in events if isinstance(event, Done))


def wait_for(path: Path, note: str, seconds: float = 300.0) -> None:
    deadline = time.monotonic() + seconds
    while note not in notes(path):
        assert time.monotonic() < deadline, f"{note!r} never came"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    """Whether the process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def _linger(seconds: float, tick: Tick, path: Path) -> None:
    if not seconds:
        return
    with asked_to_stop() as stop:
        _note(path, "listens")
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not stop():
            time.sleep(0.05)
            tick(1, waited=1.0)
        if stop():
            time.sleep(0.5)  # longer than a process without grace would have
            tick(1, waited=2.0)
            _note(path, "saved")
            raise SystemExit(0)


def _note(path: Path, text: str) -> None:
    path.mkdir(parents=True, exist_ok=True)
    with (path / "notes.txt").open("a") as log:
        log.write(text + "\n")
