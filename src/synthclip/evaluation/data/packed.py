"""Images packed into files: CLIP_benchmark's tars, Hugging Face's Parquet, and a run's own held-out shards.

CLIP_benchmark's layout is `classnames.txt`, `zeroshot_classification_templates.txt`, `train/0.tar`, …: in the
tars a sample is an image and `.cls`, its class number, or, in retrieval sets, `.txt`, a caption a line.

Hugging Face's layout is `train-00000-of-00001.parquet`, …, in the folder or in `data/` below it: the image
is a struct with `bytes`; the label is a number, its class names in the schema's metadata.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from synthclip.errors import SynthClipError
from synthclip.evaluation.data import (
    SPLIT_NAMES,
    Classification,
    Layout,
    Picture,
    Pictures,
    Retrieval,
    Split,
    imagenet_names,
    is_system,
    read_lines,
    some,
    with_test,
)
from synthclip.keys import digest, sha256_of
from synthclip.samples.files import Place, read_places
from synthclip.samples.tars import Entry, entries
from synthclip.schema import class_names

_ROWS_AT_ONCE = 256


@dataclass(frozen=True)
class _Sample:
    key: str
    place: Place
    """Its image."""
    fields: Mapping[str, bytes]
    """The content of its `.cls` and `.txt`."""


def has_tars(folder: Path) -> bool:
    return any(folder.glob("*/*.tar"))


def read_tars(folder: Path, name: str) -> Classification | Retrieval:
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
    notes: list[str] = []
    splits = with_test(name, {split: _tar_split(paths) for split, paths in tars.items() if paths}, notes)
    return Classification(name, class_names, templates, splits, tuple(notes))


def _tar_split(tars: list[Path]) -> Split:
    samples = list(_samples(tars))
    labels = [_class_number(sample) for sample in samples]
    return Split(_tar_pictures(tars, samples), np.array(labels, np.int64))


def _retrieval(folder: Path, name: str, tars: list[Path]) -> Retrieval:
    if not tars:
        raise SynthClipError(f"{folder}: no test split: expected test/0.tar")
    every = list(_samples(tars))
    samples = [sample for sample in every if "txt" in sample.fields]
    bare = [sample.key for sample in every if "txt" not in sample.fields]
    if len(bare) > max(1, len(every) // 10) or not samples:
        raise SynthClipError(
            f"{tars[0].parent}: {len(bare)} of {len(every)} samples have no .txt with captions ({some(bare)})"
        )
    notes = [f"{len(bare)} images without captions are left out ({some(bare)})"] if bare else []
    captions = [
        (text, image)
        for image, sample in enumerate(samples)
        for text in sample.fields["txt"].decode("utf-8-sig").splitlines()
    ]
    return Retrieval.of(name, _tar_pictures(tars, samples), captions, notes)


def _tar_pictures(tars: list[Path], samples: list[_Sample]) -> Pictures:
    places = [sample.place for sample in samples]
    return Pictures(
        [sample.key for sample in samples],
        lambda: digest(*(sha256_of(path) for path in tars)),
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


def has_parquet(folder: Path) -> bool:
    return any(_parquet_files(folder))


def read_parquet(folder: Path, name: str, columns: Mapping[str, str] | None = None) -> Classification:
    notes: list[str] = []
    found: dict[str, list[Path]] = {}
    for path in _parquet_files(folder):
        called = (path.stem.partition("-")[0], path.parent.name)
        for split, aliases in SPLIT_NAMES.items():
            if any(one in aliases for one in called):
                found.setdefault(split, []).append(path)
    if not found:
        raise SynthClipError(
            f"{folder}: its Parquet files name no split: expected test.parquet or test-….parquet"
        )
    schema = _schema(next(iter(found.values()))[0])
    image, label, class_names = _columns(folder, schema, columns or {}, notes)
    class_names = read_lines(folder / "classnames.txt") or class_names
    if not class_names:
        raise SynthClipError(
            f"{folder}: neither the metadata nor a classnames.txt names the classes: add one name a line"
        )
    splits = {split: _parquet_split(split, paths, image, label) for split, paths in found.items()}
    templates = read_lines(folder / "zeroshot_classification_templates.txt")
    splits = with_test(name, splits, notes)
    return Classification(name, class_names, templates, splits, tuple(notes))


def _parquet_files(folder: Path) -> list[Path]:
    """Those in the folder, in `data/`, or in the one folder that a configuration of the set has."""
    for place in (folder, folder / "data"):
        if found := sorted(place.glob("*.parquet")):
            return found
    by_folder = {entry: sorted(entry.rglob("*.parquet")) for entry in folder.iterdir() if entry.is_dir()}
    configurations = {
        entry: paths for entry, paths in by_folder.items() if paths and not is_system(entry.name)
    }
    if any(entry.name in aliases for entry in configurations for aliases in SPLIT_NAMES.values()):
        return [path for paths in configurations.values() for path in paths]
    if len(configurations) > 1:
        names = ", ".join(sorted(entry.name for entry in configurations))
        raise SynthClipError(
            f"{folder}: several configurations ({names}): name one, as in {folder.name}/NAME"
        )
    return next(iter(configurations.values()), [])


def _schema(path: Path) -> pa.Schema:
    try:
        return pq.read_schema(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise SynthClipError(f"{path}: not a Parquet file: {error}") from None


def _columns(
    folder: Path, schema: pa.Schema, wanted: Mapping[str, str], notes: list[str]
) -> tuple[str, str, tuple[str, ...]]:
    """The columns of images and labels, and the class names where the metadata has them."""
    named = class_names(schema)
    structs = [
        field.name
        for field in schema
        if pa.types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0
    ]
    labels = [column for column in dict.fromkeys(("label", "fine_label", *named)) if column in schema.names]
    chosen = {}
    for kind, known in (("image", structs), ("label", labels)):
        column = wanted.get(kind) or next((one for one in (kind, *known) if one in known), None)
        if column is None or column not in schema.names:
            raise SynthClipError(
                f"{folder}: no column {column or kind!r}: found {', '.join(schema.names)}; "
                f"name it as in {folder.name}?{kind}=COLUMN"
            )
        if len(known) > 1 and kind not in wanted:
            notes.append(
                f"the {kind} is column {column!r}, not {some([one for one in known if one != column])}"
            )
        chosen[kind] = column
    image, label = chosen["image"], chosen["label"]
    if image not in structs:
        raise SynthClipError(f"{folder}: column {image!r} holds no images: expected a struct with `bytes`")
    if not pa.types.is_integer(schema.field(label).type):
        raise SynthClipError(
            f"{folder}: column {label!r} holds {schema.field(label).type}, not class numbers: number the "
            "classes and put their names into classnames.txt"
        )
    names = named.get(label, ())
    return image, label, imagenet_names(names) or tuple(name.replace("_", " ") for name in names)


def _parquet_split(split: str, paths: list[Path], image: str, label: str) -> Split:
    labels = [pq.read_table(path, columns=[label])[label] for path in paths]
    if all(column.null_count == len(column) for column in labels):
        labels = [pa.array(np.full(len(column), -1)) for column in labels]
    if any(column.null_count for column in labels):
        raise SynthClipError(f"{paths[0].parent}, {split}: rows without a label: fix column {label!r}")
    joined = np.concatenate([column.to_numpy() for column in labels]).astype(np.int64)

    def pictures() -> Iterator[Picture]:
        for path in paths:
            for batch in pq.ParquetFile(path).iter_batches(_ROWS_AT_ONCE, columns=[image]):
                for data in batch.column(0).field("bytes"):
                    yield data.as_py() or b""

    names = [f"{split}/{row}" for row in range(len(joined))]
    return Split(Pictures(names, lambda: digest(*(sha256_of(path) for path in paths)), pictures), joined)


LAYOUTS: tuple[Layout, ...] = ((has_tars, read_tars), (has_parquet, read_parquet))
