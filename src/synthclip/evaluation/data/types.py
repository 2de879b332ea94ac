"""What every data adapter makes."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Union

import numpy as np
from numpy.typing import NDArray

from synthclip.errors import SynthClipError
from synthclip.keys import digest

if TYPE_CHECKING:
    from PIL.Image import Image

Picture = Union[bytes, "Image"]
"""An encoded image file, or one that is decoded already."""

SPLIT_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
"""What the splits are called in the wild."""

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".tif", ".tiff", ".gif"})


@dataclass(frozen=True)
class Pictures:
    """N images in a fixed order."""

    names: Sequence[str]
    """One for each, for messages and to pair results."""
    digest: str
    """Of packed files their bytes; of loose ones names, sizes and times. Features are cached by it."""
    read: Callable[[], Iterator[Picture]]
    """All of them, in order."""

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True)
class Split:
    """Images with one class each."""

    pictures: Pictures
    labels: NDArray[np.int64]
    """Index into the class names, int64 [N]."""


@dataclass(frozen=True)
class Classification:
    """A classification set. Raises SynthClipError where labels and class names do not fit each other."""

    name: str
    class_names: tuple[str, ...]
    templates: tuple[str, ...]
    """The set's own zero-shot prompts, empty where it brings none; `{}` or `{c}` is the class."""
    splits: Mapping[str, Split]
    """`test` always, `train` and `val` where there are."""

    def __post_init__(self) -> None:
        if len(self.class_names) < 2:
            raise SynthClipError(f"{self.name}: {len(self.class_names)} class: at least two are needed")
        for split, held in self.splits.items():
            if not len(held.pictures):
                raise SynthClipError(f"{self.name}, {split}: no images")
            if len(held.labels) != len(held.pictures):
                raise SynthClipError(
                    f"{self.name}, {split}: {len(held.labels)} labels for {len(held.pictures)} images"
                )
            low, high = int(held.labels.min()), int(held.labels.max())
            if low < 0 or high >= len(self.class_names):
                raise SynthClipError(
                    f"{self.name}, {split}: labels run from {low} to {high}, but there are "
                    f"{len(self.class_names)} class names: mend classnames.txt or the labels"
                )


@dataclass(frozen=True)
class Retrieval:
    """Images and texts, and which belong together."""

    name: str
    pictures: Pictures
    texts: tuple[str, ...]
    pairs: NDArray[np.int64]
    """(text, image) indices, int64 [P, 2]; an image may have several texts."""

    def __post_init__(self) -> None:
        if not len(self.pictures) or not len(self.pairs):
            raise SynthClipError(f"{self.name}: {len(self.pictures)} images and {len(self.texts)} captions")


def loose_files(root: Path, paths: Sequence[Path]) -> Pictures:
    """Images that are files of their own, named relative to `root`."""
    names = [path.relative_to(root).as_posix() for path in paths]
    stats = [path.stat() for path in paths]
    listing = (f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}" for name, stat in zip(names, stats, strict=True))

    def read() -> Iterator[Picture]:
        for path in paths:
            try:
                yield path.read_bytes()
            except OSError:
                yield b""

    return Pictures(names, digest(*listing), read)


def read_lines(path: Path) -> tuple[str, ...]:
    """The lines of a text file, outer spaces stripped, empty ones left out; none where there is no file."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ()
    except (OSError, UnicodeDecodeError) as error:
        raise SynthClipError(f"{path}: cannot be read: {error}") from None
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def with_test(name: str, splits: Mapping[str, Split]) -> dict[str, Split]:
    """The splits, the validation split taken for the test where there is no test."""
    found = dict(splits)
    if "test" not in found and "val" in found:
        found["test"] = found.pop("val")
    if "test" not in found:
        raise SynthClipError(f"{name}: no test split: found {', '.join(found) or 'none'}")
    return found
