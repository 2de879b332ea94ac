"""Maps work over shards. Knows no stage: it is handed a `load` that a worker calls once, and shards.

`local` runs processes on this machine, `ray` actors on this machine or a cluster, `slurm` a job array.
Another engine is another module here with a class that has the `map` of `Engine`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from synthclip.recipe.engine import EngineConfig
from synthclip.run.store import Outcome


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
    keep_memory: bool = False
    """Memory that is freed stays with the worker: for work that allocates the same large blocks each step."""


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
    figures: Mapping[str, float | str] = field(default_factory=dict)
    note: str = ""
    """A line worth showing at once: a server that does not answer, say. Work writes one as a warning of the
    logger `synthclip`, which a worker hands on."""


@dataclass(frozen=True)
class Done:
    """A shard that is finished."""

    shard: Shard
    outcome: Outcome
    seconds: float


@dataclass(frozen=True)
class Failed:
    """An attempt at a shard that came to nothing."""

    shard: Shard
    error: Exception
    attempt: int = 1
    """Counted from 1."""
    final: bool = False
    """No further attempt is made: `map` raises the error next."""


Event = Progress | Done | Failed


class Engine(Protocol):
    def map(self, load: Load, shards: Sequence[Shard], resources: Resources) -> Iterator[Event]:
        """Yield as things happen, in any order: a `Done` for every shard, a `Failed` for every attempt that
        failed. Raises the error of a shard that is not tried again."""
        ...


def build_engine(config: EngineConfig) -> Engine:
    if config.kind == "ray" and config.workers != 0:
        from synthclip.run.engine.ray import RayEngine

        return RayEngine(config)
    if config.kind == "slurm" and config.workers != 0:
        from synthclip.run.engine.slurm import SlurmEngine

        return SlurmEngine(config)
    from synthclip.run.engine.local import LocalEngine

    return LocalEngine(config)
