"""A worker, wherever an engine starts it, and the list of shards that its engine keeps.

A worker loads once and then makes shard after shard; all its events go through one `send`. Work that can save
itself hears that it is to stop through `asked_to_stop`.
"""

import contextlib
import logging
import os
import signal
import threading
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from synthclip.errors import SynthClipError
from synthclip.recipe.engine import EngineConfig
from synthclip.run.engine import Done, Event, Failed, Load, Progress, Resources, Shard, Work

GRACE_SECONDS = 20.0
"""How long work that is asked to stop may take, for a checkpoint; then its worker is killed."""
_TICK_SECONDS = 0.2
_THREAD_COUNTS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_KEEP_MEMORY = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**62),
    "MALLOC_TOP_PAD_": str(64 * 2**20),
}
"""For glibc, whose malloc hands large blocks back to the system at once: a training step on a CPU then pays
for zeroed pages each time, 5 to 15 % of its time. Another C library ignores these."""


class WorkError(Exception):
    """A defect in the work, with the worker's own traceback."""


class Worker:
    """Makes shards in the process that an engine started for it."""

    def __init__(self, load: Load, heartbeat_s: float | None = None) -> None:
        self._load, self._heartbeat_s = load, heartbeat_s
        self._work: Work | None = None

    def make(self, shard: Shard, send: Callable[[Event], None]) -> None:
        """Make the shard. Sends `Progress` a few times a second, then a `Done` or a `Failed`.

        With `heartbeat_s` a `Progress` without rows comes at least that often, as long as this process runs
        and the folder that `load` names as its `path` answers.
        """
        started = time.monotonic()
        lock = threading.Lock()

        def locked(event: Event) -> None:
            with lock:
                send(event)

        try:
            with _notes(shard, locked), self._heartbeat(shard, locked):
                if self._work is None:
                    self._work = self._load()
                outcome = self._work(shard, _Ticker(shard, locked))
        except SynthClipError as error:
            locked(Failed(shard, error, final=True))
        except Exception:
            locked(Failed(shard, WorkError(f"shard {shard.name} failed\n{traceback.format_exc()}")))
        else:
            locked(Done(shard, outcome, time.monotonic() - started))

    @contextlib.contextmanager
    def _heartbeat(self, shard: Shard, send: Callable[[Event], None]) -> Iterator[None]:
        finished = threading.Event()

        def beat() -> None:
            folder = getattr(self._load, "path", Path())
            while not finished.wait(self._heartbeat_s):
                with contextlib.suppress(FileNotFoundError):
                    os.statvfs(folder)  # waits for a file system that does not answer
                send(Progress(shard, 0))

        thread = threading.Thread(target=beat, daemon=True)
        if self._heartbeat_s is not None:
            thread.start()
        try:
            yield
        finally:
            finished.set()
            if self._heartbeat_s is not None:
                thread.join(1.0)


@contextlib.contextmanager
def _notes(shard: Shard, send: Callable[[Event], None]) -> Iterator[None]:
    """Send warnings of this package's loggers as notes of the shard's progress."""
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: send(Progress(shard, 0, note=record.getMessage()))  # type: ignore[method-assign]
    logger = logging.getLogger("synthclip")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


class _Ticker:
    def __init__(self, shard: Shard, send: Callable[[Event], None]) -> None:
        self._shard, self._send = shard, send
        self._rows, self._last = 0, time.monotonic()

    def __call__(self, rows: int, **figures: float | str) -> None:
        self._rows += rows
        now = time.monotonic()
        if now - self._last >= _TICK_SECONDS:
            self._send(Progress(self._shard, self._rows, figures))
            self._rows, self._last = 0, now


class Ledger:
    """Which shards are still to be made, and how often each was tried."""

    def __init__(self, shards: Sequence[Shard], attempts: int) -> None:
        self._waiting = deque(shards)
        self._open = {shard.name for shard in shards}
        self._attempts = attempts
        self._failed: Counter[str] = Counter()

    @property
    def open(self) -> bool:
        """Whether any shard is not finished, waiting or not."""
        return bool(self._open)

    @property
    def waiting(self) -> bool:
        return bool(self._waiting)

    def take(self) -> Shard:
        """The next shard to try."""
        return self._waiting.popleft()

    def put_back(self, shard: Shard) -> None:
        """Undo a `take` whose attempt never began."""
        self._waiting.append(shard)

    def record(self, event: Event) -> Iterator[Event]:
        """Note what an event means for its shard and pass it on, a failure with its attempt.

        A failed shard waits for its next attempt. Where none is left, the error is raised after the event.
        """
        name = event.shard.name
        if isinstance(event, Failed):
            self._failed[name] += 1
            attempt = self._failed[name]
            event = replace(event, attempt=attempt, final=event.final or attempt >= self._attempts)
            self._waiting.append(event.shard)
        elif isinstance(event, Done):
            self._open.remove(name)
        yield event
        if isinstance(event, Failed) and event.final:
            raise event.error


def worker_stalled(shard: Shard, seconds: float) -> Failed:
    """What is held against a shard whose worker hung while making it."""
    return Failed(
        shard,
        SynthClipError(
            f"shard {shard.name}: its worker gave no sign of life for {seconds:.0f} s: check memory and file "
            "systems, or raise engine.stalled_after_s"
        ),
    )


def worker_died(shard: Shard, how: str) -> Failed:
    """What is held against a shard whose worker vanished while making it."""
    return Failed(
        shard,
        SynthClipError(
            f"shard {shard.name}: its worker died ({how}) each time it was tried; if memory is short, "
            "run with a smaller engine.workers"
        ),
    )


def worker_count(config: EngineConfig, resources: Resources, shards: int, cpus: int, gpus: int) -> int:
    """How many workers are of use: one a GPU where a worker wants any and there are any, else one a core."""
    useful = gpus // resources.gpus if resources.gpus and gpus else cpus // resources.cpus
    wanted = useful if config.workers == "auto" else config.workers
    return max(1, min(wanted, shards, resources.max_workers or shards))


def thread_counts(threads: int) -> dict[str, str]:
    """The environment that gives a worker this number of threads; a value that the user exported stays.

    What is exported for OpenMP holds for the others too: where MKL has another, PyTorch follows MKL.
    """
    for_all = os.environ.get(_THREAD_COUNTS[0], str(threads))
    return {name: os.environ.get(name, for_all) for name in _THREAD_COUNTS}


def memory_settings(keep_memory: bool) -> dict[str, str]:
    """The environment of a worker that keeps freed memory; a value that the user exported stays."""
    return {name: os.environ.get(name, value) for name, value in _KEEP_MEMORY.items()} if keep_memory else {}


@contextlib.contextmanager
def exported(values: Mapping[str, str]) -> Iterator[None]:
    """Set for the processes that start inside: their libraries read these when they are loaded."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


_listening: list[Callable[[], None]] = []


@contextlib.contextmanager
def asked_to_stop(then: Callable[[], None] = lambda: None) -> Iterator[Callable[[], bool]]:
    """Inside, a request to stop does not kill: `then` is called, and the function given says yes.

    A request is SIGTERM, of which only work in the main thread can hear, or a call of `ask_to_stop`.
    """
    asked = threading.Event()

    def ask() -> None:
        asked.set()
        then()

    in_main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, lambda *_: ask()) if in_main else None
    _listening.append(ask)
    try:
        yield asked.is_set
    finally:
        _listening.remove(ask)
        if in_main:
            signal.signal(signal.SIGTERM, before)


def ask_to_stop() -> bool:
    """Ask the work of this process to stop; says whether any of it listens."""
    asked = list(_listening)
    for ask in asked:
        ask()
    return bool(asked)
