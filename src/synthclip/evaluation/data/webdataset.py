"""CLIP_benchmark's layout: `classnames.txt`, `zeroshot_classification_templates.txt`, `train/0.tar`, …

In the tars a sample is an image and `.cls`, its class number, or, in retrieval sets, `.txt`, a caption a
line.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from synthclip.errors import SynthClipError
from synthclip.evaluation.data.types import (
    SPLIT_NAMES,
    Classification,
    Pictures,
    Retrieval,
    Split,
    read_lines,
    with_test,
)
from synthclip.keys import digest, sha256_of
from synthclip.samples.files import Place, read_places
from synthclip.samples.tars import Entry, entries


@dataclass(frozen=True)
class _Sample:
    key: str
    place: Place
    """Its image."""
    fields: Mapping[str, bytes]
    """The content of its `.cls` and `.txt`."""


def fits(folder: Path) -> bool:
    return any(folder.glob("*/*.tar"))


def read(folder: Path, name: str) -> Classification | Retrieval:
    tars = {
        split: sorted((path for alias in aliases for path in (folder / alias).glob("*.tar")), key=_number)
        for split, aliases in SPLIT_NAMES.items()
    }
    kind = next(iter(read_lines(folder / "dataset_type.txt")), "classification").lower()
    if kind == "retrieval":
        return _retrieval(folder, name, tars["test"] or tars["val"])
    if kind != "classification":
        raise SynthClipError(
            f"{folder}: a {kind} set: only classification and retrieval sets can be evaluated"
        )
    class_names = read_lines(folder / "classnames.txt")
    if not class_names:
        raise SynthClipError(f"{folder / 'classnames.txt'}: missing or empty: one class name a line")
    templates = read_lines(folder / "zeroshot_classification_templates.txt")
    splits = {split: _split(paths) for split, paths in tars.items() if paths}
    return Classification(name, class_names, templates, with_test(name, splits))


def _split(tars: list[Path]) -> Split:
    samples = list(_samples(tars))
    labels = [_class_number(sample) for sample in samples]
    return Split(_pictures(tars, samples), np.array(labels, np.int64))


def _retrieval(folder: Path, name: str, tars: list[Path]) -> Retrieval:
    if not tars:
        raise SynthClipError(f"{folder}: no test split: expected test/0.tar")
    samples = list(_samples(tars))
    texts: list[str] = []
    pairs: list[tuple[int, int]] = []
    for image, sample in enumerate(samples):
        if "txt" not in sample.fields:
            raise SynthClipError(f"{tars[0].parent}: sample {sample.key!r} has no .txt with its captions")
        for text in sample.fields["txt"].decode("utf-8").splitlines():
            pairs.append((len(texts), image))
            texts.append(text)
    return Retrieval(name, _pictures(tars, samples), tuple(texts), np.array(pairs, np.int64).reshape(-1, 2))


def _pictures(tars: list[Path], samples: list[_Sample]) -> Pictures:
    places = [sample.place for sample in samples]
    return Pictures(
        [sample.key for sample in samples],
        digest(*(sha256_of(path) for path in tars)),
        lambda: read_places(places),
    )


def _class_number(sample: _Sample) -> int:
    where = f"{sample.place[0]}, sample {sample.key!r}"
    raw = sample.fields.get("cls")
    if raw is None:
        raise SynthClipError(f"{where}: no .cls with its class number")
    try:
        return int(raw)
    except ValueError:
        raise SynthClipError(
            f"{where}: its .cls is {raw[:40].decode('utf-8', 'replace')!r}: a class number is "
            "needed, counted from 0 in the order of classnames.txt"
        ) from None


def _samples(tars: list[Path]) -> Iterator[_Sample]:
    """Samples that have an image, in order."""
    for path in tars:
        try:
            with path.open("rb") as content:
                found, damage = entries(content, path.stat().st_size)
                if damage:
                    raise OSError(damage)
                for entry in found:
                    if entry.pictures:
                        yield _sample(path, content, entry)
        except OSError as error:
            raise SynthClipError(f"{path}: not a whole tar ({error}): fetch it again") from None


def _sample(path: Path, content: BinaryIO, entry: Entry) -> _Sample:
    if len(entry.pictures) > 1:
        raise SynthClipError(
            f"{path}, sample {entry.key!r}: several pictures ({', '.join(entry.pictures)}): keep one"
        )
    fields = {}
    for kind in ("cls", "txt"):
        if place := entry.text(kind):
            fields[kind] = os.pread(content.fileno(), place.length, place.offset)
    return _Sample(entry.key, (path, *entry.files[entry.pictures[0]]), fields)


def _number(path: Path) -> tuple[int, str]:
    return (int(path.stem), "") if path.stem.isdecimal() else (0, path.stem)
