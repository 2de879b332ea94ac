"""Reads checkpoint files without running what is in them; writes the official `checkpoint_best.pt`."""

import argparse
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from synthclip.errors import SynthClipError

if TYPE_CHECKING:
    from torch import Tensor

_PREFIX = "module."
_SHOWN = 3


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What a checkpoint file holds, tensors on the CPU.

    Only tensors, plain containers and `argparse.Namespace` are unpickled; the file may not declare more
    data than it holds. Raises SynthClipError for any other file.
    """
    import torch

    _refuse_bad_archive(path)
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise SynthClipError(
            f"{path}: refused: its pickle asks for more than tensors and arguments{_asked_for(path)}; "
            "it may run code, so do not load it by other means unless you trust its source"
        ) from None
    except Exception as error:  # whatever a malformed file makes the reader raise
        raise SynthClipError(f"{path}: damaged: {_first_line(error)}: download it again") from None
    return checkpoint if isinstance(checkpoint, dict) else {}


def official_state_dict(path: Path, checkpoint: Mapping[str, Any]) -> "dict[str, Tensor]":
    """The weights in an official checkpoint, names without the leading `module.`."""
    import torch

    state = checkpoint.get("state_dict")
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise SynthClipError(f"{path}: not an official checkpoint: it holds no 'state_dict' of tensors")
    return {str(name).removeprefix(_PREFIX): value for name, value in state.items()}


def write_checkpoint(path: Path, state: "Mapping[str, Tensor]") -> None:
    """Write weights as an official checkpoint; the optimiser's part is empty."""
    import torch

    torch.save(
        {
            "epoch": 0,
            "state_dict": {_PREFIX + name: value.detach().cpu() for name, value in state.items()},
            "optimizer": {},
            "scaler": {},
            "best_acc1": 0.0,
            "args": argparse.Namespace(model="CLIP_VITB16"),
        },
        path,
    )


def refuse_other_architecture(
    path: Path, state: "Mapping[str, Tensor]", expected: "Mapping[str, Tensor]", name: str
) -> None:
    """Raise SynthClipError that names the keys in which `state` differs from `expected`, if it does."""
    missing = sorted(expected.keys() - state.keys())
    unexpected = sorted(state.keys() - expected.keys())
    reshaped = [
        f"{key} is {list(state[key].shape)}, not {list(expected[key].shape)}"
        for key in expected
        if key in state and state[key].shape != expected[key].shape
    ]
    parts = [
        f"{label} {', '.join(keys[:_SHOWN])}{f' and {len(keys) - _SHOWN} more' if len(keys) > _SHOWN else ''}"
        for label, keys in (("lacks", missing), ("has the unknown", unexpected), ("shapes differ:", reshaped))
        if keys
    ]
    if parts:
        raise SynthClipError(f"{path}: not the weights of {name}: {'; '.join(parts)}")


def _refuse_bad_archive(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except OSError as error:
        raise SynthClipError(f"{path}: cannot be read: {error.strerror}") from None
    except zipfile.BadZipFile:
        raise SynthClipError(
            f"{path}: not a checkpoint that torch.save wrote, or cut short: download it again"
        ) from None
    declared, held = sum(member.file_size for member in members), path.stat().st_size
    if declared > held or any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise SynthClipError(
            f"{path}: refused: declares {declared:,} bytes of data in a file of {held:,} bytes, "
            "which torch.save never writes"
        )


def _asked_for(path: Path) -> str:
    """` (posix.system)`: the names that the pickle would import, as far as they can be told."""
    import torch

    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # a hostile pickle may break the very reading of its names
        return ""
    return f" ({', '.join(sorted(names)[:_SHOWN])})" if names else ""


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
