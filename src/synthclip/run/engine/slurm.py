"""Shards over a SLURM job array, by submitit.

Each job is a worker with its share of the shards. Jobs and the process that submits them meet in a folder
that all see: a worker leaves a file for every shard it has finished or failed at, and stops by itself when
the submitter no longer shows that it lives.
"""

import contextlib
import os
import pickle
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from synthclip.errors import SynthClipError, last_line, needs_extra
from synthclip.recipe.engine import EngineConfig
from synthclip.run.engine import Event, Load, Progress, Resources, Shard
from synthclip.run.engine.worker import Ledger, Worker, exported, memory_settings, worker_died
from synthclip.samples.files import replacing

_AUTO_JOBS = 16
_POLL_SECONDS = 1.0
_PATIENCE_SECONDS = 300.0
"""How long a job goes on without a sign of life of the submitter."""
_REQUEUES = 1000


class SlurmEngine:
    def __init__(self, config: EngineConfig) -> None:
        self._config = config

    def map(self, load: Load, shards: Sequence[Shard], resources: Resources) -> Iterator[Event]:
        if not shards:
            return
        executor = self._executor(resources)
        spool = Path(self._config.slurm.folder).resolve() / f"map-{os.getpid()}-{time.time_ns()}"
        spool.mkdir(parents=True)
        array = _Array(executor, load, spool, memory_settings(resources.keep_memory))
        ledger = Ledger(shards, self._config.attempts)
        try:
            while ledger.open:
                if ledger.waiting:
                    array.submit(ledger, self._count(resources))
                time.sleep(_POLL_SECONDS)
                yield from array.poll(ledger)
        finally:
            array.cancel()
            shutil.rmtree(spool, ignore_errors=True)

    def _count(self, resources: Resources) -> int:
        wanted = _AUTO_JOBS if self._config.workers == "auto" else self._config.workers
        return min(wanted, resources.max_workers or wanted)

    def _executor(self, resources: Resources) -> Any:
        with needs_extra("slurm", "engine.kind=slurm"):
            import submitit
        config = self._config.slurm
        try:
            executor = submitit.AutoExecutor(
                folder=str(Path(config.folder) / "%j"),
                cluster=config.executor,
                slurm_max_num_timeout=_REQUEUES,
                local_max_num_timeout=_REQUEUES,
            )
        except RuntimeError:
            raise SynthClipError(
                "engine.kind is 'slurm', but srun is not on this machine: run on a login node, or set "
                "engine.slurm.executor=local to try it out here"
            ) from None
        wanted = {
            "name": "synthclip",
            "timeout_min": config.timeout_min,
            "cpus_per_task": config.cpus or resources.cpus,
            "gpus_per_node": resources.gpus if config.gpus is None else config.gpus,
            "mem_gb": config.mem_gb,
            "slurm_partition": config.partition,
            "slurm_account": config.account,
            "slurm_additional_parameters": config.options or None,
        }
        if resources.nodes > 1 and executor.cluster == "slurm":
            wanted |= {"nodes": resources.nodes, "slurm_srun_args": ["--nodes=1", "--ntasks=1"]}
        executor.update_parameters(**{name: value for name, value in wanted.items() if value})
        return executor


@dataclass
class _Job:
    """One task of the array. What is pickled when the job is requeued is what is left to do."""

    load: Load
    left: list[tuple[Shard, Path]]
    heartbeat: Path
    patience_seconds: float

    def __call__(self) -> None:
        threading.Thread(target=self._stop_without_submitter, daemon=True).start()
        worker = Worker(self.load)
        while self.left:
            shard, path = self.left[0]
            rows, note = 0, ""

            def send(event: Event, path: Path = path) -> None:
                nonlocal rows, note
                if isinstance(event, Progress):
                    rows, note = rows + event.rows, event.note or note
                    _put(path.with_suffix(".progress"), Progress(event.shard, rows, event.figures, note))
                else:
                    _put(path, event)

            worker.make(shard, send)
            del self.left[0]

    def checkpoint(self) -> Any:
        """Called by submitit before the time limit: the requeued job starts with this."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)

    def _stop_without_submitter(self) -> None:
        """Without this, jobs of a killed run would go on beside the run that resumes it."""
        beat, seen = -1, time.monotonic()
        while time.monotonic() - seen < self.patience_seconds:
            with contextlib.suppress(OSError):
                if (now := self.heartbeat.stat().st_mtime_ns) != beat:
                    beat, seen = now, time.monotonic()
            time.sleep(self.patience_seconds / 20)
        os._exit(1)


@dataclass
class _Submitted:
    job: Any
    open: list[tuple[Shard, Path]]
    seen: dict[Path, tuple[int, str]] = field(default_factory=dict)
    """Rows of progress reported so far, and the last note, by shard."""
    gone: bool = False


class _Array:
    """The jobs that are out, over as many submissions as failures make necessary."""

    def __init__(self, executor: Any, load: Load, spool: Path, environment: Mapping[str, str]) -> None:
        self._executor, self._load, self._spool = executor, load, spool
        self._environment = environment
        self._heartbeat = spool / "submitter"
        self._heartbeat.touch()
        self._out: list[_Submitted] = []
        self._files = 0

    def submit(self, ledger: Ledger, count: int) -> None:
        """Send off all shards that wait, over `count` jobs."""
        shares: list[list[tuple[Shard, Path]]] = [[] for _ in range(count)]
        while ledger.waiting:
            shares[self._files % count].append((ledger.take(), self._spool / f"{self._files}.done"))
            self._files += 1
        jobs = [_Job(self._load, share, self._heartbeat, _PATIENCE_SECONDS) for share in shares if share]
        try:
            with exported(self._environment), self._executor.batch():
                out = [self._executor.submit(job) for job in jobs]
        except Exception as error:
            raise SynthClipError(f"SLURM refused the jobs: {last_line(error)}") from None
        self._out += [_Submitted(job, list(sent.left)) for job, sent in zip(out, jobs, strict=True)]

    def poll(self, ledger: Ledger) -> Iterator[Event]:
        """What happened since the last time. A job that vanished costs the shard it was at."""
        self._heartbeat.touch()
        alive = self._alive()
        for sent in list(self._out):
            yield from self._read(sent, ledger)
            if not sent.open:
                self._out.remove(sent)
            elif sent.job.job_id in alive:
                sent.gone = False
            elif not sent.gone:
                sent.gone = True  # its last messages may still be on their way through the file system
            else:
                self._out.remove(sent)
                (lost, _), *rest = sent.open
                for shard, _ in rest:
                    ledger.put_back(shard)
                died = worker_died(lost, f"job {sent.job.job_id}, see {sent.job.paths.stderr}")
                yield from ledger.record(died)

    def cancel(self) -> None:
        for sent in self._out:
            sent.job.cancel(check=False)

    def _read(self, sent: _Submitted, ledger: Ledger) -> Iterator[Event]:
        for shard, path in list(sent.open):
            event = _get(path)
            if event is None:
                progress = _get(path.with_suffix(".progress"))
                rows, note = sent.seen.get(path, (0, ""))
                if isinstance(progress, Progress) and (progress.rows, progress.note) != (rows, note):
                    fresh = progress.note if progress.note != note else ""
                    yield Progress(shard, progress.rows - rows, progress.figures, fresh)
                    sent.seen[path] = (progress.rows, progress.note)
                return  # a job makes its shards in order
            sent.open.remove((shard, path))
            yield from ledger.record(event)

    def _alive(self) -> set[str]:
        """The ids of jobs that run or wait. squeue is asked, since sacct needs an accounting database."""
        if self._executor.cluster == "local":
            return {sent.job.job_id for sent in self._out if not sent.job.done()}
        arrays = {str(sent.job.job_id).split("_")[0] for sent in self._out}
        alive = set()
        for array in arrays:
            listed = subprocess.run(
                ["squeue", "--noheader", "--array", "--format=%i", f"--jobs={array}"],
                capture_output=True,
                text=True,
            )
            if listed.returncode == 0:
                alive |= set(listed.stdout.split())
            elif "Invalid job id" not in listed.stderr:  # SLURM does not answer: nothing is known
                alive |= {sent.job.job_id for sent in self._out}
        return alive


def _put(path: Path, event: Event) -> None:
    # Suppressed: the submitter is gone, and its folder with it.
    with contextlib.suppress(FileNotFoundError), replacing(path) as partial:
        partial.write_bytes(pickle.dumps(event))


def _get(path: Path) -> Any:
    try:
        return pickle.loads(path.read_bytes())
    except (FileNotFoundError, EOFError):
        return None
