"""Images that are files of their own: class folders, and captions in a file beside them.

Class folders are `test/<class>/*.jpg` and the like, or `<class>/*.jpg` for a test split alone. Classes are
the sorted folder names; `classnames.txt` beside them, a line a class in that order, gives them names, and
ImageNet's folders (`n01440764`, or 0 to 999) have open_clip's.

Captions are COCO's JSON, Karpathy's splits or Flickr's token files. Several captions of an image are several
texts that belong to it. Where a file names splits, or a list of test images lies beside it
(`Flickr_8k.testImages.txt`), the test images are taken; else all.
"""

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from synthclip.errors import SynthClipError
from synthclip.evaluation.data import (
    SPLIT_NAMES,
    Classification,
    Layout,
    Retrieval,
    Split,
    imagenet_names,
    is_system,
    loose_files,
    picture_files,
    read_lines,
    some,
    with_test,
)

Captioned = Iterator[tuple[str, str | None]]
"""Image file name and caption, in the file's order; where a row is none, what is wrong with it, and None."""

_MAX_STRAY = 0.1
"""The share of a captions file that may be useless: more is another file than it should be."""


def has_class_folders(folder: Path) -> bool:
    return any(entry.is_dir() for entry in folder.iterdir())


def read_class_folders(folder: Path, name: str) -> Classification:
    notes: list[str] = []
    entries = _folders(folder, notes)
    roots = {
        split: found[0]
        for split, aliases in SPLIT_NAMES.items()
        if (found := [folder / alias for alias in aliases if _is_split(folder / alias)])
    }
    if roots and (others := [entry.name for entry in entries if entry not in roots.values()]):
        notes.append(f"beside the splits left out: {some(others)}")
    by_split = {split: _folders(root, notes) for split, root in (roots or {"test": folder}).items()}
    classes = sorted({entry.name for found in by_split.values() for entry in found}, key=_order)
    number = {entry: index for index, entry in enumerate(classes)}
    splits = {}
    left_out: list[Path] = []
    for split, found in by_split.items():
        files = [(path, number[entry.name]) for entry in found for path in picture_files(entry, left_out)]
        if not files:
            raise SynthClipError(f"{roots.get(split, folder)}: no images in its class folders")
        paths, labels = zip(*files, strict=True)
        splits[split] = Split(loose_files(folder, paths), np.array(labels, np.int64))
    if left_out:
        names = some([path.relative_to(folder).as_posix() for path in left_out])
        notes.append(f"{len(left_out)} files are no pictures and are left out ({names})")
    templates = read_lines(folder / "zeroshot_classification_templates.txt")
    splits = with_test(name, splits, notes)
    class_names = _class_names(folder, classes)
    return Classification(name, class_names, templates, splits, tuple(dict.fromkeys(notes)))


def _is_split(folder: Path) -> bool:
    """A folder of class folders; one of pictures is a class, also where it is called `train`."""
    return folder.is_dir() and any(entry.is_dir() and not is_system(entry.name) for entry in folder.iterdir())


def _folders(root: Path, notes: list[str]) -> list[Path]:
    folders = sorted(
        (entry for entry in root.iterdir() if entry.is_dir()), key=lambda entry: _order(entry.name)
    )
    if system := [entry.name for entry in folders if is_system(entry.name)]:
        notes.append(f"folders of the operating system left out: {some(system)}")
    return [entry for entry in folders if not is_system(entry.name)]


def _order(name: str) -> tuple[int, str]:
    return (int(name), "") if name.isdecimal() else (0, name)


def _class_names(folder: Path, classes: list[str]) -> tuple[str, ...]:
    given = read_lines(folder / "classnames.txt")
    if given:
        if len(given) != len(classes):
            raise SynthClipError(
                f"{folder / 'classnames.txt'}: {len(given)} names for {len(classes)} class folders: one "
                "line each, in the folders' sorted order"
            )
        return given
    if imagenet := imagenet_names(classes):
        return imagenet
    if all(name.isdecimal() for name in classes):
        raise SynthClipError(
            f"{folder}: its class folders are numbers: add a classnames.txt, one name a line in their order"
        )
    return tuple(name.replace("_", " ") for name in classes)


def read_captions(folder: Path, name: str) -> Retrieval:
    notes: list[str] = []
    found = _captions_file(folder, name, notes)
    assert found is not None
    path, reader = found
    try:
        rows = list(reader(path))
    except (ValueError, KeyError, TypeError, csv.Error) as error:
        raise SynthClipError(f"{path}: not a captions file of its kind ({error!r})") from None
    stray = [what for what, text in rows if text is None]
    captioned = [(image, text) for image, text in rows if text is not None]
    wanted = {line for split in sorted(folder.rglob("*test*mages*.txt"))[:1] for line in read_lines(split)}
    if wanted:
        captioned = [(image, text) for image, text in captioned if image in wanted]
    files = {file.name: file for file in picture_files(folder, [])}
    images = list(dict.fromkeys(image for image, _ in captioned))
    missing = [image for image in images if image not in files]
    if len(missing) > max(1, _MAX_STRAY * len(images)) or missing == images != []:
        raise SynthClipError(
            f"{path}: {len(missing)} of the {len(images)} images it names are not below {folder} "
            f"({missing[0]!r}, …): put them there"
        )
    if len(stray) > max(1, _MAX_STRAY * len(rows)):
        raise SynthClipError(f"{path}: {len(stray)} of {len(rows)} rows are no captions ({stray[0]}, …)")
    if not captioned:
        raise SynthClipError(f"{path}: no captions of test images in it")
    if missing:
        notes.append(f"{len(missing)} images are not there, their captions left out ({some(missing)})")
    if stray:
        notes.append(f"{len(stray)} rows of {path.name} are no captions and are left out ({some(stray)})")
    number = {image: index for index, image in enumerate(image for image in images if image in files)}
    pictures = loose_files(folder, [files[image] for image in number])
    captions = [(text, number[image]) for image, text in captioned if image in number]
    return Retrieval.of(name, pictures, captions, notes)


def _captions_file(
    folder: Path, name: str = "", notes: list[str] | None = None
) -> tuple[Path, Callable[[Path], Captioned]] | None:
    """The captions of the test or validation split, and how they are read; a note where there are others."""
    found = {
        path: reader
        for pattern, reader in _READERS.items()
        for place in (folder, folder / "annotations")
        for path in sorted(place.glob(pattern))
    }
    if not found:
        return None

    def unlike(path: Path) -> tuple[bool, int]:
        split = next((n for n, part in enumerate(("test", "val")) if part in path.stem), 2)
        named = path.stem == f"dataset_{name}"
        return not named, 3 if "train" in path.stem else split

    taken = min(found, key=unlike)
    if notes is not None and len(found) > 1:
        others = some([path.name for path in found if path != taken])
        notes.append(f"captions are taken from {taken.relative_to(folder)}, not from {others}")
    return taken, found[taken]


def _coco(path: Path) -> Captioned:
    data = json.loads(path.read_bytes())
    file_names = {image["id"]: image["file_name"] for image in data["images"]}
    for annotation in data["annotations"]:
        if (image := file_names.get(annotation["image_id"])) is None:
            yield f"image_id {annotation['image_id']}", None
        else:
            yield image, annotation["caption"].strip()


def _karpathy(path: Path) -> Captioned:
    for image in json.loads(path.read_bytes())["images"]:
        if image["split"] == "test":
            for sentence in image["sentences"]:
                yield image["filename"], sentence["raw"].strip()


def _tokens(path: Path) -> Captioned:
    for row, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), 1):
        image, tab, text = line.partition("\t")
        if tab:
            yield image.partition("#")[0], text.strip()
        elif line.strip():
            yield f"row {row} has no tab", None


def _table(path: Path) -> Captioned:
    with path.open(encoding="utf-8-sig", newline="") as handle:
        for number, row in enumerate(csv.DictReader(handle, skipinitialspace=True), 1):
            if row["caption"] is None:
                yield f"row {number} has no caption", None
            else:
                yield row["image"], row["caption"].strip()


_READERS: dict[str, Callable[[Path], Captioned]] = {
    "dataset_*.json": _karpathy,
    "captions_*.json": _coco,
    "*.token": _tokens,
    "*.token.txt": _tokens,
    "captions.txt": _table,
}

LAYOUTS: tuple[Layout, ...] = (
    (lambda folder: _captions_file(folder) is not None, read_captions),
    (has_class_folders, read_class_folders),
)
