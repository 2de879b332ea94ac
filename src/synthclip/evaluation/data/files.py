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
    IMAGE_SUFFIXES,
    SPLIT_NAMES,
    Classification,
    Layout,
    Retrieval,
    Split,
    loose_files,
    read_lines,
    with_test,
)

Captioned = Iterator[tuple[str, str]]
"""Image file name and caption, in the file's order."""


def has_class_folders(folder: Path) -> bool:
    return any(entry.is_dir() for entry in folder.iterdir())


def read_class_folders(folder: Path, name: str) -> Classification:
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


def read_captions(folder: Path, name: str) -> Retrieval:
    found = _captions_file(folder)
    assert found is not None
    path, reader = found
    try:
        captioned = list(reader(path))
    except (ValueError, KeyError, TypeError, csv.Error) as error:
        raise SynthClipError(f"{path}: not a captions file of its kind ({error!r})") from None
    wanted = {line for split in sorted(folder.rglob("*test*mages*.txt"))[:1] for line in read_lines(split)}
    if wanted:
        captioned = [(image, text) for image, text in captioned if image in wanted]
    if not captioned:
        raise SynthClipError(f"{path}: no captions of test images in it")
    files = {file.name: file for file in sorted(folder.rglob("*")) if file.suffix.lower() in IMAGE_SUFFIXES}
    images = list(dict.fromkeys(image for image, _ in captioned))
    if missing := [image for image in images if image not in files]:
        raise SynthClipError(
            f"{path}: {len(missing)} of the {len(images)} images it names are not below {folder} "
            f"({missing[0]!r}, …): put them there"
        )
    number = {image: index for index, image in enumerate(images)}
    pictures = loose_files(folder, [files[image] for image in images])
    return Retrieval.of(name, pictures, ((text, number[image]) for image, text in captioned))


def _captions_file(folder: Path) -> tuple[Path, Callable[[Path], Captioned]] | None:
    for pattern, reader in _READERS.items():
        for place in (folder, folder / "annotations"):
            if paths := sorted(place.glob(pattern)):
                return paths[0], reader
    return None


def _coco(path: Path) -> Captioned:
    data = json.loads(path.read_bytes())
    file_names = {image["id"]: image["file_name"] for image in data["images"]}
    for annotation in data["annotations"]:
        yield file_names[annotation["image_id"]], annotation["caption"].strip()


def _karpathy(path: Path) -> Captioned:
    for image in json.loads(path.read_bytes())["images"]:
        if image["split"] == "test":
            for sentence in image["sentences"]:
                yield image["filename"], sentence["raw"].strip()


def _tokens(path: Path) -> Captioned:
    for row, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        image, tab, text = line.partition("\t")
        if not tab:
            raise ValueError(f"row {row} has no tab")
        yield image.partition("#")[0], text.strip()


def _table(path: Path) -> Captioned:
    with path.open(encoding="utf-8", newline="") as handle:
        for row in csv.DictReader(handle, skipinitialspace=True):
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
