"""What long work shows: bars on a terminal, plain lines elsewhere."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, TextIO

from rich.console import Console as RichConsole
from rich.console import Group
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress
from rich.table import Column, Table
from rich.text import Text

from synthclip.errors import last_line
from synthclip.run.engine import Done, Failed, Progress, Shard

if TYPE_CHECKING:
    from synthclip.run.live import Activity
    from synthclip.run.stage import StageState, Status

_PLAIN_SECONDS = 10.0
_WIDE = 100
"""Characters of a terminal that has room for rate, elapsed time and all figures."""
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
        """A table of the stages (shards, rows, rejects by reason, time), what goes on, what comes next."""
        self._rich.print(_shown(status))

    def watch(self, read: Callable[[], "Status"], every_s: float = 2.0) -> None:
        """Show a status that is read again and again, until Ctrl-C."""
        live = Live(console=self._rich, auto_refresh=False)
        try:
            live.start()
            while True:
                live.update(_shown(read(), no_wrap=False), refresh=True)
                time.sleep(every_s)
        except KeyboardInterrupt:
            pass
        finally:
            live.stop()

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
            narrow = self._rich.width < _WIDE
            columns = (
                TextColumn("{task.description:9}"),
                BarColumn(10 if narrow else 40),
                MofNCompleteColumn(),
                TextColumn("{task.fields[left]}"),
                *([] if narrow else [TextColumn("{task.fields[rate]}"), TimeElapsedColumn()]),
                TextColumn("{task.fields[figures]}", table_column=Column(no_wrap=True, overflow="ellipsis")),
            )
            with RichProgress(*columns, console=self._rich) as rich:
                bar = _TerminalBar(name, todo, self, rich)
                yield bar
        else:
            bar = _PlainBar(name, todo, self)
            yield bar
        self.line(f"{name:9} {bar.summary(total)}")


def _shown(status: "Status", no_wrap: bool | None = None) -> Group:
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
    return Group(table, *(Text(line, no_wrap=no_wrap, overflow="fold") for line in said(status)))


def said(status: "Status") -> Iterator[str]:
    """The lines below the table."""
    if status.evaluated:
        figures = dict(status.evaluated)
        step = figures.pop("step")
        shown = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
        yield f"evaluated in training, after step {step}: {shown}"
    for stage, failures in status.failed.items():
        last = failures[-1]
        yield f"failed attempts in {stage}: {len(failures)}, last shard {last['shard']}: {last['error']}"
    doing = f": {_doing(status.activity, status.holder is not None)}" if status.activity else ""
    if status.holder:
        yield f"running ({status.holder}){doing}"
        return
    if status.activity:
        yield f"stopped{doing}"
    if status.error:
        yield f"last error, in {status.error['stage']}: {status.error['error']}"
    todo = status.next
    makes = f"makes {', '.join(todo)}" if todo else "has nothing to do: every stage is current"
    yield f"next: `synthclip run {status.path}` {makes}"


def _doing(at: "Activity", running: bool) -> str:
    parts = [f"{at.stage}, step {at.done} of {at.total}"]
    if at.unit == "shards":
        parts = [f"{at.stage}, {at.done} of {at.total} shards"]
        if at.rate_per_s and running:
            parts.append(f"{60 * at.rate_per_s:.3g} shards/min")
    parts += [f"{name} {at.figures[name]:.4g}" for name in ("loss", "samples/s") if name in at.figures]
    if at.left_s is not None and running:
        parts.append(f"{duration(at.left_s)} left")
    if at.checkpoint_age_s is not None:
        parts.append(f"last checkpoint {duration(at.checkpoint_age_s)} ago")
    return ", ".join(parts)


def duration(seconds: float) -> str:
    """In the unit that means something: `40 s`, `3.5 min`, `2.0 days`."""
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


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
        self._figures: list[str] = []
        self._started = time.monotonic()
        self._first: tuple[float, int] | None = None
        """When the first rows were done, and how many: what lay before, models that load and rows that an
        earlier command made, says nothing of the pace."""

    def progress(self, event: Progress) -> None:
        if not (event.rows or event.figures or event.note):  # a heartbeat
            return
        name = event.shard.name
        if event.note:
            self._line(f"{self._name:9} shard {name}: {event.note}")
        rows = self._inside.get(name, 0) + event.rows
        self._inside[name] = min(event.shard.size, rows) if event.shard.size else rows
        self._paced()
        if event.figures:
            self._figures = [
                f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
                for key, value in event.figures.items()
                if key != "eta_s"  # the bar has it for the whole stage
            ]
        self._show()

    def done(self, event: Done) -> None:
        inside = self._inside.pop(event.shard.name, 0)
        self._finished += event.shard.size or inside
        self._shards_done += 1
        self._rows += event.outcome.rows
        self._rejected += sum(event.outcome.rejected.values())
        self._paced()
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

    def _paced(self) -> None:
        if self._first is None and self._done:
            self._first = (time.monotonic(), self._done)

    def _per_second(self) -> float | None:
        """Rows a second since the first were done."""
        if self._first is None or self._done <= self._first[1]:
            return None
        return (self._done - self._first[1]) / max(time.monotonic() - self._first[0], 1e-9)

    def _rate(self) -> str:
        pace = self._per_second()
        return f"{pace:.1f}/s" if pace else ""

    def _left(self) -> str:
        pace = self._per_second()
        return f"{duration((self._size - self._done) / pace)} left" if pace and self._size else ""

    def _show(self) -> None:
        raise NotImplementedError


class _TerminalBar(StageBar):
    def __init__(self, name: str, todo: Sequence[Shard], console: Console, rich: RichProgress) -> None:
        super().__init__(name, todo, console.line)
        self._rich = rich
        self._task = rich.add_task(name, total=self._size, rate="", left="", figures="")

    def _show(self) -> None:
        # Of figures that a narrow terminal has no room for, the first ones stay.
        figures = self._figures if self._rich.console.width >= _WIDE else self._figures[:1]
        self._rich.update(
            self._task,
            completed=self._done,
            rate=self._rate(),
            left=self._left(),
            figures=escape(" ".join(figures)),
        )


class _PlainBar(StageBar):
    def __init__(self, name: str, todo: Sequence[Shard], console: Console) -> None:
        super().__init__(name, todo, console.line)
        self._shown_at = time.monotonic()

    def _show(self) -> None:
        now = time.monotonic()
        if now - self._shown_at < _PLAIN_SECONDS:
            return
        self._shown_at = now
        count = (
            f"{self._done}/{self._size} ({self._done / self._size:.0%})" if self._size else str(self._done)
        )
        shown = ", ".join(part for part in (count, self._rate(), self._left()) if part)
        self._line(f"{self._name:9} {shown} {' '.join(self._figures)}".rstrip())
