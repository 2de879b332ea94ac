"""Checkpoints in a folder: written completely or not at all, the last few kept."""

import os
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch.utils._pytree import tree_map

from synthclip.errors import SynthClipError, first_line
from synthclip.models.weights import TRAINING_FORMAT, archive_fault
from synthclip.run.store import disk_errors


class Checkpoints:
    """`step-<n>.pt` files, read without unpickling anything but tensors and plain values."""

    def __init__(self, folder: Path, keep: int) -> None:
        self._folder, self._keep = folder, keep
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Take a copy of the state and write it beside the training; then drop the oldest.

        What the last save could not write is raised here or in `finish`: a full disk, say, which leaves the
        earlier checkpoints as they are.
        """
        self.finish()
        copied = tree_map(_copied, {"format": TRAINING_FORMAT, "step": step, **state})
        self._writing = self._writer.submit(self._write, step, copied)

    def finish(self) -> None:
        """Wait until what was saved is on the disk."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def _write(self, step: int, state: dict[str, Any]) -> None:
        target = self._folder / _name(step)
        partial = target.with_suffix(".partial")
        with disk_errors(target):
            self._folder.mkdir(parents=True, exist_ok=True)
            try:
                with partial.open("wb") as handle:
                    torch.save(state, handle)
                    handle.flush()
                    os.fsync(handle.fileno())
            except BaseException as error:
                partial.unlink(missing_ok=True)
                if isinstance(error.__context__, OSError):
                    raise error.__context__ from None  # torch hides a full disk behind an error of its own
                raise
            partial.replace(target)
        for old in self._paths()[: -self._keep]:
            old.unlink(missing_ok=True)

    def latest(self) -> dict[str, Any] | None:
        """The newest state that can be read, or None where there is none."""
        paths = self._paths()
        for path in reversed(paths):
            try:
                return load(path)
            except SynthClipError:
                if path == paths[0]:
                    raise
        return None

    def last_good(self, step: int) -> Path | None:
        """The newest checkpoint from before `step`; those from then on, whose weights gave no loss, go."""
        self.finish()
        good = [path for path in self._paths() if path.name < _name(step)]
        for path in self._paths()[len(good) :]:
            path.unlink(missing_ok=True)
        return good[-1] if good else None

    def _paths(self) -> list[Path]:
        return sorted(self._folder.glob("step-*.pt"))


def _name(step: int) -> str:
    return f"step-{step:09d}.pt"


def load(path: Path) -> dict[str, Any]:
    """The state in a checkpoint file, on the CPU. Raises SynthClipError where it is no such file."""
    try:
        if fault := archive_fault(path):
            raise ValueError(fault)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = first_line(error)
        raise SynthClipError(f"{path}: not a checkpoint that can be read ({reason}): remove it") from None
    if not isinstance(state, dict) or state.get("format") != TRAINING_FORMAT:
        raise SynthClipError(f"{path}: not a training checkpoint of this package: remove it")
    return state


def _copied(value: Any) -> Any:
    return value.detach().to("cpu", copy=True) if isinstance(value, torch.Tensor) else value
