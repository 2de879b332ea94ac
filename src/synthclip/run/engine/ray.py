"""Shards over Ray actors: on this machine, or on a cluster by its address."""

import contextlib
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from synthclip.errors import SynthClipError, first_line, last_line, needs_extra
from synthclip.recipe.engine import EngineConfig, RayConfig
from synthclip.run.engine import Done, Event, Failed, Load, Resources, Shard
from synthclip.run.engine.worker import (
    GRACE_SECONDS,
    Ledger,
    Worker,
    ask_to_stop,
    memory_settings,
    thread_counts,
    worker_count,
    worker_died,
)
from synthclip.run.threads import cores

_OBJECT_STORE_BYTES = 100 * 2**20
"""Ray's share of memory on this machine; only messages pass through it, since files go to the run."""
_STOP = "stop"
"""The concurrency group of `_Actor.stop`, which is called while a shard is made."""
_WAIT_SECONDS = 60
"""For the resources of nodes that are there."""


class RayEngine:
    def __init__(self, config: EngineConfig) -> None:
        self._config = config

    def map(self, load: Load, shards: Sequence[Shard], resources: Resources) -> Iterator[Event]:
        if not shards:
            return
        _connect(self._config.ray)
        count = worker_count(self._config, resources, len(shards), *cluster_size())
        pool = _Pool(load, count, resources, self._config.attempts)
        try:
            yield from pool.run(Ledger(shards, self._config.attempts))
        finally:
            pool.stop()


def _connect(config: RayConfig) -> None:
    """Join Ray, or start it; it stays for the stages to come and ends with this process."""
    with needs_extra("ray", "engine.kind=ray"):
        import ray
    if ray.is_initialized():
        return
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    if config.address == "local":
        available = cores()
        ray.init(
            "local",
            num_cpus=available,
            include_dashboard=False,
            object_store_memory=_OBJECT_STORE_BYTES,
            **quiet,
        )
        return
    try:
        ray.init(config.address, **quiet)
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = first_line(error).split(". ")[0]
        raise SynthClipError(
            f"engine.ray.address {config.address!r}: no Ray answers there ({reason}): "
            "start one with `ray start --head`, or use 'local'"
        ) from None


def cluster_size() -> tuple[int, int]:
    """CPUs and GPUs of all nodes."""
    import ray

    total = ray.cluster_resources()
    return int(total.get("CPU", 1)), int(total.get("GPU", 0))


class _Actor:
    """A worker. Its work runs in a thread, so that progress can be sent while it runs."""

    def __init__(self, load: bytes, path: list[str], folder: str, environment: Mapping[str, str]) -> None:
        sys.path[:] = path  # modules and relative paths are found where the run was started
        os.chdir(folder)
        # Here rather than in a runtime_env, with which Ray takes half as long again to start a worker.
        os.environ.update(environment)
        self._worker = Worker(pickle.loads(load))
        self._thread = threading.Thread()

    def ready(self) -> None:
        """Returns when the actor has found its place on a node."""

    def make(self, shard: Shard) -> Iterator[Event]:
        events: SimpleQueue[Event] = SimpleQueue()

        def work() -> None:
            try:
                self._worker.make(shard, events.put)
            except BaseException:
                os._exit(1)  # whatever ends a process ends this one, and is seen as its death

        self._thread = threading.Thread(target=work, daemon=True)
        self._thread.start()
        while not isinstance(event := events.get(), Done | Failed):
            yield event
        yield event

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
        self._environment = thread_counts(max(1, min(cpus // count, node_cpus)))
        self._options: dict[str, Any] = {
            "num_cpus": resources.cpus,
            "num_gpus": resources.gpus if gpus else 0,
            "scheduling_strategy": "SPREAD",
        }
        if memory := memory_settings(resources.keep_memory):  # read when the process starts
            self._options["runtime_env"] = {"env_vars": memory}
        self._load = ray.cloudpickle.dumps(load)  # a class of a script or a notebook goes along
        self._starts_left = attempts
        self._members = [self._start() for _ in range(count)]

    def run(self, ledger: Ledger) -> Iterator[Event]:
        import ray

        while ledger.open:
            for member in self._members:
                if member.pending is None and ledger.waiting:
                    member.shard = ledger.take()
                    member.pending = member.actor.make.remote(member.shard)
            ready, _ = ray.wait([member.pending for member in self._members if member.pending is not None])
            member = next(member for member in self._members if member.pending is ready[0])
            if event := self._receive(member):
                yield from ledger.record(event)

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
        actor = kind.remote(self._load, sys.path, str(Path.cwd()), self._environment)
        return _Member(actor, actor.ready.remote())

    def _receive(self, member: _Member) -> Event | None:
        """The next event of an actor; None where it became ready, or died before it was."""
        import ray

        shard = member.shard
        event: Event | None = None
        try:
            if shard is None:
                ray.get(member.pending)
            else:
                event = ray.get(next(member.pending))
        except ray.exceptions.RayError as error:
            fresh = self._start()
            member.actor, member.pending, member.shard = fresh.actor, fresh.pending, None
            if shard is not None:
                return worker_died(shard, type(error).__name__)
            self._starts_left -= 1
            if self._starts_left < 1:
                raise SynthClipError(f"Ray cannot start a worker: {last_line(error)}") from None
            return None
        if event is None or isinstance(event, Done | Failed):
            member.pending = member.shard = None
        return event


def in_ray() -> bool:
    """Whether this process is one of a Ray cluster."""
    ray: Any = sys.modules.get("ray")
    return ray is not None and ray.is_initialized()


def node_address() -> str:
    """Where the other nodes reach this one."""
    import ray

    return str(ray.util.get_node_ip_address())


@contextlib.contextmanager
def on_other_nodes(commands: Sequence[Sequence[str]], gpus: int) -> Iterator[Callable[[], list[str]]]:
    """Run each command on a node of its own, with this number of GPUs where the cluster has any.

    The value gives them some seconds to end, and what those that did have printed. Leaving ends the others.
    Raises SynthClipError where the cluster has too few nodes, or too few that are free.
    """
    import ray
    from ray.util.placement_group import placement_group, remove_placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    alive = sum(node["Alive"] for node in ray.nodes())
    if alive <= len(commands):
        raise SynthClipError(
            f"training.nodes={len(commands) + 1}: the Ray cluster has {alive}: start others with `ray start`"
        )
    gpus = gpus if cluster_size()[1] else 0
    bundle = {"CPU": 1, "GPU": gpus} if gpus else {"CPU": 1}
    group = placement_group([bundle] * len(commands), strategy="STRICT_SPREAD")
    try:
        if not group.wait(_WAIT_SECONDS):
            raise SynthClipError(
                f"training.nodes={len(commands) + 1}: other work holds the Ray cluster's nodes, "
                f"{gpus} GPUs are wanted of each: run the same command when they are free"
            )
        task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=0)(_output)
        places = [PlacementGroupSchedulingStrategy(group, number) for number in range(len(commands))]
        running = [
            task.options(scheduling_strategy=place).remote(list(command), str(Path.cwd()))
            for place, command in zip(places, commands, strict=True)
        ]

        def outputs() -> list[str]:
            ended, _ = ray.wait(running, num_returns=len(running), timeout=GRACE_SECONDS)
            printed: list[str] = ray.get(ended)
            return printed

        yield outputs
    finally:
        remove_placement_group(group)


def _output(command: list[str], folder: str) -> str:
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=folder, check=False).stdout
