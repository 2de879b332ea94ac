"""Tables of images and texts: Hugging Face Parquet, and the tab-separated CSV of the official data set.

Neither can be read row by row in random order, so a table is written once, uncompressed, into the cache and
mapped into memory from there: it takes address space, not memory.
"""

import bisect
import itertools
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from synthclip.errors import SynthClipError
from synthclip.keys import digest
from synthclip.store import disk_errors
from synthclip.training import files
from synthclip.training.sources import Sample, SampleError

_SCHEMA = pa.schema([("image", pa.large_binary()), ("path", pa.string()), ("text", pa.string())])
_ROWS = 1024
"""Rows that are converted at a time."""
_BAD = ".bad.json"

Write = Callable[[Sequence[bytes | None], Sequence[str | None], Sequence[str | None]], None]
"""Takes images, paths and texts of some rows."""
Convert = Callable[[Write], dict[str, str]]
"""Writes all rows of a table; returns where rows stand that could not be read, and why."""


class TableSource:
    """Rows of `image` (the bytes of an image file) or `path` (of one, relative to `root`), and `text`."""

    def __init__(self, arrow: Path, name: str, root: str) -> None:
        table = pa.ipc.open_file(pa.memory_map(str(arrow))).read_all()
        self._image, self._path, self._text = (table[column] for column in ("image", "path", "text"))
        self._name, self._root = name, root
        self.bad_rows: dict[str, str] = json.loads(arrow.with_suffix(_BAD).read_bytes())
        """Rows that could not be read at all: where, and why."""

    def __len__(self) -> int:
        return len(self._text)

    def read(self, index: int) -> Sample:
        text = self._text[index].as_py()
        image = self._image[index].as_py()
        if image is None and (path := self._path[index].as_py()):
            full = path if files.is_remote(path) else f"{self._root.rstrip('/')}/{path}"
            try:
                with files.open_binary(full) as handle:
                    image = handle.read()
            except OSError as error:
                raise SampleError("missing image", f"{full} ({error.strerror})") from None
        if not image or not text:
            raise SampleError("incomplete sample", self.name_of(index))
        return Sample(image, text)

    def name_of(self, index: int) -> str:
        return f"{self._name} row {index}"


class Concatenated:
    """Tables one after the other."""

    def __init__(self, parts: Sequence[TableSource]) -> None:
        self.parts = tuple(parts)
        self._ends = list(itertools.accumulate(len(part) for part in parts))

    def __len__(self) -> int:
        return self._ends[-1]

    def read(self, index: int) -> Sample:
        return self._part(index).read(self._row(index))

    def name_of(self, index: int) -> str:
        return self._part(index).name_of(self._row(index))

    def _part(self, index: int) -> TableSource:
        return self.parts[bisect.bisect_right(self._ends, index)]

    def _row(self, index: int) -> int:
        number = bisect.bisect_right(self._ends, index)
        return index - (self._ends[number - 1] if number else 0)


def open_parquet(path: str, text_column: str, template: str | None) -> TableSource:
    """A Parquet file in the layout of Hugging Face's `datasets`: `image` holds bytes, or bytes and a path.

    `text_column` holds texts or, with a template, class names or the numbers of classes that the file names;
    `{}` in the template is the class.
    """

    def convert(write: Write) -> dict[str, str]:
        with files.open_binary(path) as handle:
            parquet = pq.ParquetFile(handle)
            missing = {"image", text_column} - set(parquet.schema_arrow.names)
            if missing:
                raise SynthClipError(f"{path}: no column {min(missing)!r}: check training.sources")
            names = _class_names(parquet.schema_arrow, text_column)
            for batch in parquet.iter_batches(_ROWS, columns=["image", text_column]):
                images = batch["image"].to_pylist()
                texts = [None if value is None else str(value) for value in batch[text_column].to_pylist()]
                if names:
                    texts = [None if text is None else names[int(text)] for text in texts]
                if template:
                    texts = [None if text is None else template.replace("{}", text) for text in texts]
                parts = [image if isinstance(image, dict) else {"bytes": image} for image in images]
                write([part.get("bytes") for part in parts], [part.get("path") for part in parts], texts)
        return {}

    arrow = _cached(path, f"parquet {text_column} {template}", convert)
    return TableSource(arrow, path, path.rpartition("/")[0] or ".")


def open_csv(path: str, root: str | None) -> TableSource:
    """A tab-separated file with the columns `image_path` and `caption`; paths are relative to `root`, or to
    the file's own folder."""

    def convert(write: Write) -> dict[str, str]:
        bad: dict[str, str] = {}

        def refuse(row: pyarrow.csv.InvalidRow) -> str:
            bad[f"{path} line {row.number}"] = "bad CSV row"
            return "skip"

        # One thread: only then are lines counted.
        with files.open_binary(path) as handle:
            reader = pyarrow.csv.open_csv(
                handle,
                pyarrow.csv.ReadOptions(use_threads=False),
                pyarrow.csv.ParseOptions(delimiter="\t", invalid_row_handler=refuse),
                pyarrow.csv.ConvertOptions(
                    include_columns=["image_path", "caption"],
                    column_types={"image_path": pa.string(), "caption": pa.string()},
                ),
            )
            for batch in reader:
                paths, texts = batch["image_path"].to_pylist(), batch["caption"].to_pylist()
                write([None] * len(paths), paths, texts)
        return bad

    return TableSource(_cached(path, "csv", convert), path, root or path.rpartition("/")[0] or ".")


def _class_names(schema: pa.Schema, column: str) -> list[str]:
    """The names behind a column of class numbers, as `datasets` keeps them in a file's metadata."""
    try:
        told = json.loads(schema.metadata[b"huggingface"])
        return list(told["info"]["features"][column]["names"])
    except (KeyError, TypeError, ValueError):
        return []


def _cached(path: str, how: str, convert: Convert) -> Path:
    """The Arrow file made of a table, from the cache, or by `convert` where it is not there."""
    try:
        target = files.cache_folder() / "tables" / f"{digest(files.identity(path), how)[:32]}.arrow"
        if target.is_file():
            return target
        with disk_errors(target.parent):
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = target.with_suffix(f".{os.getpid()}.partial")
            try:
                bad_rows = _write(partial, convert)
                target.with_suffix(_BAD).write_text(json.dumps(bad_rows), encoding="utf-8")
                partial.replace(target)
            finally:
                partial.unlink(missing_ok=True)
    except (OSError, pa.ArrowInvalid, pa.ArrowKeyError) as error:
        raise SynthClipError(f"{path}: cannot be read ({error}): check training.sources") from None
    return target


def _write(target: Path, convert: Convert) -> dict[str, str]:
    with pa.OSFile(str(target), "wb") as sink, pa.ipc.new_file(sink, _SCHEMA) as out:

        def write(*columns: Sequence[bytes | None] | Sequence[str | None]) -> None:
            arrays = [pa.array(column, kind) for column, kind in zip(columns, _SCHEMA.types, strict=True)]
            out.write_batch(pa.record_batch(arrays, schema=_SCHEMA))

        return convert(write)
