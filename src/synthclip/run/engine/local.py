"""Shards over processes of this machine: one process a GPU, else one a core."""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path

from synthclip.errors import SynthClipError
from synthclip.recipe.engine import EngineConfig
from synthclip.run.engine import Done, Event, Failed, Load, Resources, Shard
from synthclip.run.engine.worker import (
    GRACE_SECONDS,
    Ledger,
    Worker,
    exported,
    memory_settings,
    thread_counts,
    worker_count,
    worker_died,
    worker_stalled,
)
from synthclip.run.threads import cores

_IMPORTS_MAIN = 78
"""The exit code of a worker whose start would run the whole script again, and start workers of its own."""
_BEATS = 6
"""Heartbeats in the time after which a silent worker counts as stalled."""


class LocalEngine:
    def __init__(self, config: EngineConfig) -> None:
        self._config = config

    def map(self, load: Load, shards: Sequence[Shard], resources: Resources) -> Iterator[Event]:
        if not shards:
            return
        if getattr(
            multiprocessing.current_process(), "_inheriting", False
        ):  # a worker imports the main script
            os._exit(_IMPORTS_MAIN)
        if self._config.workers == 0:
            yield from _map_here(load, shards)
            return
        pool = _Pool(load, self._slots(resources, len(shards)), self._config.stalled_after_s)
        try:
            yield from pool.run(Ledger(shards, self._config.attempts))
        finally:
            pool.stop()

    def _slots(self, resources: Resources, shards: int) -> list[dict[str, str]]:
        """The environment of each worker: its share of the cores, its GPUs, how it treats freed memory."""
        available = cores()
        gpus = _gpu_ids() if resources.gpus else []
        count = worker_count(self._config, resources, shards, available, len(gpus))
        shared = thread_counts(max(1, available // count)) | memory_settings(resources.keep_memory)
        slots = []
        for rank in range(count):
            slot = dict(shared)
            if gpus:
                mine = [gpus[(rank * resources.gpus + k) % len(gpus)] for k in range(resources.gpus)]
                slot["CUDA_VISIBLE_DEVICES"] = ",".join(mine)
            slots.append(slot)
        return slots


@dataclass
class _Process:
    process: SpawnProcess
    pipe: Connection
    slot: dict[str, str]
    shard: Shard | None = None
    silent_s: float = 0.0
    """Since its last event, or since it was last seen computing."""
    cpu_s: float = 0.0
    """What it had computed by then."""


class _Pool:
    """Hands one shard at a time to each worker over a pipe of its own, so that a worker that dies can
    take no lock with it; its shard goes to the next worker."""

    def __init__(self, load: Load, slots: list[dict[str, str]], stalled_after_s: float) -> None:
        self._load, self._stalled_after_s = load, stalled_after_s
        self._heartbeat_s = stalled_after_s / _BEATS
        self._workers = [self._start(slot) for slot in slots]

    def run(self, ledger: Ledger) -> Iterator[Event]:
        looked = time.monotonic()
        while ledger.open:
            for worker in self._workers:
                if worker.shard is None and ledger.waiting:
                    worker.shard, worker.silent_s = ledger.take(), 0.0
                    with contextlib.suppress(BrokenPipeError):  # its death is seen below
                        worker.pipe.send(worker.shard)
            busy = [worker for worker in self._workers if worker.shard is not None]
            ready = wait([worker.pipe for worker in busy], self._heartbeat_s)
            now = time.monotonic()
            # No longer than a beat, though this process may itself have been stopped for an hour.
            passed, looked = min(now - looked, 2 * self._heartbeat_s), now
            for worker in busy:
                if worker.pipe in ready:
                    event = self._receive(worker)
                elif self._stalled(worker, passed):
                    event = self._abandon(worker)
                else:
                    continue
                if isinstance(event, Done | Failed):
                    worker.shard = None
                yield from ledger.record(event)

    def stop(self) -> None:
        """Ask all to stop; the idle ones leave at once, a busy one gets its grace, then is killed."""
        for worker in self._workers:
            worker.pipe.close()
            if worker.shard is not None:
                worker.process.terminate()
        deadline = time.monotonic() + GRACE_SECONDS
        for worker in self._workers:
            worker.process.join(max(0.0, deadline - time.monotonic()))
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()

    def _start(self, slot: dict[str, str]) -> _Process:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, self._load, self._heartbeat_s), daemon=False)
        with exported(slot):
            process.start()
        theirs.close()
        return _Process(process, ours, slot)

    def _stalled(self, worker: _Process, passed: float) -> bool:
        """Whether a worker has sent nothing and used no processor for too long.

        A library that holds the interpreter's lock keeps it from sending, but then it computes.
        """
        worker.silent_s += passed
        if worker.silent_s < self._stalled_after_s:
            return False
        computed = _cpu_seconds(worker.process.pid)
        if computed > worker.cpu_s:
            worker.cpu_s, worker.silent_s = computed, 0.0
        return worker.silent_s > 0

    def _abandon(self, worker: _Process) -> Event:
        """Kill a worker without waiting for its end, which a dead file system can put off."""
        assert worker.shard is not None
        worker.process.kill()
        self._replace(worker)
        return worker_stalled(worker.shard, self._stalled_after_s)

    def _replace(self, worker: _Process) -> None:
        worker.pipe.close()
        fresh = self._start(worker.slot)
        worker.process, worker.pipe, worker.cpu_s = fresh.process, fresh.pipe, 0.0

    def _receive(self, worker: _Process) -> Event:
        """The next event of a worker; a dead one is replaced by a new one."""
        assert worker.shard is not None
        worker.silent_s, worker.cpu_s = 0.0, _cpu_seconds(worker.process.pid)
        try:
            event: Event = worker.pipe.recv()
            return event
        except (EOFError, ConnectionResetError):
            worker.process.join()
        code, shard = worker.process.exitcode or 0, worker.shard
        if code == _IMPORTS_MAIN:
            advice = "call synthclip under `if __name__ == '__main__':`, or set engine.workers=0"
            error = SynthClipError(f"the script that starts workers is imported by each of them: {advice}")
            return Failed(shard, error, final=True)
        self._replace(worker)
        return worker_died(shard, signal.Signals(-code).name if code < 0 else f"exit code {code}")


def _serve(pipe: Connection, load: Load, heartbeat_s: float) -> None:
    """The life of a worker process: shard after shard until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    threading.Thread(target=_die_with_parent, daemon=True).start()
    worker = Worker(load, heartbeat_s)

    def send(event: Event) -> None:
        with contextlib.suppress(OSError):  # the parent has asked us to stop: the work may still save
            pipe.send(event)

    with contextlib.suppress(EOFError, OSError):
        while True:
            shard: Shard = pipe.recv()
            worker.make(shard, send)


def _cpu_seconds(pid: int | None) -> float:
    """What a process has computed so far; 0 where the system does not say."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _die_with_parent() -> None:
    """Without this, workers of a killed run would go on beside the run that resumes it."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGKILL)


def _map_here(load: Load, shards: Sequence[Shard]) -> Iterator[Event]:
    """In this process: one attempt, and errors with their own traceback, as a debugger wants it.

    Libraries that are not loaded yet get the threads that a worker would give them, and so the same results.
    """
    threads = thread_counts(cores())
    with exported(threads):
        work = load()
    for shard in shards:
        started = time.monotonic()
        try:
            with exported(threads):
                outcome = work(shard, lambda rows, **figures: None)
        except Exception as error:
            yield Failed(shard, error, final=True)
            raise
        yield Done(shard, outcome, time.monotonic() - started)


def _gpu_ids() -> list[str]:
    """The GPUs this process may use, found without importing torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [gpu for gpu in visible.split(",") if gpu.strip()]
    return query_gpus("index")


def query_gpus(field: str) -> list[str]:
    """What nvidia-smi says of a field of each GPU of this machine; nothing where there is none."""
    try:
        found = subprocess.run(
            ["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return []
    return found.stdout.splitlines()
