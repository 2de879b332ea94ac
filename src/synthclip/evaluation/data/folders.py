"""A folder of class folders: `test/<class>/*.jpg` and the like, or `<class>/*.jpg` for a test split alone.

Classes are the sorted folder names. `classnames.txt` beside them, a line a class in that order, gives them
names; ImageNet's folders (`n01440764`, or 0 to 999) have open_clip's names.
"""

from pathlib import Path

import numpy as np

from synthclip.errors import SynthClipError
from synthclip.evaluation.data.types import (
    IMAGE_SUFFIXES,
    SPLIT_NAMES,
    Classification,
    Split,
    loose_files,
    read_lines,
    with_test,
)


def fits(folder: Path) -> bool:
    return any(entry.is_dir() for entry in folder.iterdir())


def read(folder: Path, name: str) -> Classification:
    roots = {
        split: root
        for split, aliases in SPLIT_NAMES.items()
        for root in [next((folder / alias for alias in aliases if (folder / alias).is_dir()), None)]
        if root is not None
    } or {"test": folder}
    by_split = {split: _class_folders(root) for split, root in roots.items()}
    classes = sorted({entry.name for entries in by_split.values() for entry in entries}, key=_order)
    number = {entry: index for index, entry in enumerate(classes)}
    splits = {}
    for split, entries in by_split.items():
        files = [(path, number[entry.name]) for entry in entries for path in _images(entry)]
        if not files:
            raise SynthClipError(f"{roots[split]}: no images in its class folders")
        paths, labels = zip(*files, strict=True)
        splits[split] = Split(loose_files(folder, paths), np.array(labels, np.int64))
    templates = read_lines(folder / "zeroshot_classification_templates.txt")
    return Classification(name, _class_names(folder, classes), templates, with_test(name, splits))


def _class_folders(root: Path) -> list[Path]:
    return sorted(
        (entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith(".")),
        key=lambda entry: _order(entry.name),
    )


def _images(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)


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
    if imagenet := _imagenet_names(classes):
        return imagenet
    if all(name.isdecimal() for name in classes):
        raise SynthClipError(
            f"{folder}: its class folders are numbers: add a classnames.txt, one name a line in their order"
        )
    return tuple(name.replace("_", " ") for name in classes)


def _imagenet_names(classes: list[str]) -> tuple[str, ...]:
    """ImageNet's names for folders that are all WordNet ids of its classes, or the numbers 0 to 999."""
    if classes == [str(number) for number in range(1000)]:
        numbers = list(range(1000))
    elif all(name[0] == "n" and name[1:].isdecimal() for name in classes):
        from synthclip.models import timm

        known = {wordnet: number for number, wordnet in enumerate(timm.data.ImageNetInfo().label_names())}
        if not known.keys() >= set(classes):
            return ()
        numbers = [known[name] for name in classes]
    else:
        return ()
    from synthclip.models import open_clip

    return tuple(open_clip.IMAGENET_CLASSNAMES[number] for number in numbers)
