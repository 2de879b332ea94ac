"""What a stage of the pipeline is: shards to make, a worker that makes one, and its state in a run."""

import json
import shutil
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import pyarrow as pa

from synthclip.errors import SynthClipError
from synthclip.keys import digest
from synthclip.recipe import Recipe
from synthclip.run.durable import rejected_by_reason
from synthclip.run.engine import Resources, Shard, Tick, Work
from synthclip.run.live import Activity
from synthclip.run.store import Manifest, Outcome, RunDirectory, ShardWriter, disk_errors

_encode = json.JSONEncoder(sort_keys=True, ensure_ascii=False).encode
_quote = json.encoder.encode_basestring


class Stage(ABC):
    """One step of the pipeline over one run. Cheap to construct: models are loaded in `load`.

    A worker calls `load` once, then `make` for each of its shards.
    """

    name: ClassVar[str]
    """The stage's command and its folder in the run."""
    reads: tuple[str, ...]
    """The stages whose files it reads. A recipe that imports what they would make may leave them out."""
    sections: ClassVar[tuple[str, ...]]
    """The parts of the recipe that decide its result: when one changes, the stage is stale."""
    revision: ClassVar[int] = 1
    """Raised when new code writes other bytes from the same inputs."""
    may_be_empty: ClassVar[bool] = False
    """Whether all its shards together may hold no row; else the run stops there."""
    rejects: ClassVar[pa.Schema | None] = None
    """The columns of the rows that it refuses, `reason` among them; None for `schema.REJECTED`."""

    def __init__(self, recipe: Recipe, run: RunDirectory) -> None:
        self.recipe, self.run = recipe, run
        self._encoded: tuple[object, str] = None, ""

    @property
    def wanted(self) -> bool:
        """Whether the recipe has this stage, or the run still holds what an earlier recipe had it make."""
        return True

    @abstractmethod
    def shards(self) -> Sequence[Shard]:
        """All shards, in order. Called when the stages in `reads` are complete."""

    def check(self) -> None:  # noqa: B027
        """Called before the first stage of a run makes anything, where this one is not current.

        Refuses what can be known not to work, so that it is said before it costs.
        """

    def notes(self) -> Sequence[str]:
        """What the user should know before the run begins, a line each."""
        return ()

    def prepare(self) -> None:  # noqa: B027
        """Called in the parent just before workers start, where any shard is to be made.

        Refuses what no worker could do, and builds what all workers share.
        """

    def load(self) -> None:  # noqa: B027
        """Load what `make` needs: models, a matcher."""

    @abstractmethod
    def make(self, shard: Shard, writer: ShardWriter, tick: Tick) -> Outcome:
        """Make one shard: write its files and what it refuses through `writer`; report progress to `tick`."""

    def resources(self) -> Resources:
        """What one worker wants."""
        return Resources()

    def finish(self, manifests: Sequence[Manifest]) -> None:  # noqa: B027
        """Called each time all shards are there; writes what spans them, the same for the same shards."""

    def partial(self, shard: Shard) -> Path:
        """A folder for progress inside a long shard, a checkpoint say.

        It outlives a kill and is removed once the shard is complete. Its name holds the fingerprint, so that
        progress of another recipe is never taken up.
        """
        return self.run.file(self.name, f"partial/{self.fingerprint(shard)[:16]}")

    @cached_property
    def values(self) -> dict[str, object]:
        """The recipe values that decide the result, by section."""
        return {section: self.recipe.section_results(section) for section in self.sections}

    def values_of(self, shard: Shard) -> dict[str, object]:
        """Those of `values` that decide this shard; the same object for all shards that they decide."""
        return self.values

    def fingerprint(self, shard: Shard) -> str:
        """What the shard is made of: equal fingerprints mean equal files."""
        values = self.values_of(shard)
        if values is not self._encoded[0]:  # they are large
            self._encoded = values, _encode(values)
        inputs = ", ".join(f"{_quote(name)}: {_quote(known)}" for name, known in sorted(shard.inputs.items()))
        # As `_encode` would write it, in a fifth of the time.
        return digest(
            f'{{"inputs": {{{inputs}}}, "revision": {self.revision}, "shard": {_quote(shard.name)}, '
            f'"stage": {_quote(self.name)}, "values": {self._encoded[1]}}}'
        )

    def manifests_of(self, stage: str) -> list[Manifest]:
        """The manifests of a stage that this one reads. Raises where it is not there."""
        manifests = self.run.manifests(stage)
        if not manifests:
            raise SynthClipError(
                f"{self.run.path}: stage {self.name!r} needs {stage!r}, which is not there: "
                f"run `synthclip {stage}` first, or `synthclip run` for all"
            )
        return manifests


@dataclass(frozen=True)
class StageState:
    """One stage of a run, compared with the recipe."""

    stage: str
    state: Literal["new", "current", "incomplete", "stale", "waiting", "unchecked"]
    """`waiting`: a stage that it reads is not current, so what it needs cannot be known yet.
    `unchecked`: it is there, but what it was made from, a model's file say, is not on this machine."""
    reason: str = ""
    shards: Sequence[Shard] | None = None
    """All that the stage consists of; None where that is not known yet."""
    manifests: tuple[Manifest, ...] = ()
    """The shards that are current; of a stage that waits or is unchecked, all that are complete."""

    @property
    def usable(self) -> bool:
        """Whether later stages may read it."""
        return self.state in ("current", "unchecked")

    @property
    def rows(self) -> int:
        return sum(manifest.rows for manifest in self.manifests)

    @property
    def rejected(self) -> Mapping[str, int]:
        """Rows refused, by reason, the most frequent first."""
        return rejected_by_reason(self.manifests)


@dataclass(frozen=True)
class Status:
    """The state of a run: its stages, and the wall seconds last spent on each."""

    path: Path
    stages: tuple[StageState, ...]
    seconds: dict[str, float] = field(default_factory=dict)
    evaluated: Mapping[str, Any] | None = None
    """The last figures that a training took on its way, by name, and their `step`."""
    failed: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    """Attempts that failed, by stage, as in `metrics.jsonl`: `shard`, `attempt`, `final`, `error`."""
    tokens: Mapping[str, float] = field(default_factory=dict)
    """What the language model has `read` and `written`, and its `cost` where the recipe has prices: of all
    attempts, also those that failed or were made again."""
    vision_tokens: Mapping[str, float] = field(default_factory=dict)
    """The same of the vision model that looked at the images."""
    holder: str | None = None
    """Who writes to the run just now, such as `process 12 on node3`."""
    activity: Activity | None = None
    """The stage at work or, without a `holder`, the one at which the run was stopped."""
    error: Mapping[str, Any] | None = None
    """The last attempt that ended a command, as in `failed` with its `stage`; None once its stage is made."""

    @property
    def next(self) -> list[str]:
        """What the next `synthclip run` makes: stages, with how many of their shards where that is known."""
        made = []
        for state in self.stages:
            if not state.usable:
                total = len(state.shards or ())
                left = total - len(state.manifests)
                made.append(f"{state.stage} ({left} of {total} shards)" if total else state.stage)
        return made

    def plain(self) -> dict[str, Any]:
        """All of it as plain JSON types."""
        stages = [
            {
                "stage": state.stage,
                "state": state.state,
                "reason": state.reason,
                "shards_made": len(state.manifests),
                "shards": None if state.shards is None else len(state.shards),
                "rows": state.rows,
                "rejected": dict(state.rejected),
                "seconds": self.seconds.get(state.stage),
                "failed_attempts": len(self.failed.get(state.stage, ())),
            }
            for state in self.stages
        ]
        return {
            "path": str(self.path),
            "running": self.holder,
            "activity": None if self.activity is None else asdict(self.activity),
            "stages": stages,
            "evaluated": self.evaluated,
            "tokens": dict(self.tokens),
            "vision_tokens": dict(self.vision_tokens),
            "error": self.error,
            "next": self.next,
        }


def tokens_spent(metrics: Iterable[Mapping[str, Any]], stage: str | None = None) -> dict[str, float]:
    """What the lines of `metrics.jsonl` say of tokens, summed over all stages or of one: see
    `Status.tokens`."""
    total: Counter[str] = Counter()
    for line in metrics:
        if line.get("event") == "tokens" and stage in (None, line["stage"]):
            total.update({name: line[name] for name in ("read", "written", "cost") if name in line})
    return dict(total)


@dataclass(frozen=True)
class StageLoad:
    """What a worker is sent: enough to build the stage there and make shards of it."""

    stage: type[Stage]
    recipe: Recipe
    path: Path

    def __call__(self) -> Work:
        run = RunDirectory(self.path)
        stage = self.stage(self.recipe, run)
        stage.load()

        def work(shard: Shard, tick: Tick) -> Outcome:
            with (
                disk_errors(run.stage(stage.name)),
                run.begin(stage.name, shard.name, stage.fingerprint(shard), stage.rejects) as writer,
            ):
                made = writer.commit(stage.make(shard, writer, tick))
            shutil.rmtree(stage.partial(shard), ignore_errors=True)
            return Outcome(made.rows, made.rejected, made.notes)

        return work
