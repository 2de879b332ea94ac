"""Reads checkpoint files without running what is in them; writes the official `checkpoint_best.pt`.

An official checkpoint holds the paper's network under names of its own. open_clip builds the same network of
`PAPER_MODEL_CFG`: only the names differ, and the image projection is transposed.
"""

import argparse
import json
import pickle
import re
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from synthclip.errors import SynthClipError, first_line

if TYPE_CHECKING:
    from torch import Tensor

CONFIG_FILE = "open_clip_config.json"
"""The file by which open_clip knows a model folder."""
WEIGHTS_FILE = "open_clip_model.safetensors"
TRAINING_FORMAT = "synthclip-train-1"
"""What the `format` of a training's own checkpoints says."""
_PREFIX = "module."
_WRAPPERS = re.compile(r"^(?:module\.|_orig_mod\.)+|_orig_mod\.")
_PREFERRED = (WEIGHTS_FILE, "open_clip_pytorch_model.bin", "open_clip_pytorch_model.pth", "model.safetensors")
"""As open_clip chooses where a folder holds several."""
_LFS_POINTER = b"version https://git-lfs"
_BEFORE_TORCH_1_6 = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19"
"""How files begin that `torch.save` wrote before they were zip archives: a number, pickled."""
_SHOWN = 3
_TRUNK, _HEAD = "visual.trunk.", "visual.head.proj.weight"


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What a checkpoint file of `torch.save` holds, tensors on the CPU.

    Only tensors, plain containers, NumPy scalars and `argparse.Namespace` are unpickled; the file may not
    declare more data than it holds. Raises SynthClipError for any other file.
    """
    import torch

    refuse_unsafe(path)
    try:
        with torch.serialization.safe_globals(_safe_names()):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise _may_run_code(path, _asked_for(path)) from None
    except Exception as error:  # whatever a malformed file makes the reader raise
        raise SynthClipError(f"{path}: damaged: {first_line(error)[:200]}: download it again") from None
    return checkpoint if isinstance(checkpoint, dict) else {}


def weight_files(folder: Path) -> list[Path]:
    """The files that hold a model folder's weights: one, or the shards that an index names.

    Safetensors come before pickles; each is looked at before it is trusted. Raises SynthClipError where there
    is none, or one is damaged.
    """
    index = next(iter(sorted(folder.glob("*.index.json"))), None)
    found = sorted(folder.glob("*.safetensors")) or sorted([*folder.glob("*.bin"), *folder.glob("*.pth")])
    if index is not None:
        try:
            names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise SynthClipError(f"{index}: cannot be loaded: not an index of weights") from None
        found = [folder / Path(str(name)).name for name in names]
    elif len(found) > 1:
        found = [path for path in found if path.name in _PREFERRED][:1] or found[:1]
    if not found:
        raise SynthClipError(f"{folder}: cannot be loaded: no weights in it (*.safetensors, *.bin or *.pth)")
    for path in found:
        if not path.is_file():
            raise SynthClipError(f"{folder}: cannot be loaded: {path.name} is missing: download it again")
        if path.suffix != ".safetensors":
            refuse_unsafe(path)
        elif fault := _safetensors_fault(path):
            raise SynthClipError(f"{path}: cannot be loaded: {fault}")
    return found


def read_weights(files: Sequence[Path]) -> "dict[str, Tensor]":
    """The weights in files that `weight_files` found."""
    from safetensors.torch import load_file

    state: dict[str, Tensor] = {}
    for path in files:
        state |= weights_of(load_file(path) if path.suffix == ".safetensors" else read_checkpoint(path))
    return state


def weights_of(checkpoint: Mapping[str, Any]) -> "dict[str, Tensor]":
    """The weights in a checkpoint, beside other values or alone, without prefixes of wrappers."""
    state = checkpoint.get("state_dict")
    return plain_names(state if isinstance(state, dict) else checkpoint)


def plain_names(state: "Mapping[str, Tensor]") -> "dict[str, Tensor]":
    """Weights without the prefixes that wrappers (`torch.compile`, DDP) put before their names."""
    return {_WRAPPERS.sub("", str(name)): value for name, value in state.items()}


def official_state_dict(path: Path, checkpoint: Mapping[str, Any]) -> "dict[str, Tensor]":
    """The weights in an official checkpoint, under the official names without the leading `module.`."""
    import torch

    state = checkpoint.get("state_dict")
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise SynthClipError(f"{path}: not an official checkpoint: it holds no 'state_dict' of tensors")
    return plain_names(state)


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
    return _listed(expected.keys() - state.keys(), state.keys() - expected.keys(), reshaped)


def _listed(missing: Iterable[str], unexpected: Iterable[str], reshaped: Sequence[str]) -> str:
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
    with path.open("rb") as handle:
        start = handle.read(len(_LFS_POINTER))
    if start.startswith(_BEFORE_TORCH_1_6):
        return None
    if start == _LFS_POINTER:
        return "a Git LFS pointer, not the file itself: run `git lfs pull`"
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except zipfile.BadZipFile:
        return "not a checkpoint that torch.save wrote, or cut short: download it again"
    if any(member.filename.endswith("/constants.pkl") for member in members):
        return "a TorchScript archive, which holds code: save its state_dict with torch.save and load that"
    declared, held = sum(member.file_size for member in members), path.stat().st_size
    if declared > held or any(member.compress_type != zipfile.ZIP_STORED for member in members):
        return (
            f"refused: declares {declared:,} bytes of data in a file of {held:,} bytes, which torch.save "
            "never writes: download it again"
        )
    return None


def _safetensors_fault(path: Path) -> str | None:
    from safetensors import SafetensorError, safe_open

    with path.open("rb") as handle:
        if handle.read(len(_LFS_POINTER)) == _LFS_POINTER:
            return "a Git LFS pointer, not the file itself: run `git lfs pull`"
    try:
        with safe_open(path, "pt"):
            return None
    except (SafetensorError, OSError) as error:
        return f"damaged or cut short ({first_line(error)[:200]}): download it again"


def refuse_unsafe(path: Path) -> None:
    """Raise SynthClipError where a checkpoint file is cut short, or holds more than plain values."""
    try:
        fault = archive_fault(path)
    except OSError as error:
        raise SynthClipError(f"{path}: cannot be read: {error.strerror}") from None
    if fault:
        raise SynthClipError(f"{path}: {fault}")
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
        with torch.serialization.safe_globals(_safe_names()):
            names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # a hostile pickle may break the very reading of its names
        return ""
    return f" ({', '.join(sorted(names)[:_SHOWN])})" if names else ""


def _safe_names() -> list[Any]:
    """What a checkpoint may hold beside tensors: parsed arguments and NumPy's numbers, under any name."""
    import numpy as np

    kinds = [getattr(np.dtypes, name) for name in np.dtypes.__all__ if name != "ObjectDType"]
    scalar: Any = np.float64(0).__reduce__()[0]
    return [argparse.Namespace, np.dtype, scalar, (scalar, "numpy.core.multiarray.scalar"), *kinds]
