"""Captions in a file beside loose images: COCO's JSON, Karpathy's splits, Flickr's token files.

Several captions of an image are several texts that belong to it. Where a file names splits, or a list of test
images lies beside it (`Flickr_8k.testImages.txt`), the test images are taken; else all.
"""

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from synthclip.errors import SynthClipError
from synthclip.evaluation.data.types import IMAGE_SUFFIXES, Retrieval, loose_files, read_lines

Captioned = Iterator[tuple[str, str]]
"""Image file name and caption, in the file's order."""


def fits(folder: Path) -> bool:
    return _find(folder) is not None


def read(folder: Path, name: str) -> Retrieval:
    found = _find(folder)
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
    pairs = [(text, number[image]) for text, (image, _) in enumerate(captioned)]
    return Retrieval(
        name,
        loose_files(folder, [files[image] for image in images]),
        tuple(text for _, text in captioned),
        np.array(pairs, np.int64),
    )


def _find(folder: Path) -> tuple[Path, Callable[[Path], Captioned]] | None:
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
