"""Shards over processes of this machine: one process a GPU, else one a core."""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import threading
import time
import traceback
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any

from synthclip.engine import Done, EngineConfig, Load, Progress, Resources, Shard, Tick
from synthclip.errors import SynthClipError

_TICK_SECONDS = 0.2
_GRACE_SECONDS = 20.0
"""How long a worker that is asked to stop may take, for a checkpoint; then it is killed."""


class LocalEngine:
    def __init__(self, config: EngineConfig) -> None:
        self._config = config

    def map(self, load: Load, shards: Sequence[Shard], resources: Resources) -> Iterator[Progress | Done]:
        if not shards:
            return
        if self._config.workers == 0:
            yield from _map_here(load, shards)
            return
        pool = _Pool(load, self._slots(resources, len(shards)))
        try:
            yield from pool.run(shards, self._config.attempts)
        finally:
            pool.stop()

    def _slots(self, resources: Resources, shards: int) -> list[dict[str, str]]:
        """The environment of each worker: its share of the cores, and its GPUs."""
        cores = len(os.sched_getaffinity(0))
        gpus = _gpu_ids() if resources.gpus else []
        useful = len(gpus) // resources.gpus if gpus else cores // resources.cpus
        wanted = useful if self._config.workers == "auto" else self._config.workers
        count = max(1, min(wanted, shards, resources.max_workers or shards))
        threads = str(max(1, cores // count))
        slots = []
        for rank in range(count):
            slot = {"OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
            if gpus:
                mine = [gpus[(rank * resources.gpus + k) % len(gpus)] for k in range(resources.gpus)]
                slot["CUDA_VISIBLE_DEVICES"] = ",".join(mine)
            slots.append(slot)
        return slots


@dataclass
class _Worker:
    process: SpawnProcess
    pipe: Connection
    slot: dict[str, str]
    shard: Shard | None = None


class _Pool:
    """Hands one shard at a time to each worker over a pipe of its own, so that a worker that dies can
    take no lock with it; its shard goes to the next worker."""

    def __init__(self, load: Load, slots: list[dict[str, str]]) -> None:
        self._load = load
        self._workers = [self._start(slot) for slot in slots]

    def run(self, shards: Sequence[Shard], attempts: int) -> Iterator[Progress | Done]:
        todo = deque((shard, attempts) for shard in shards)
        left: dict[str, int] = {}
        open_shards = len(shards)
        while open_shards:
            for worker in self._workers:
                if worker.shard is None and todo:
                    worker.shard, tries = todo.popleft()
                    left[worker.shard.name] = tries
                    with contextlib.suppress(BrokenPipeError):  # its death is seen below
                        worker.pipe.send(worker.shard)
            for ready in wait([worker.pipe for worker in self._workers if worker.shard is not None]):
                worker = next(worker for worker in self._workers if worker.pipe is ready)
                shard = worker.shard
                assert shard is not None
                try:
                    message = worker.pipe.recv()
                except (EOFError, ConnectionResetError):
                    message = self._replace(worker)
                if isinstance(message, Progress):
                    yield message
                elif isinstance(message, Done):
                    worker.shard = None
                    open_shards -= 1
                    yield message
                else:
                    worker.shard = None
                    if message.final or left[shard.name] <= 1:
                        raise message.error
                    todo.append((shard, left[shard.name] - 1))

    def stop(self) -> None:
        """Ask all to stop; the idle ones leave at once, a busy one gets its grace, then is killed."""
        for worker in self._workers:
            worker.pipe.close()
            if worker.shard is not None:
                worker.process.terminate()
        deadline = time.monotonic() + _GRACE_SECONDS
        for worker in self._workers:
            worker.process.join(max(0.0, deadline - time.monotonic()))
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()

    def _start(self, slot: dict[str, str]) -> _Worker:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, self._load), daemon=False)
        with _environment(slot):
            process.start()
        theirs.close()
        return _Worker(process, ours, slot)

    def _replace(self, worker: _Worker) -> "_Failure":
        """Bury a dead worker and put a fresh one in its place."""
        worker.process.join()
        code, shard = worker.process.exitcode, worker.shard
        how = f"signal {signal.Signals(-code).name}" if code is not None and code < 0 else f"exit code {code}"
        worker.pipe.close()
        fresh = self._start(worker.slot)
        worker.process, worker.pipe = fresh.process, fresh.pipe
        name = shard.name if shard else "?"
        return _Failure(
            SynthClipError(
                f"shard {name}: its worker process died ({how}) each time it was tried; if memory is short, "
                "run with a smaller engine.workers"
            ),
            final=False,
        )


@dataclass(frozen=True)
class _Failure:
    error: Exception
    final: bool


class WorkError(Exception):
    """A defect in the work, with the worker's own traceback."""


def _serve(pipe: Connection, load: Load) -> None:
    """The life of a worker process: load once, then shard after shard until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    threading.Thread(target=_die_with_parent, daemon=True).start()
    work = None
    while True:
        try:
            shard: Shard = pipe.recv()
        except (EOFError, OSError):
            return
        started = time.monotonic()
        try:
            if work is None:
                work = load()
            outcome = work(shard, _Ticker(pipe, shard))
            message: Any = Done(shard, outcome, time.monotonic() - started)
        except SynthClipError as error:
            message = _Failure(error, final=True)
        except Exception:
            message = _Failure(WorkError(f"shard {shard.name} failed\n{traceback.format_exc()}"), final=False)
        try:
            pipe.send(message)
        except OSError:
            return


def _die_with_parent() -> None:
    """Without this, workers of a killed run would go on beside the run that resumes it."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGKILL)


class _Ticker:
    """Sends progress at most a few times a second."""

    def __init__(self, pipe: Connection, shard: Shard) -> None:
        self._pipe, self._shard = pipe, shard
        self._rows, self._last = 0, time.monotonic()

    def __call__(self, rows: int, **figures: float | str) -> None:
        self._rows += rows
        now = time.monotonic()
        if now - self._last >= _TICK_SECONDS:
            with contextlib.suppress(OSError):
                self._pipe.send(Progress(self._shard, self._rows, figures))
            self._rows, self._last = 0, now


def _map_here(load: Load, shards: Sequence[Shard]) -> Iterator[Progress | Done]:
    work = load()
    silent: Tick = _silent
    for shard in shards:
        started = time.monotonic()
        outcome = work(shard, silent)
        yield Done(shard, outcome, time.monotonic() - started)


def _silent(rows: int, **figures: float | str) -> None:
    return None


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Set for the child that starts inside: thread counts are read when libraries are imported."""
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


def _gpu_ids() -> list[str]:
    """The GPUs this process may use, found without importing torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [gpu for gpu in visible.split(",") if gpu.strip()]
    try:
        found = subprocess.run(
            ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return []
    return found.stdout.split()
