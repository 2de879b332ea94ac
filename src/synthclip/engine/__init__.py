"""Maps work over shards. Knows no stage: it is handed a `load` that a worker calls once, and shards.

`local` runs processes on this machine, `ray` actors on this machine or a cluster, `slurm` a job array.
Another engine is another module here with a class that has the `map` of `Engine`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Protocol

from pydantic import Field

from synthclip.config import Section, runtime
from synthclip.store import Outcome


@dataclass(frozen=True)
class Shard:
    """The unit of work, of retry and of resume.

    `inputs` names the digests of all that the shard is made from: a shard whose inputs, name and stage
    values are unchanged is not made again. `payload` is whatever else the work needs; it must follow from
    the inputs. `size` is the number of rows expected, for progress.
    """

    name: str
    inputs: Mapping[str, str]
    payload: Mapping[str, Any] = field(default_factory=dict)
    size: int = 1
    """Rows to expect, for the progress bar; 0 where only the work itself can tell."""


@dataclass(frozen=True)
class Resources:
    """What one worker of a stage wants. `max_workers` bounds how many are of use, None for no bound.

    With several `nodes`, of SLURM or Ray, `cpus` and `gpus` are those of each; the worker runs on the first
    and starts what runs on the others itself.
    """

    cpus: int = 1
    gpus: int = 0
    nodes: int = 1
    max_workers: int | None = None


class Tick(Protocol):
    """Tells of progress inside a shard: rows done since the last call, and figures worth showing."""

    def __call__(self, rows: int, **figures: float | str) -> None: ...


Work = Callable[[Shard, Tick], Outcome]
Load = Callable[[], Work]
"""Called once in each worker, then its result is called for every shard. Must pickle."""


@dataclass(frozen=True)
class Progress:
    """Rows done inside a shard that is not finished yet."""

    shard: Shard
    rows: int
    figures: Mapping[str, float | str]


@dataclass(frozen=True)
class Done:
    """A shard that is finished."""

    shard: Shard
    outcome: Outcome
    seconds: float


class RayConfig(Section):
    """For `kind: ray`. The run directory must lie where every node sees it under one path."""

    address: str = runtime("local")
    """`local` starts a Ray of its own on this machine; `auto` or `host:6379` joins one that runs."""


class SlurmConfig(Section):
    """For `kind: slurm`: a job array. The run directory must lie where every node sees it under one path."""

    executor: Literal["slurm", "local"] = runtime("slurm")
    """`local` runs the jobs as processes of this machine instead, to try a set-up out."""
    folder: str = runtime("slurm")
    """Where job scripts, logs and messages go; every node must see it."""
    partition: str | None = runtime(None)
    account: str | None = runtime(None)
    timeout_min: int = runtime(240, ge=1)
    """After it a job is requeued and goes on with the shard it was at."""
    mem_gb: int | None = runtime(None, ge=1)
    cpus: int | None = runtime(None, ge=1)
    """CPUs of a job; None for what the stage asks for."""
    gpus: int | None = runtime(None, ge=0)
    """GPUs of a job; None for what the stage asks for."""
    options: dict[str, str] = runtime({})
    """Further options of sbatch by their long names, such as `qos` or `constraint`."""


class EngineConfig(Section):
    """Where the work runs. None of it changes a result."""

    kind: Literal["local", "ray", "slurm"] = runtime("local")
    workers: Annotated[int, Field(ge=0)] | Literal["auto"] = runtime("auto")
    """Processes, actors or jobs. `auto` is one a GPU, or one a core, and with `slurm` up to 16 jobs; 0 runs
    in this very process, for a debugger."""
    attempts: int = runtime(3, ge=1)
    """How often a shard is tried before the run stops."""
    ray: RayConfig = runtime(RayConfig())
    slurm: SlurmConfig = runtime(SlurmConfig())


class Engine(Protocol):
    def map(self, load: Load, shards: Sequence[Shard], resources: Resources) -> Iterator[Progress | Done]:
        """Yield as things happen, in any order; a `Done` for every shard, or raise."""
        ...


def build_engine(config: EngineConfig) -> Engine:
    if config.kind == "ray" and config.workers != 0:
        from synthclip.engine.ray import RayEngine

        return RayEngine(config)
    if config.kind == "slurm" and config.workers != 0:
        from synthclip.engine.slurm import SlurmEngine

        return SlurmEngine(config)
    from synthclip.engine.local import LocalEngine

    return LocalEngine(config)
