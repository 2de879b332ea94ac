"""What every engine shares: making one shard in a worker, and counting attempts in the parent."""

import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from synthclip.errors import SynthClipError
from synthclip.run.engine import Done, Load, Progress, Shard, Work

_TICK_SECONDS = 0.2


class WorkError(Exception):
    """A defect in the work, with the worker's own traceback."""


@dataclass(frozen=True)
class Failure:
    """An attempt at a shard that came to nothing; `final` where another could not fare better."""

    shard: Shard
    error: Exception
    final: bool = False


class Worker:
    """Loads once, then makes shard after shard. Raises nothing: what goes wrong is a `Failure`."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._work: Work | None = None

    def make(self, shard: Shard, tell: Callable[[Progress], None]) -> Done | Failure:
        """Make the shard; `tell` hears of progress a few times a second, from whichever thread ticks."""
        started = time.monotonic()
        try:
            if self._work is None:
                self._work = self._load()
            outcome = self._work(shard, _Ticker(shard, tell))
        except SynthClipError as error:
            return Failure(shard, error, final=True)
        except Exception:
            return Failure(shard, WorkError(f"shard {shard.name} failed\n{traceback.format_exc()}"))
        return Done(shard, outcome, time.monotonic() - started)


class Ledger:
    """Which shards are still to be made, and how often each may be tried."""

    def __init__(self, shards: Sequence[Shard], attempts: int) -> None:
        self._waiting = deque(shards)
        self._left = {shard.name: attempts for shard in shards}

    @property
    def open(self) -> bool:
        """Whether any shard is not finished, waiting or not."""
        return bool(self._left)

    @property
    def waiting(self) -> bool:
        return bool(self._waiting)

    def take(self) -> Shard:
        """The next shard to try."""
        return self._waiting.popleft()

    def put_back(self, shard: Shard) -> None:
        """Undo a `take` whose attempt never began."""
        self._waiting.append(shard)

    def done(self, shard: Shard) -> None:
        del self._left[shard.name]

    def failed(self, failure: Failure) -> None:
        """Put the shard back, or raise where no attempt is left."""
        name = failure.shard.name
        self._left[name] -= 1
        if failure.final or self._left[name] < 1:
            raise failure.error
        self._waiting.append(failure.shard)


def worker_died(shard: Shard, how: str) -> Failure:
    """What is held against a shard whose worker vanished while making it."""
    return Failure(
        shard,
        SynthClipError(
            f"shard {shard.name}: its worker died ({how}) each time it was tried; if memory is short, "
            "run with a smaller engine.workers"
        ),
    )


class _Ticker:
    def __init__(self, shard: Shard, tell: Callable[[Progress], None]) -> None:
        self._shard, self._tell = shard, tell
        self._rows, self._last = 0, time.monotonic()

    def __call__(self, rows: int, **figures: float | str) -> None:
        self._rows += rows
        now = time.monotonic()
        if now - self._last >= _TICK_SECONDS:
            self._tell(Progress(self._shard, self._rows, figures))
            self._rows, self._last = 0, now
