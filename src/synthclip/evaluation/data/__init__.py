"""Evaluation data, from whatever layout it lies in: what the layouts make, and how a set is found and opened.

A layout has `fits(folder)` and `read(folder, name)`: `packed` and `files` hold them.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Union
from urllib.parse import parse_qsl

import numpy as np
from numpy.typing import NDArray

from synthclip.errors import SynthClipError, first_line
from synthclip.keys import digest
from synthclip.recipe.section import did_you_mean
from synthclip.samples.pictures import SNIFF_BYTES, is_picture

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

_SYSTEM = frozenset({"__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found"})
"""Folders that operating systems and file servers make, beside those that begin with a dot."""
_PICTURE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".tif", ".tiff", ".gif"})
"""Names that are taken for pictures unread; of others the content decides."""


def is_system(name: str) -> bool:
    """Whether an operating system made a file or folder of this name."""
    return name.startswith(".") or name in _SYSTEM


def picture_files(folder: Path, left_out: list[Path]) -> list[Path]:
    """The pictures below a folder, sorted; what is none is added to `left_out`."""
    found: list[Path] = []
    for path in sorted(folder.rglob("*")):
        if path.is_dir() or any(is_system(part) for part in path.relative_to(folder).parts):
            continue
        known = path.suffix.lower() in _PICTURE_SUFFIXES
        if not known:
            with path.open("rb") as handle:
                known = is_picture(handle.read(SNIFF_BYTES))
        (found if known else left_out).append(path)
    return found


@dataclass(frozen=True)
class Pictures:
    """N images in a fixed order."""

    names: Sequence[str]
    """One for each, for messages and to pair results."""
    digest_of: Callable[[], str]
    """Makes `digest`, which may read every file."""
    read: Callable[[], Iterator[Picture]]
    """All of them, in order."""
    among: tuple["Pictures", NDArray[np.int64]] | None = None
    """The pictures that these are some of, and their positions there: both have the same features."""

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def digest(self) -> str:
        """Of packed files their bytes; of loose ones names, sizes and times. Features are cached by it."""
        return self.digest_of()

    def only(self, positions: NDArray[np.int64]) -> "Pictures":
        """The pictures at these positions, int64 [M], ascending."""
        wanted = frozenset(positions.tolist())
        return Pictures(
            [self.names[position] for position in positions],
            lambda: digest(self.digest, positions.tobytes()),
            lambda: (picture for position, picture in enumerate(self.read()) if position in wanted),
            (self, positions),
        )


@dataclass(frozen=True)
class Split:
    """Images with one class each."""

    pictures: Pictures
    labels: NDArray[np.int64]
    """Index into the class names, int64 [N]."""
    groups: NDArray[np.int64] | None = None
    """Images of one number are one observation, as those painted from one caption, int64 [N]."""


@dataclass(frozen=True)
class Classification:
    """A classification set. Raises SynthClipError where labels and class names do not fit each other."""

    name: str
    class_names: tuple[str, ...]
    templates: tuple[str, ...]
    """The set's own zero-shot prompts, empty where it brings none; `{}` or `{c}` is the class."""
    splits: Mapping[str, Split]
    """`test` always, `train` and `val` where there are."""
    notes: tuple[str, ...] = ()
    """What a reader of the figures must know of how the set was read: what was chosen, what left out."""

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
                    f"{len(self.class_names)} class names: fix classnames.txt or the labels"
                )


@dataclass(frozen=True)
class Retrieval:
    """Images and texts, and which belong together."""

    name: str
    pictures: Pictures
    texts: tuple[str, ...]
    pairs: NDArray[np.int64]
    """(text, image) indices, int64 [P, 2]; an image may have several texts, and a text several images."""
    notes: tuple[str, ...] = ()
    """As of `Classification`."""

    @classmethod
    def of(
        cls,
        name: str,
        pictures: Pictures,
        captions: Sequence[tuple[str, int]],
        notes: Sequence[str] = (),
    ) -> "Retrieval":
        """From captions and the positions of their images. Equal captions are one text of several images."""
        number: dict[str, int] = {}
        pairs = [(number.setdefault(text, len(number)), image) for text, image in captions]
        if equal := len(captions) - len(number):
            notes = [
                *notes,
                f"{equal} captions equal others: each is one text that belongs to several images",
            ]
        pairs_P2 = np.array(list(dict.fromkeys(pairs)), np.int64).reshape(-1, 2)
        return cls(name, pictures, tuple(number), pairs_P2, tuple(notes))

    def __post_init__(self) -> None:
        if not len(self.pictures) or not len(self.pairs):
            raise SynthClipError(f"{self.name}: {len(self.pictures)} images and {len(self.texts)} captions")


@dataclass(frozen=True)
class Composition:
    """N items whose captions have nearly the same words and not the same meaning.

    With two images an item, caption i belongs to image i (Winoground); with one, its last caption is wrong
    and all others are right (SugarCrepe, SugarCrepe++).
    """

    name: str
    pictures: Pictures
    texts: tuple[str, ...]
    image_NI: NDArray[np.int64]
    """Positions among the pictures, I = 1 or 2."""
    caption_NT: NDArray[np.int64]
    """Positions among the texts, T = 2 or 3."""
    kinds: tuple[str, ...]
    """What is exchanged in each item, empty where that is not said."""
    notes: tuple[str, ...] = ()
    """As of `Classification`."""

    def __post_init__(self) -> None:
        if not len(self.image_NI):
            raise SynthClipError(f"{self.name}: no items with their images")


DataSet = Classification | Retrieval | Composition


def test_pictures(dataset: DataSet) -> Pictures:
    """What a model is judged on."""
    return dataset.splits["test"].pictures if isinstance(dataset, Classification) else dataset.pictures


Layout = tuple[Callable[[Path], bool], Callable[[Path, str], DataSet]]
"""Whether a folder is in this layout, and how it is read: from the folder and the set's name."""


def loose_files(root: Path, paths: Sequence[Path]) -> Pictures:
    """Images that are files of their own, named relative to `root`."""
    names = [path.relative_to(root).as_posix() for path in paths]
    stats = [path.stat() for path in paths]
    listing = [f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}" for name, stat in zip(names, stats, strict=True)]

    def read() -> Iterator[Picture]:
        for path in paths:
            try:
                yield path.read_bytes()
            except OSError:
                yield b""

    return Pictures(names, lambda: digest(*listing), read)


def read_lines(path: Path) -> tuple[str, ...]:
    """The lines of a text file, outer spaces stripped, empty ones left out; none where there is no file."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        return ()
    except (OSError, UnicodeDecodeError) as error:
        raise SynthClipError(f"{path}: cannot be read: {error}") from None
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def with_test(name: str, splits: Mapping[str, Split], notes: list[str]) -> dict[str, Split]:
    """The splits, the validation split taken for the test where there is no test with labels."""
    found = dict(splits)
    for split, held in splits.items():
        if len(held.labels) and (held.labels == -1).all():
            notes.append(f"the {split} split has no labels and is left out")
            del found[split]
    if "test" not in found and "val" in found:
        notes.append("the validation split is taken for the test")
        found["test"] = found.pop("val")
    if "test" not in found:
        raise SynthClipError(f"{name}: no test split with labels: found {', '.join(found) or 'none'}")
    return found


def imagenet_names(classes: Sequence[str]) -> tuple[str, ...]:
    """open_clip's names where all classes are ImageNet's, however they are written: as WordNet ids, as the
    numbers 0 to 999, or as WordNet's lists of names ("tench, Tinca tinca"). None where they are not."""
    listed = sum("," in name for name in classes) > len(classes) / 4
    if not (listed or len(classes) == 1000 or all(re.fullmatch(r"n\d{8}", name) for name in classes)):
        return ()
    from synthclip.models import open_clip, timm

    info = timm.data.ImageNetInfo()
    for names in (info.label_names(), info.label_descriptions(), [str(number) for number in range(1000)]):
        if list(classes) == names:
            return tuple(open_clip.IMAGENET_CLASSNAMES)
        known = {name: number for number, name in enumerate(names)}
        if known.keys() >= set(classes):
            return tuple(open_clip.IMAGENET_CLASSNAMES[known[name]] for name in classes)
    return ()


def some(names: Sequence[str]) -> str:
    """The first of many names, for a message."""
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


class MissingDataError(SynthClipError):
    """There is no data set of that name below the data root."""


_WDS = "clip-benchmark/wds_"


@dataclass(frozen=True)
class Known:
    hub: str
    """Repository of the hub that holds it, in a layout that `open_dataset` reads."""
    test_images: int
    """Images of the usual test split; another number means other figures than everybody's."""


KNOWN = {
    "cifar10": Known(f"{_WDS}vtab-cifar10", 10_000),
    "cifar100": Known(f"{_WDS}vtab-cifar100", 10_000),
    "aircraft": Known(f"{_WDS}fgvc_aircraft", 3_333),
    "dtd": Known(f"{_WDS}vtab-dtd", 1_880),
    "flowers": Known(f"{_WDS}vtab-flowers", 6_149),
    "pets": Known(f"{_WDS}vtab-pets", 3_669),
    "sun397": Known(f"{_WDS}sun397", 19_850),
    "caltech101": Known(f"{_WDS}vtab-caltech101", 6_085),
    "food101": Known("ethz/food101", 25_250),
    "coco": Known(f"{_WDS}mscoco_captions", 5_000),
    "flickr8k": Known(f"{_WDS}flickr8k", 1_000),
    "flickr30k": Known(f"{_WDS}flickr30k", 1_000),
    "imagenet": Known(f"{_WDS}imagenet1k", 50_000),
    "imagenet-v2": Known(f"{_WDS}imagenetv2", 10_000),
    "imagenet-a": Known(f"{_WDS}imagenet-a", 7_500),
    "imagenet-r": Known(f"{_WDS}imagenet-r", 30_000),
    "imagenet-o": Known(f"{_WDS}imagenet-o", 2_000),
    "imagenet-sketch": Known(f"{_WDS}imagenet_sketch", 50_889),
    "objectnet": Known(f"{_WDS}objectnet", 18_574),
}


def hub_repository(name: str) -> str | None:
    """The hub's repository of a known set, or of any `wds/…` of CLIP_benchmark's."""
    if name in KNOWN:
        return KNOWN[name].hub
    if name.startswith("wds/"):
        return _WDS + name.removeprefix("wds/").replace("/", "-")
    return None


def open_dataset(name: str, root: Path, *, download: bool = False) -> DataSet:
    """Open the data set `name` below `root`: nothing is decoded yet.

    `name` is one of `KNOWN`, `wds/…` for a set that CLIP_benchmark publishes, or a folder's path. It is
    in `root/name`, or in the folder of the hub's repository (`root/wds_vtab-dtd`), or where torchvision puts
    it; with `download` it is fetched from the hub into `root` where it is missing, resuming what was begun.
    Columns of Parquet may follow: `cifar100?image=img&label=coarse_label`.

    Raises MissingDataError where there is none, SynthClipError where it is there and not as it should be.
    """
    from synthclip.evaluation.data import composition, files, packed, torchvision_sets

    name, _, columns = name.partition("?")
    if not columns and torchvision_sets.fits(name, root):
        return torchvision_sets.read(name, root)
    folder = _folder(name, root)
    if folder is None and download:
        folder = _download(name, root)
    if folder is None:
        raise _missing(name, root)
    if columns:
        return packed.read_parquet(folder, f"{name}?{columns}", dict(parse_qsl(columns)))
    for fits, read in (*composition.LAYOUTS, *packed.LAYOUTS, *files.LAYOUTS):
        if fits(folder):
            return read(folder, name)
    raise SynthClipError(
        f"{folder}: no data in any known layout: class folders, Parquet, WebDataset tars, or captions beside "
        "their images"
    )


def identity(name: str, root: Path) -> str:
    """A digest that changes when the data set's files do, by their names, sizes and times; opens none.

    Raises MissingDataError where there is no such set.
    """
    from synthclip.evaluation.data import torchvision_sets

    name = name.partition("?")[0]
    if torchvision_sets.fits(name, root):
        folder: Path | None = root / torchvision_sets.SETS[name].folder
    else:
        folder = _folder(name, root)
    if folder is None:
        raise _missing(name, root)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return loose_files(folder, files).digest


def _missing(name: str, root: Path) -> MissingDataError:
    remedy = ": --download fetches it from the hub" if hub_repository(name) else did_you_mean(name, KNOWN)
    return MissingDataError(f"{root / name}: no data set {name!r} there{remedy}")


def _folder(name: str, root: Path) -> Path | None:
    repository = hub_repository(name)
    places = [root / name, Path(name)]
    if repository is not None:
        places.insert(1, root / repository.rpartition("/")[2])
    return next((place for place in places if place.is_dir()), None)


def _download(name: str, root: Path) -> Path | None:
    repository = hub_repository(name)
    if repository is None:
        return None
    from huggingface_hub import snapshot_download

    folder = root / repository.rpartition("/")[2]
    wanted = ["*.txt", "*.tar", "*.parquet"]
    try:
        snapshot_download(repository, repo_type="dataset", local_dir=folder, allow_patterns=wanted)
    except Exception as error:  # the hub client and its transport share no base class
        raise SynthClipError(
            f"{name}: cannot be fetched from {repository} ({first_line(error)}): run again to resume, or put "
            f"the data into {folder}"
        ) from error
    return folder
