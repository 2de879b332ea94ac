"""Reads checkpoint files without running what is in them; writes the official `checkpoint_best.pt`.

An official checkpoint holds the paper's network under names of its own. open_clip builds the same network of
`PAPER_MODEL_CFG`: only the names differ, and the image projection is transposed.
"""

import argparse
import pickle
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from synthclip.errors import SynthClipError

if TYPE_CHECKING:
    from torch import Tensor

CONFIG_FILE = "open_clip_config.json"
"""The file by which open_clip knows a model folder."""
WEIGHTS_FILE = "open_clip_model.safetensors"
TRAINING_FORMAT = "synthclip-train-1"
"""What the `format` of a training's own checkpoints says."""
_PREFIX = "module."
_SHOWN = 3
_TRUNK, _HEAD = "visual.trunk.", "visual.head.proj.weight"


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What a checkpoint file holds, tensors on the CPU.

    Only tensors, plain containers and `argparse.Namespace` are unpickled; the file may not declare more
    data than it holds. Raises SynthClipError for any other file.
    """
    import torch

    refuse_unsafe(path)
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise _may_run_code(path, _asked_for(path)) from None
    except Exception as error:  # whatever a malformed file makes the reader raise
        raise SynthClipError(f"{path}: damaged: {_first_line(error)}: download it again") from None
    return checkpoint if isinstance(checkpoint, dict) else {}


def official_state_dict(path: Path, checkpoint: Mapping[str, Any]) -> "dict[str, Tensor]":
    """The weights in an official checkpoint, under the official names without the leading `module.`."""
    import torch

    state = checkpoint.get("state_dict")
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise SynthClipError(f"{path}: not an official checkpoint: it holds no 'state_dict' of tensors")
    return {str(name).removeprefix(_PREFIX): value for name, value in state.items()}


def from_official(state: "Mapping[str, Tensor]") -> "dict[str, Tensor]":
    """Weights under the official names, under open_clip's."""
    renamed = {}
    for name, value in state.items():
        if name == "image_projection":
            renamed[_HEAD] = value.T.contiguous()
        elif name.startswith("visual."):
            renamed[_TRUNK + name.removeprefix("visual.")] = value
        else:
            renamed[name] = value
    return renamed


def to_official(state: "Mapping[str, Tensor]") -> "dict[str, Tensor]":
    """The inverse of `from_official`."""
    renamed = {}
    for name, value in state.items():
        if name == _HEAD:
            renamed["image_projection"] = value.T.contiguous()
        elif name.startswith(_TRUNK):
            renamed["visual." + name.removeprefix(_TRUNK)] = value
        else:
            renamed[name] = value
    return renamed


def write_checkpoint(path: Path, state: "Mapping[str, Tensor]") -> None:
    """Write weights under open_clip's names as an official checkpoint; the optimiser's part is empty."""
    import torch

    torch.save(
        {
            "epoch": 0,
            "state_dict": {
                _PREFIX + name: value.detach().cpu() for name, value in to_official(state).items()
            },
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
    if misfit := differences(state, expected):
        raise SynthClipError(f"{path}: not the weights of {name}: {misfit}")


def differences(state: "Mapping[str, Tensor]", expected: "Mapping[str, Tensor]") -> str:
    """The keys in which weights differ from those of an architecture, the first few; empty where none do."""
    reshaped = [
        f"{key} is {list(state[key].shape)}, not {list(expected[key].shape)}"
        for key in expected
        if key in state and state[key].shape != expected[key].shape
    ]
    return listed_keys(expected.keys() - state.keys(), state.keys() - expected.keys(), reshaped)


def listed_keys(missing: Iterable[str], unexpected: Iterable[str], reshaped: Sequence[str]) -> str:
    """`lacks a, b, c and 9 more; has the unknown d; shapes differ: …`: of each kind the first few."""
    kinds = (
        ("lacks", sorted(missing)),
        ("has the unknown", sorted(unexpected)),
        ("shapes differ:", list(reshaped)),
    )
    return "; ".join(
        f"{label} {', '.join(keys[:_SHOWN])}{f' and {len(keys) - _SHOWN} more' if len(keys) > _SHOWN else ''}"
        for label, keys in kinds
        if keys
    )


def archive_fault(path: Path) -> str | None:
    """Why a file cannot be what `torch.save` writes, or None. Raises OSError where it cannot be read.

    `torch.save` stores everything as it is: a file that declares more data than it holds would take memory
    for what is not there.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except zipfile.BadZipFile:
        return "not a checkpoint that torch.save wrote, or cut short"
    declared, held = sum(member.file_size for member in members), path.stat().st_size
    if declared > held or any(member.compress_type != zipfile.ZIP_STORED for member in members):
        return (
            f"refused: declares {declared:,} bytes of data in a file of {held:,} bytes, which torch.save "
            "never writes"
        )
    return None


def refuse_unsafe(path: Path) -> None:
    """Raise SynthClipError where a checkpoint file is cut short, or holds more than plain values."""
    try:
        fault = archive_fault(path)
    except OSError as error:
        raise SynthClipError(f"{path}: cannot be read: {error.strerror}") from None
    if fault:
        raise SynthClipError(f"{path}: {fault}: download it again")
    if asked := _asked_for(path):
        raise _may_run_code(path, asked)


def _may_run_code(path: Path, asked: str) -> SynthClipError:
    return SynthClipError(
        f"{path}: refused: its pickle asks for more than tensors and arguments{asked}; "
        "it may run code, so do not load it by other means unless you trust its source"
    )


def _asked_for(path: Path) -> str:
    """` (posix.system)`: the names that the pickle would import, as far as they can be read."""
    import torch

    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # a hostile pickle may break the very reading of its names
        return ""
    return f" ({', '.join(sorted(names)[:_SHOWN])})" if names else ""


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
