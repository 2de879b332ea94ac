"""Data sets as torchvision downloads and lays them out below a root."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from synthclip.errors import SynthClipError, first_line
from synthclip.evaluation.data import Classification, Picture, Pictures, Split, loose_files
from synthclip.keys import digest, sha256_of


@dataclass(frozen=True)
class _Set:
    cls: str
    folder: str
    """Where the class puts it below the root."""
    splits: Mapping[str, Mapping[str, Any]]
    """The arguments that choose each split."""


_THREE = {"train": {"split": "train"}, "val": {"split": "val"}, "test": {"split": "test"}}
_TRAIN_FLAG = {"train": {"train": True}, "test": {"train": False}}

SETS = {
    "cifar10": _Set("CIFAR10", "cifar-10-batches-py", _TRAIN_FLAG),
    "cifar100": _Set("CIFAR100", "cifar-100-python", _TRAIN_FLAG),
    "aircraft": _Set("FGVCAircraft", "fgvc-aircraft-2013b", _THREE),
    "dtd": _Set("DTD", "dtd/dtd", _THREE),
    "flowers": _Set("Flowers102", "flowers-102", _THREE),
    "pets": _Set(
        "OxfordIIITPet", "oxford-iiit-pet", {"train": {"split": "trainval"}, "test": {"split": "test"}}
    ),
    "food101": _Set("Food101", "food-101", {"train": {"split": "train"}, "test": {"split": "test"}}),
}
"""The sets that torchvision splits as the literature does."""


def fits(name: str, root: Path) -> bool:
    return name in SETS and (root / SETS[name].folder).is_dir()


def read(name: str, root: Path) -> Classification:
    from synthclip.models import torchvision

    known = SETS[name]
    folder = root / known.folder
    splits = {}

    @cache
    def packed() -> list[str]:
        """The digests of the files that hold all splits."""
        return [sha256_of(path) for path in sorted(folder.iterdir()) if path.is_file()]

    for split, arguments in known.splits.items():
        try:
            loaded = getattr(torchvision.datasets, known.cls)(str(root), **arguments)
        except (RuntimeError, OSError) as error:
            raise SynthClipError(f"{folder}: {first_line(error)}") from None
        labels = loaded.targets if hasattr(loaded, "targets") else loaded._labels
        splits[split] = Split(_pictures(loaded, folder, split, packed), np.array(labels, np.int64))
    class_names = tuple(str(label).replace("_", " ") for label in loaded.classes)
    return Classification(name, class_names, (), splits)


def _pictures(loaded: Any, folder: Path, split: str, packed: Callable[[], Sequence[str]]) -> Pictures:
    files = getattr(loaded, "_image_files", None) or getattr(loaded, "_images", None)
    if files is not None:
        return loose_files(folder, [Path(path) for path in files])

    def read() -> Iterator[Picture]:
        for index in range(len(loaded)):
            yield loaded[index][0]

    names = [f"{split}/{row}" for row in range(len(loaded))]
    return Pictures(names, lambda: digest(split, *packed()), read)
