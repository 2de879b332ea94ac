"""The Arrow schema of every hand-over between stages, and how a hand-over is read."""

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from synthclip.errors import SynthClipError, first_line

SCHEMA_VERSION = "2"
"""Of a run directory: raised when what one holds is laid out in another way."""
SPLITS = ("train", "heldout")
"""What the selected captions, and the images of them, are divided into: the folders of their shards."""
HELDOUT_PAINTER = "heldout_painter"
COMPOSITION = "composition"
EXCHANGED = "exchanged"
IMAGE_SPLITS = (*SPLITS, HELDOUT_PAINTER, COMPOSITION, EXCHANGED)
"""The folders of images: the held-out captions may also be painted by a model that training never sees, and
there may be captions of exchanged words."""


def _schema(*fields: tuple[str, pa.DataType]) -> pa.Schema:
    return pa.schema(
        [pa.field(name, kind) for name, kind in fields],
        metadata={"synthclip_schema": "1"},
    )


REJECTED = _schema(("item", pa.string()), ("reason", pa.string()))
"""What a stage refused, where it has no schema of its own for that."""

CONCEPT = _schema(
    ("concept_id", pa.int32()),
    ("text", pa.string()),
    ("source", pa.string()),
)

REJECTED_CONCEPT = _schema(("text", pa.string()), ("source", pa.string()), ("reason", pa.string()))

CAPTION = _schema(
    ("caption_id", pa.uint64()),
    ("concept_id", pa.int32()),
    ("text", pa.string()),
    ("template", pa.string()),
    ("model", pa.string()),
    ("seed", pa.uint64()),
)

REJECTED_CAPTION = CAPTION.append(pa.field("reason", pa.string()))

MATCH = _schema(
    ("caption_id", pa.uint64()),
    ("concept_ids", pa.list_(pa.int32())),
)

SELECTED = _schema(
    ("caption_id", pa.uint64()),
    ("text", pa.string()),
    ("concept_ids", pa.list_(pa.int32())),
    ("keep_probability", pa.float32()),
)

NEAR_DUPLICATE = _schema(
    ("caption_id", pa.uint64()),
    ("text", pa.string()),
    ("near_caption_id", pa.uint64()),
    ("reason", pa.string()),
)
"""What balancing refuses, and the caption that shares its words."""

BALANCE_COUNT = _schema(
    ("concept_id", pa.int32()),
    ("matched", pa.int64()),
    ("selected", pa.int64()),
)

IMAGE = _schema(
    ("key", pa.string()),
    ("caption_id", pa.uint64()),
    ("text", pa.string()),
    ("concept_ids", pa.list_(pa.int32())),
    ("variant", pa.int32()),
    ("seed", pa.uint64()),
    ("backend", pa.string()),
    ("sha256", pa.string()),
    ("width_px", pa.int32()),
    ("height_px", pa.int32()),
    ("scores", pa.map_(pa.string(), pa.float32())),
    ("shard", pa.string()),
    ("offset", pa.int64()),
    ("length", pa.int64()),
)

CAPTIONED_IMAGE = IMAGE.append(pa.field("other_texts", pa.list_(pa.string())))
"""Where a vision model was asked for further captions of the images."""

SEED = _schema(
    ("key", pa.string()),
    ("text", pa.string()),
    ("concept_ids", pa.list_(pa.int32())),
    ("variant", pa.int32()),
    ("attempt", pa.int32()),
    ("seed", pa.uint64()),
    ("painter", pa.int32()),
    ("sha256", pa.string()),
    ("perceptual_hash", pa.uint64()),
    ("crc32", pa.uint32()),
)
"""An image as what it is painted from: its prompt is `text`, `painter` a place in the list of the split's
painters. `sha256` and `perceptual_hash` are those of its JPEG, `crc32` that of the row's other values."""

COMPARED = _schema(("key", pa.string()), ("equal", pa.bool_()), ("bits", pa.int32()))
"""An image that was painted from a `SEED`: whether its JPEG is equal to the expected one and, if not, in how
many of 64 bits their perceptual hashes differ."""

REJECTED_IMAGE = _schema(
    ("key", pa.string()),
    ("caption_id", pa.uint64()),
    ("variant", pa.int32()),
    ("seed", pa.uint64()),
    ("backend", pa.string()),
    ("text", pa.string()),
    ("reason", pa.string()),
    ("scores", pa.map_(pa.string(), pa.float32())),
    ("attempt", pa.int32()),
)

EVAL_RESULT = _schema(
    ("dataset", pa.string()),
    ("task", pa.string()),
    ("metric", pa.string()),
    ("value", pa.float64()),
    ("ci95_low", pa.float64()),
    ("ci95_high", pa.float64()),
    ("chance", pa.float64()),
    ("n", pa.int64()),
    ("checkpoint", pa.string()),
    ("step", pa.int64()),
    ("prompts", pa.string()),
)
"""One figure of a model; `prompts` are those of zero-shot. Figures taken in training have a `step`, the steps
done before, and no checkpoint; all others have a checkpoint and no step."""

EVAL_CLASS = _schema(
    ("dataset", pa.string()),
    ("class_id", pa.int32()),
    ("name", pa.string()),
    ("n", pa.int64()),
    ("top1", pa.float64()),
    ("top5", pa.float64()),
    ("confused_with", pa.string()),
    ("confused_n", pa.int64()),
    ("classes", pa.int32()),
)
"""Zero-shot by class, for classes with an image: the shares right, and the class that most of the wrong
top-1 answers named, with how many did. `classes` is how many there were to choose from."""

EVAL_ITEM = _schema(
    ("dataset", pa.string()),
    ("task", pa.string()),
    ("metric", pa.string()),
    ("item", pa.string()),
    ("value", pa.float64()),
    ("group", pa.int64()),
)
"""What each result was taken over, item by item, so that two models can be compared in pairs. Items of one
`group`, such as the images of one caption, are one observation; null where each is its own."""

EVAL_NEAREST = _schema(
    ("text", pa.string()),
    ("rank", pa.int32()),
    ("key", pa.string()),
    ("score", pa.float64()),
    ("right", pa.bool_()),
)
"""The images nearest to a few held-out captions; `right` where an image was painted from that caption."""


def split_tables(stage: Path, split: str) -> list[Path]:
    """The hand-overs of one of `IMAGE_SPLITS` in a stage's folder, in order."""
    return sorted((stage / split).glob("*.parquet"))


def read_table(
    path: Path, columns: Sequence[str] | None = None, *, row_group: int | None = None, **options: Any
) -> pa.Table:
    """A hand-over, or one of its row groups, its page checksums compared.

    Raises SynthClipError where it is damaged, FileNotFoundError where it is missing. `options` are those of
    `pyarrow.parquet.read_table`.
    """
    with _damage(path):
        if row_group is not None:
            return _open(path).read_row_group(row_group, columns=columns)
        if options:
            return pq.read_table(path, columns=columns, page_checksum_verification=True, **options)
        with _open(path) as file:  # `pq.read_table` would import pandas, for half a second
            table = file.read(columns)
        return table if columns is None else table.select(columns)


def read_batches(path: Path, columns: Sequence[str], rows: int = 65_536) -> Iterator[pa.RecordBatch]:
    """As `read_table`, for files that do not fit in memory."""
    with _damage(path):
        yield from _open(path).iter_batches(rows, columns=columns)


def row_groups(path: Path) -> int:
    """How many row groups a hand-over has."""
    with _damage(path):
        return int(_open(path).num_row_groups)


def class_names(schema: pa.Schema) -> dict[str, tuple[str, ...]]:
    """The names behind columns of class numbers, as Hugging Face's `datasets` keeps them in a file's
    metadata."""
    try:
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        return {
            column: tuple(feature["names"])
            for column, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and feature.get("names")
        }
    except (AttributeError, KeyError, TypeError, ValueError):
        return {}


def _open(path: Path) -> pq.ParquetFile:
    return pq.ParquetFile(path, page_checksum_verification=True)


@contextlib.contextmanager
def _damage(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise
    except (OSError, KeyError, pa.ArrowException) as error:
        problem = first_line(error)
        raise SynthClipError(f"{path}: damaged ({problem}): run `synthclip verify RUN --repair`") from None
