"""What a training tells while it runs: `metrics.jsonl`, TensorBoard, wandb, trackio."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from synthclip.errors import SynthClipError
from synthclip.store import RunDirectory
from synthclip.training.config import LoggerName

Write = Callable[[int, Mapping[str, float]], None]
"""Takes a step and its figures, by their names."""


class Logs:
    """Writes figures to all of the loggers. Those that know runs by an id go on with the same one."""

    def __init__(self, names: Sequence[LoggerName], run: RunDirectory, run_id: str) -> None:
        self._run = run
        self._writes = [_open(name, run.path, run_id) for name in names]

    def __call__(self, event: str, step: int, figures: Mapping[str, float]) -> None:
        """`event` says what the figures are of: `train` or `eval`."""
        self._run.log(event=event, step=step, **figures)
        for write in self._writes:
            write(step, {f"{event}/{name}": value for name, value in figures.items()})


def _open(name: LoggerName, path: Path, run_id: str) -> Write:
    try:
        return {"tensorboard": _tensorboard, "wandb": _wandb, "trackio": _trackio}[name](path, run_id)
    except ImportError:
        raise SynthClipError(
            f"training.loggers: {name} is not installed: `pip install {name}`, or leave it out"
        ) from None


def _tensorboard(path: Path, run_id: str) -> Write:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(path / "logs" / "tensorboard" / run_id))

    def write(step: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    return write


def _wandb(path: Path, run_id: str) -> Write:
    import wandb

    run: Any = wandb.init(project="synthclip", name=path.name, id=run_id, resume="allow", dir=path / "logs")

    def write(step: int, figures: Mapping[str, float]) -> None:
        run.log(dict(figures), step=step)

    return write


def _trackio(path: Path, run_id: str) -> Write:
    import trackio

    run: Any = trackio.init(project="synthclip", name=f"{path.name}-{run_id}", resume="allow")

    def write(step: int, figures: Mapping[str, float]) -> None:
        run.log(dict(figures), step=step)

    return write
