"""What a training logs while it runs: `metrics.jsonl`, TensorBoard, wandb, trackio."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from synthclip.errors import SynthClipError, first_line, needs_extra
from synthclip.recipe.training import LoggerName
from synthclip.run.store import RunDirectory

Values = Mapping[str, str | None]


class _Logger(NamedTuple):
    write: Callable[[int, Mapping[str, float]], object]
    """Takes a step and its figures, by their names."""
    close: Callable[[], object]


class Logs:
    """Writes figures to all of the loggers. Those that know runs by an id continue the same one.

    `values` are the recipe's, by their dotted keys: the loggers' hyper-parameters.
    """

    def __init__(
        self, names: Sequence[LoggerName], run: RunDirectory, run_id: str, values: Values | None = None
    ) -> None:
        self._run = run
        self._loggers = [_OPEN[name](run.path, run_id, values or {}) for name in names]

    def begin(self, step: int, steps: int) -> None:
        """Say that training goes on from `step` of `steps`."""
        self._run.log(event="training", step=step, steps=steps)

    def __call__(self, event: str, step: int, figures: Mapping[str, float]) -> None:
        """`event` says what the figures are of: `train` or `eval`."""
        self._run.log(event=event, step=step, **figures)
        for logger in self._loggers:
            logger.write(step, {f"{event}/{name}": value for name, value in figures.items()})

    def close(self) -> None:
        """Close the loggers; nothing follows in this process."""
        for logger in self._loggers:
            logger.close()


def _tensorboard(path: Path, run_id: str, values: Values) -> _Logger:
    with needs_extra("train", "training.loggers=[tensorboard]"):
        from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(path / "logs" / "tensorboard" / run_id))
    writer.add_hparams(dict(values), {}, run_name=".")

    def write(step: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    return _Logger(write, writer.close)


def _wandb(path: Path, run_id: str, values: Values) -> _Logger:
    with needs_extra("wandb", "training.loggers=[wandb]"):
        import wandb

    folder = path / "logs"
    folder.mkdir(parents=True, exist_ok=True)  # else wandb writes to the system's folder for temporary files
    try:
        run: Any = wandb.init(
            project="synthclip",
            name=path.name,
            id=run_id,
            resume="allow",
            dir=folder,
            config=dict(values),
        )
    except wandb.errors.Error as error:
        reason = first_line(error)
        raise SynthClipError(
            f"training.loggers=[wandb]: {reason}: run `wandb login`, or set WANDB_MODE=offline"
        ) from None
    return _Logger(lambda step, figures: run.log(dict(figures), step=step), run.finish)


def _trackio(path: Path, run_id: str, values: Values) -> _Logger:
    with needs_extra("trackio", "training.loggers=[trackio]"):
        import trackio

    try:
        run: Any = trackio.init(
            project="synthclip", name=f"{path.name}-{run_id}", resume="allow", config=dict(values)
        )
    except Exception as error:  # trackio and the hub's client share no base class
        reason = first_line(error)
        raise SynthClipError(
            f"training.loggers=[trackio]: {reason}: run `hf auth login`, or unset TRACKIO_SPACE_ID"
        ) from None
    return _Logger(lambda step, figures: run.log(dict(figures), step=step), trackio.finish)


_OPEN: Mapping[LoggerName, Callable[[Path, str, Values], _Logger]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "trackio": _trackio,
}
