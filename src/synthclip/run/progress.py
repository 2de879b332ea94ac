"""What long work shows: bars on a terminal, plain lines elsewhere."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, TextIO

from rich.console import Console as RichConsole
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.table import Table

from synthclip.errors import last_line
from synthclip.run.engine import Done, Failed, Progress, Shard

if TYPE_CHECKING:
    from synthclip.run.stage import StageState, Status

_PLAIN_SECONDS = 10.0
_PLAIN_WIDTH = 160
"""Characters of a line in a file or a pipe, where a table that is folded cannot be searched."""


class Console:
    """Where progress goes; standard error by default."""

    def __init__(self, stream: TextIO | None = None) -> None:
        file = stream or sys.stderr
        # Reasons and paths may hold a stranger's text: brackets in it are no markup.
        self._rich = RichConsole(file=file, highlight=False, soft_wrap=True, markup=False, emoji=False)
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
        self._rich.print(text)

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
                f"{len(state.manifests)}/{'?' if state.shards is None else len(state.shards)}",
                str(state.rows),
                ", ".join(f"{reason} {count}" for reason, count in state.rejected.items()) or "-",
                "-" if seconds is None else f"{seconds:.1f}",
            )
        self._rich.print(table)
        if status.evaluated:
            figures = dict(status.evaluated)
            step = figures.pop("step")
            shown = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
            self.line(f"evaluated in training, after step {step}: {shown}")
        for stage, failures in status.failed.items():
            last = failures[-1]
            self.line(
                f"failed attempts in {stage}: {len(failures)}, last shard {last['shard']}: {last['error']}"
            )

    @contextlib.contextmanager
    def tasks(self) -> Iterator["Tasks"]:
        """A bar on a terminal, a line for each task elsewhere."""
        if not self._rich.is_terminal:
            yield _TaskLines(self)
            return
        with RichProgress(*RichProgress.get_default_columns(), console=self._rich) as rich:
            yield _TaskBar(rich)

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
                bar = _TerminalBar(name, todo, self, rich)
                yield bar
        else:
            bar = _PlainBar(name, todo, self)
            yield bar
        self.line(f"{name:9} {bar.summary(total)}")


class Tasks:
    """Progress of work that is no stage, task after task.

    This class shows nothing; `Console.tasks` gives one that does.
    """

    def begin(self, task: str) -> None:
        """Name the task that is worked on from now."""

    def update(self, done: int, total: int) -> None:
        """Say how much of the task is done."""


class _TaskLines(Tasks):
    def __init__(self, console: Console) -> None:
        self._console = console

    def begin(self, task: str) -> None:
        self._console.line(task)


class _TaskBar(Tasks):
    def __init__(self, rich: RichProgress) -> None:
        self._rich, self._task = rich, rich.add_task("", total=None)

    def begin(self, task: str) -> None:
        self._rich.reset(self._task, description=escape(task), total=None)

    def update(self, done: int, total: int) -> None:
        self._rich.update(self._task, completed=done, total=total)


class StageBar:
    """Counts what a stage has done; its subclasses show it."""

    def __init__(self, name: str, todo: Sequence[Shard], line: Callable[[str], None]) -> None:
        self._name, self._line = name, line
        sizes = [shard.size for shard in todo]
        self._size = sum(sizes) if all(sizes) else None
        """The rows to expect, None where they are not known before."""
        self._shards = len(todo)
        self._shards_done = 0
        self._inside: dict[str, int] = {}
        self._finished = 0
        self._rows = 0
        self._rejected = 0
        self._failed = 0
        self._figures = ""
        self._started = time.monotonic()

    def progress(self, event: Progress) -> None:
        if not (event.rows or event.figures or event.note):  # a heartbeat
            return
        name = event.shard.name
        if event.note:
            self._line(f"{self._name:9} shard {name}: {event.note}")
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

    def failed(self, event: Failed) -> None:
        """Show an attempt that is followed by another; a final one ends the run with its error."""
        self._failed += 1
        self._inside.pop(event.shard.name, None)
        if not event.final:
            reason = last_line(event.error)
            self._line(f"{self._name:9} shard {event.shard.name}: attempt {event.attempt} failed: {reason}")
        self._show()

    def summary(self, total: int) -> str:
        rejected = f", {self._rejected} rejected" if self._rejected else ""
        failed = f", {self._failed} failed attempts" if self._failed else ""
        return (
            f"done: {self._shards_done} of {total} shards made, {self._rows} rows{rejected}{failed}, "
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
    def __init__(self, name: str, todo: Sequence[Shard], console: Console, rich: RichProgress) -> None:
        super().__init__(name, todo, console.line)
        self._rich = rich
        self._task = rich.add_task(name, total=self._size, rate="", figures="")

    def _show(self) -> None:
        figures = escape(self._figures)
        self._rich.update(self._task, completed=self._done, rate=self._rate(), figures=figures)


class _PlainBar(StageBar):
    def __init__(self, name: str, todo: Sequence[Shard], console: Console) -> None:
        super().__init__(name, todo, console.line)
        self._shown_at = time.monotonic()

    def _show(self) -> None:
        now = time.monotonic()
        if now - self._shown_at < _PLAIN_SECONDS:
            return
        self._shown_at = now
        shown = f"{self._done}, {self._rate()}"
        if self._size:
            left = (self._size - self._done) / max(self._done, 1) * self._seconds()
            share = f"{self._done / self._size:.0%}"
            shown = f"{self._done}/{self._size} ({share}), {self._rate()}, {left:.0f} s left"
        self._line(f"{self._name:9} {shown} {self._figures}".rstrip())
