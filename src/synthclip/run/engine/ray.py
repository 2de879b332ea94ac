"""Shards over Ray actors: on this machine, or on a cluster by its address."""

import os
import pickle
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from synthclip.errors import SynthClipError, needs_extra
from synthclip.recipe.engine import EngineConfig, RayConfig
from synthclip.run.engine import Done, Load, Progress, Resources, Shard
from synthclip.run.engine.stopping import GRACE_SECONDS, ask_to_stop
from synthclip.run.engine.work import Failure, Ledger, Worker, worker_died

_OBJECT_STORE_BYTES = 100 * 2**20
"""Ray's share of memory on this machine; only messages pass through it, since files go to the run."""
_STOP = "stop"
"""The concurrency group of `_Actor.stop`, which is called while a shard is made."""


class RayEngine:
    def __init__(self, config: EngineConfig) -> None:
        self._config = config

    def map(self, load: Load, shards: Sequence[Shard], resources: Resources) -> Iterator[Progress | Done]:
        if not shards:
            return
        _connect(self._config.ray)
        pool = _Pool(load, self._count(resources, len(shards)), resources, self._config.attempts)
        try:
            yield from pool.run(Ledger(shards, self._config.attempts))
        finally:
            pool.stop()

    def _count(self, resources: Resources, shards: int) -> int:
        """How many actors: one a GPU where there are any, else one a core."""
        cpus, gpus = cluster_size()
        useful = gpus // resources.gpus if resources.gpus and gpus else cpus // resources.cpus
        wanted = useful if self._config.workers == "auto" else self._config.workers
        return max(1, min(wanted, shards, resources.max_workers or shards))


def _connect(config: RayConfig) -> None:
    """Join Ray, or start it; it stays for the stages to come and ends with this process."""
    with needs_extra("ray", "engine.kind=ray"):
        import ray
    if ray.is_initialized():
        return
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    if config.address == "local":
        cores = len(os.sched_getaffinity(0))
        ray.init(
            "local",
            num_cpus=cores,
            include_dashboard=False,
            object_store_memory=_OBJECT_STORE_BYTES,
            **quiet,
        )
        return
    try:
        ray.init(config.address, **quiet)
    except (ConnectionError, ValueError, RuntimeError) as error:
        told = str(error).splitlines()[0].split(". ")[0]
        raise SynthClipError(
            f"engine.ray.address {config.address!r}: no Ray answers there ({told}): "
            "start one with `ray start --head`, or use 'local'"
        ) from None


def cluster_size() -> tuple[int, int]:
    """CPUs and GPUs of all nodes."""
    import ray

    total = ray.cluster_resources()
    return int(total.get("CPU", 1)), int(total.get("GPU", 0))


class _Actor:
    """A worker. Its work runs in a thread, so that progress can be told while it runs."""

    def __init__(self, load: bytes, path: list[str], folder: str, threads: int) -> None:
        sys.path[:] = path  # modules and relative paths are found where the run was started
        os.chdir(folder)
        # Here rather than in a runtime_env, with which Ray takes half as long again to start a worker.
        os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads)))
        self._worker = Worker(pickle.loads(load))
        self._thread = threading.Thread()

    def ready(self) -> None:
        """Returns when the actor has found its place on a node."""

    def make(self, shard: Shard) -> Iterator[Progress | Done | Failure]:
        messages: SimpleQueue[Progress | Done | Failure] = SimpleQueue()

        def work() -> None:
            try:
                messages.put(self._worker.make(shard, messages.put))
            except BaseException:
                os._exit(1)  # whatever ends a process ends this one, and is seen as its death

        self._thread = threading.Thread(target=work, daemon=True)
        self._thread.start()
        while isinstance(message := messages.get(), Progress):
            yield message
        yield message

    def stop(self) -> None:
        """End this process: at once, or as soon as work that listens has saved itself."""
        if ask_to_stop():
            self._thread.join()
        os._exit(0)


@dataclass
class _Member:
    actor: Any
    pending: Any
    """What is awaited of the actor: that it is ready, or the stream of the shard it makes; None if idle."""
    shard: Shard | None = None


class _Pool:
    """Hands one shard at a time to each actor; one that dies, alone or with its node, is replaced."""

    def __init__(self, load: Load, count: int, resources: Resources, attempts: int) -> None:
        import ray

        cpus, gpus = cluster_size()
        node_cpus = min(int(node["Resources"].get("CPU", 1)) for node in ray.nodes() if node["Alive"])
        self._threads = max(1, min(cpus // count, node_cpus))
        self._options = {
            "num_cpus": resources.cpus,
            "num_gpus": resources.gpus if gpus else 0,
            "scheduling_strategy": "SPREAD",
        }
        self._load = ray.cloudpickle.dumps(load)  # a class of a script or a notebook goes along
        self._starts_left = attempts
        self._members = [self._start() for _ in range(count)]

    def run(self, ledger: Ledger) -> Iterator[Progress | Done]:
        import ray

        while ledger.open:
            for member in self._members:
                if member.pending is None and ledger.waiting:
                    member.shard = ledger.take()
                    member.pending = member.actor.make.remote(member.shard)
            ready, _ = ray.wait([member.pending for member in self._members if member.pending is not None])
            member = next(member for member in self._members if member.pending is ready[0])
            message = self._receive(member)
            if isinstance(message, Failure):
                ledger.failed(message)
            elif message is not None:
                if isinstance(message, Done):
                    ledger.done(message.shard)
                yield message

    def stop(self) -> None:
        """End all actors; a busy one gets its grace."""
        import ray

        stopping = [
            member.actor.stop.options(concurrency_group=_STOP).remote()
            for member in self._members
            if member.shard is not None
        ]
        if stopping:
            ray.wait(stopping, num_returns=len(stopping), timeout=GRACE_SECONDS)
        for member in self._members:
            ray.kill(member.actor)

    def _start(self) -> _Member:
        import ray

        kind = ray.remote(concurrency_groups={_STOP: 1}, **self._options)(_Actor)
        actor = kind.remote(self._load, sys.path, str(Path.cwd()), self._threads)
        return _Member(actor, actor.ready.remote())

    def _receive(self, member: _Member) -> Progress | Done | Failure | None:
        """What the actor says; None where it says that it is ready, or died before it was."""
        import ray

        shard, message = member.shard, None
        try:
            if shard is None:
                ray.get(member.pending)
            else:
                message = ray.get(next(member.pending))
        except ray.exceptions.RayError as error:
            fresh = self._start()
            member.actor, member.pending, member.shard = fresh.actor, fresh.pending, None
            if shard is not None:
                return worker_died(shard, type(error).__name__)
            self._starts_left -= 1
            if self._starts_left < 1:
                raise SynthClipError(f"Ray cannot start a worker: {str(error).splitlines()[-1]}") from None
            return None
        if not isinstance(message, Progress):
            member.pending = member.shard = None
        return message
