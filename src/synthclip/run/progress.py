"""What a run shows while it works: bars on a terminal, plain lines elsewhere."""

import contextlib
import sys
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, TextIO

from rich.console import Console as RichConsole
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.table import Table

from synthclip.run.engine import Done, Progress, Shard

if TYPE_CHECKING:
    from synthclip.run.stage import StageState, Status

_PLAIN_SECONDS = 10.0
_PLAIN_WIDTH = 160
"""Characters of a line in a file or a pipe, where a table that is folded cannot be searched."""


class Console:
    """Where a run's progress goes; standard error unless told."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._rich = RichConsole(file=stream or sys.stderr, highlight=False, soft_wrap=True)
        if not self._rich.is_terminal:
            self._rich.width = max(self._rich.width, _PLAIN_WIDTH)

    def plan(self, states: Sequence["StageState"]) -> None:
        """Which stages will be worked on and why, before the work begins."""
        if all(state.state == "current" for state in states):
            self.line("nothing to do: every stage is current")
            return
        for state in states:
            why = f": {state.reason}" if state.reason else ""
            self.line(f"{state.stage:9} {state.state}{why}")

    def line(self, text: str) -> None:
        self._rich.print(text, markup=False)

    def status(self, status: "Status") -> None:
        """A table of the stages: shards, rows, rejects by reason, time."""
        table = Table(box=None, pad_edge=False)
        for column in ("stage", "state", "shards", "rows", "rejected", "seconds"):
            table.add_column(column, justify="right" if column in ("shards", "rows", "seconds") else "left")
        for state in status.stages:
            seconds = status.seconds.get(state.stage)
            table.add_row(
                state.stage,
                f"{state.state} ({state.reason})" if state.reason else state.state,
                f"{len(state.manifests)}/{'?' if state.shards_total is None else state.shards_total}",
                str(state.rows),
                ", ".join(f"{reason} {count}" for reason, count in state.rejected.items()) or "-",
                "-" if seconds is None else f"{seconds:.1f}",
            )
        self._rich.print(table)
        if status.evaluated:
            figures = dict(status.evaluated)
            step = figures.pop("step")
            told = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
            self.line(f"evaluated in training, after step {step}: {told}")

    @contextlib.contextmanager
    def stage(self, name: str, todo: Sequence[Shard], total: int) -> Iterator["StageBar"]:
        bar: StageBar
        if self._rich.is_terminal:
            columns = (
                TextColumn("{task.description:9}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[figures]}"),
            )
            with RichProgress(*columns, console=self._rich) as rich:
                bar = _TerminalBar(name, todo, rich)
                yield bar
        else:
            bar = _PlainBar(name, todo, self)
            yield bar
        self.line(f"{name:9} {bar.summary(total)}")


class StageBar:
    """Counts what a stage has done; how it shows is its subclasses' matter."""

    def __init__(self, name: str, todo: Sequence[Shard]) -> None:
        self._name = name
        sizes = [shard.size for shard in todo]
        self._size = sum(sizes) if all(sizes) else None
        """The rows to expect, None where a shard cannot tell."""
        self._shards = len(todo)
        self._shards_done = 0
        self._inside: dict[str, int] = {}
        self._finished = 0
        self._rows = 0
        self._rejected = 0
        self._figures = ""
        self._started = time.monotonic()

    def progress(self, event: Progress) -> None:
        name = event.shard.name
        rows = self._inside.get(name, 0) + event.rows
        self._inside[name] = min(event.shard.size, rows) if event.shard.size else rows
        if event.figures:
            self._figures = " ".join(
                f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
                for key, value in event.figures.items()
            )
        self._show()

    def done(self, event: Done) -> None:
        inside = self._inside.pop(event.shard.name, 0)
        self._finished += event.shard.size or inside
        self._shards_done += 1
        self._rows += event.outcome.rows
        self._rejected += sum(event.outcome.rejected.values())
        self._show()

    def summary(self, total: int) -> str:
        refused = f", {self._rejected} rejected" if self._rejected else ""
        return (
            f"done: {self._shards_done} of {total} shards made, {self._rows} rows{refused}, "
            f"{self._seconds():.1f} s"
        )

    @property
    def _done(self) -> int:
        return self._finished + sum(self._inside.values())

    def _seconds(self) -> float:
        return time.monotonic() - self._started

    def _rate(self) -> str:
        return f"{self._done / max(self._seconds(), 1e-9):.1f}/s"

    def _show(self) -> None:
        raise NotImplementedError


class _TerminalBar(StageBar):
    def __init__(self, name: str, todo: Sequence[Shard], rich: RichProgress) -> None:
        super().__init__(name, todo)
        self._rich = rich
        self._task = rich.add_task(name, total=self._size, rate="", figures="")

    def _show(self) -> None:
        self._rich.update(self._task, completed=self._done, rate=self._rate(), figures=self._figures)


class _PlainBar(StageBar):
    def __init__(self, name: str, todo: Sequence[Shard], console: Console) -> None:
        super().__init__(name, todo)
        self._console, self._last = console, time.monotonic()

    def _show(self) -> None:
        now = time.monotonic()
        if now - self._last < _PLAIN_SECONDS:
            return
        self._last = now
        told = f"{self._done}, {self._rate()}"
        if self._size:
            left = (self._size - self._done) / max(self._done, 1) * self._seconds()
            share = f"{self._done / self._size:.0%}"
            told = f"{self._done}/{self._size} ({share}), {self._rate()}, {left:.0f} s left"
        self._console.line(f"{self._name:9} {told} {self._figures}".rstrip())
