"""Hugging Face's layout: `train-00000-of-00001.parquet`, …, in the folder or in `data/` below it.

The image is a struct with `bytes`; the label is a number, its class names in the schema's metadata.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from synthclip.errors import SynthClipError
from synthclip.evaluation.data.types import (
    SPLIT_NAMES,
    Classification,
    Picture,
    Pictures,
    Split,
    read_lines,
    with_test,
)
from synthclip.keys import digest, sha256_of

_ROWS_AT_ONCE = 256


def fits(folder: Path) -> bool:
    return any(_files(folder))


def read(folder: Path, name: str) -> Classification:
    found: dict[str, list[Path]] = {}
    for path in _files(folder):
        for split, aliases in SPLIT_NAMES.items():
            if path.stem.partition("-")[0] in aliases:
                found.setdefault(split, []).append(path)
    if not found:
        raise SynthClipError(
            f"{folder}: its Parquet files name no split: expected test.parquet or test-….parquet"
        )
    schema = _schema(next(iter(found.values()))[0])
    image, label, class_names = _columns(folder, schema)
    class_names = read_lines(folder / "classnames.txt") or class_names
    if not class_names:
        raise SynthClipError(
            f"{folder}: neither the metadata nor a classnames.txt names the classes: add one name a line"
        )
    splits = {split: _split(split, paths, image, label) for split, paths in found.items()}
    templates = read_lines(folder / "zeroshot_classification_templates.txt")
    return Classification(name, class_names, templates, with_test(name, splits))


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.parquet")) or sorted((folder / "data").glob("*.parquet"))


def _schema(path: Path) -> pa.Schema:
    try:
        return pq.read_schema(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise SynthClipError(f"{path}: not a Parquet file: {error}") from None


def _columns(folder: Path, schema: pa.Schema) -> tuple[str, str, tuple[str, ...]]:
    """The columns of images and labels, and the class names where the metadata has them."""
    images = [field.name for field in schema if pa.types.is_struct(field.type)]
    if not images:
        raise SynthClipError(f"{folder}: no column of images: expected a struct with `bytes`")
    features: dict[str, Any] = {}
    if schema.metadata and b"huggingface" in schema.metadata:
        features = json.loads(schema.metadata[b"huggingface"]).get("info", {}).get("features", {})
    named = {
        column: tuple(feature["names"])
        for column, feature in features.items()
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and feature.get("names")
    }
    label = next((column for column in ("label", "fine_label", *named) if column in schema.names), None)
    if label is None:
        raise SynthClipError(f"{folder}: no column 'label': found {', '.join(schema.names)}")
    if not pa.types.is_integer(schema.field(label).type):
        raise SynthClipError(
            f"{folder}: column {label!r} holds {schema.field(label).type}, not class numbers: number the "
            "classes and put their names into classnames.txt"
        )
    return images[0], label, tuple(name.replace("_", " ") for name in named.get(label, ()))


def _split(split: str, paths: list[Path], image: str, label: str) -> Split:
    labels = [pq.read_table(path, columns=[label])[label] for path in paths]
    if any(column.null_count for column in labels):
        raise SynthClipError(f"{paths[0].parent}, {split}: rows without a label: mend column {label!r}")
    joined = np.concatenate([column.to_numpy() for column in labels]).astype(np.int64)

    def pictures() -> Iterator[Picture]:
        for path in paths:
            for batch in pq.ParquetFile(path).iter_batches(_ROWS_AT_ONCE, columns=[image]):
                for data in batch.column(0).field("bytes"):
                    yield data.as_py() or b""

    names = [f"{split}/{row}" for row in range(len(joined))]
    return Split(Pictures(names, digest(*(sha256_of(path) for path in paths)), pictures), joined)
