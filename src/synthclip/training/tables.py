"""Tables of images and texts: Hugging Face Parquet, and CSV like the official data set's.

Neither can be read row by row in random order, so a table is written once, uncompressed, into the cache and
mapped into memory from there: it takes address space, not memory.
"""

import bisect
import contextlib
import itertools
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from synthclip.errors import SynthClipError
from synthclip.keys import digest
from synthclip.recipe.training import SourceConfig
from synthclip.run.store import disk_errors
from synthclip.samples import Sample, SampleError, Source, any_shards, files, own_shards
from synthclip.samples.csv_rows import RowError, numbered_rows

_SCHEMA = pa.schema(
    [("image", pa.large_binary()), ("path", pa.string()), ("text", pa.string()), ("place", pa.int64())]
)
"""`place` is the row's number, or the line's, in the file that it came from."""
_FORMAT = "2"
"""Raised when the same file would be kept otherwise."""
_ROWS = 1024
"""Rows that are converted at a time."""
_BAD = ".bad.json"

Write = Callable[[Sequence[bytes | None], Sequence[str | None], Sequence[str | None], Sequence[int]], None]
"""Takes images, paths, texts and places of some rows."""
Convert = Callable[[Write], dict[str, str]]
"""Writes all rows of a table; returns where rows stand that could not be read, and why."""


class TableSource:
    """Rows of `image` (the bytes of an image file) or `path` (of one, relative to `root`), and `text`.

    `name` says where a row stands: `{}` in it is the row's place.
    """

    def __init__(self, arrow: Path, name: str, root: str) -> None:
        table = pa.ipc.open_file(pa.memory_map(str(arrow))).read_all()
        self._image, self._path, self._text, self._place = (table[column] for column in _SCHEMA.names)
        self._name, self._root = name, root
        self.bad_rows: dict[str, str] = json.loads(arrow.with_suffix(_BAD).read_bytes())
        """Rows that could not be read at all: where, and why."""

    def __len__(self) -> int:
        return len(self._text)

    def read(self, index: int) -> Sample:
        text = self._text[index].as_py()
        if not text or not text.strip():
            raise SampleError("empty caption", self.name_of(index))
        image = self._image[index].as_py()
        if image is None and (path := self._path[index].as_py()):
            full = path if files.is_remote(path) else f"{self._root.rstrip('/')}/{path}"
            try:
                with files.open_binary(full) as handle:
                    image = handle.read()
            except (OSError, ValueError) as error:  # ValueError: no name of a file
                reason = getattr(error, "strerror", None) or error
                raise SampleError("missing image", f"{self.name_of(index)}: {full} ({reason})") from None
        if not image:
            raise SampleError("incomplete sample", self.name_of(index))
        return Sample(image, text)

    def name_of(self, index: int) -> str:
        return self._name.replace("{}", str(self._place[index].as_py()))


class Concatenated:
    """Tables one after the other."""

    def __init__(self, parts: Sequence[TableSource]) -> None:
        self.parts = tuple(parts)
        self._ends = list(itertools.accumulate(len(part) for part in parts))
        self.bad_rows = {where: reason for part in parts for where, reason in part.bad_rows.items()}

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


def open_source(config: SourceConfig, own: Sequence[Path]) -> Source:
    """The samples of one of `training.sources`; `own` are the sidecars of the run's images."""
    if config.path is None:
        return own_shards(own)
    paths = files.expand(config.path)
    if config.kind == "webdataset":
        return any_shards(paths, config.text_column or "caption")
    if config.kind == "csv":
        return Concatenated([open_csv(path, config.root) for path in paths])
    return Concatenated([open_parquet(path, config.text_column or "text", config.template) for path in paths])


def open_parquet(path: str, text_column: str, template: str | None) -> TableSource:
    """A Parquet file in the layout of Hugging Face's `datasets`: `image` holds bytes, or bytes and a path.

    `text_column` holds texts or, with a template, class names or the numbers of classes that the file names;
    `{}` in the template is the class.
    """

    def convert(write: Write) -> dict[str, str]:
        with files.open_binary(path) as handle:
            parquet = pq.ParquetFile(handle)
            schema = parquet.schema_arrow
            missing = {"image", text_column} - set(schema.names)
            if missing:
                raise SynthClipError(
                    f"{path}: no column {min(missing)!r} among {', '.join(schema.names)}: check "
                    "training.sources, where text_column names the captions"
                )
            kind = schema.field("image").type
            if not (pa.types.is_struct(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
                raise SynthClipError(
                    f"{path}: column 'image' holds {kind}, not image files: check training.sources"
                )
            names = _class_names(schema, text_column)
            row = 0
            for batch in parquet.iter_batches(_ROWS, columns=["image", text_column]):
                images = batch["image"].to_pylist()
                values = batch[text_column].to_pylist()
                texts = [_class_name(value, names) for value in values] if names else _as_texts(values)
                if template:
                    texts = [None if text is None else template.replace("{}", text) for text in texts]
                parts = [image if isinstance(image, dict) else {"bytes": image} for image in images]
                bytes_, paths = ([part.get(key) for part in parts] for key in ("bytes", "path"))
                write(bytes_, paths, texts, range(row, row + len(parts)))
                row += len(parts)
        return {}

    how = f"parquet {text_column} {template}"
    return _open(path, how, f"{path} row {{}}", path.rpartition("/")[0] or ".", convert)


def open_csv(path: str, root: str | None) -> TableSource:
    """A file with the columns `image_path` and `caption`, tabs or commas between them; paths are relative to
    `root`, or to the file's own folder."""

    def convert(write: Write) -> dict[str, str]:
        bad: dict[str, str] = {}
        good: list[tuple[str, str, int]] = []

        def flush() -> None:
            write([None] * len(good), *zip(*good, strict=True))
            good.clear()

        with files.open_binary(path) as handle:
            for line, _, row in numbered_rows(handle, path):
                if isinstance(row, RowError):
                    bad[f"{path} line {line}"] = f"CSV row: {row}"
                    continue
                good.append((*row, line))
                if len(good) == _ROWS:
                    flush()
        if good:
            flush()
        return bad

    return _open(path, "csv", f"{path} line {{}}", root or path.rpartition("/")[0] or ".", convert)


def _class_name(value: object, names: Sequence[str]) -> str | None:
    return names[value] if isinstance(value, int) and 0 <= value < len(names) else None


def _as_texts(values: Sequence[object]) -> list[str | None]:
    return [None if value is None else str(value) for value in values]


def _class_names(schema: pa.Schema, column: str) -> list[str]:
    """The names behind a column of class numbers, as `datasets` keeps them in a file's metadata."""
    try:
        features = json.loads(schema.metadata[b"huggingface"])
        return list(features["info"]["features"][column]["names"])
    except (KeyError, TypeError, ValueError):
        return []


def _open(path: str, how: str, name: str, root: str, convert: Convert) -> TableSource:
    """A table from the cache; what is not there, or is damaged, is made by `convert`."""
    try:
        target = files.cache_folder() / "tables" / f"{digest(files.identity(path), how, _FORMAT)[:32]}.arrow"
        with contextlib.suppress(OSError, ValueError):
            return TableSource(target, name, root)
        with disk_errors(target.parent):
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = target.with_suffix(f".{os.getpid()}.partial")
            try:
                bad_rows = _write(partial, convert)
                target.with_suffix(_BAD).write_text(json.dumps(bad_rows), encoding="utf-8")
                partial.replace(target)
            finally:
                partial.unlink(missing_ok=True)
        return TableSource(target, name, root)
    except (OSError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise SynthClipError(f"{path}: cannot be read ({reason}): check training.sources") from None


def _write(target: Path, convert: Convert) -> dict[str, str]:
    with pa.OSFile(str(target), "wb") as sink, pa.ipc.new_file(sink, _SCHEMA) as out:

        def write(*columns: Sequence[bytes | None] | Sequence[str | None] | Sequence[int]) -> None:
            arrays = [pa.array(column, kind) for column, kind in zip(columns, _SCHEMA.types, strict=True)]
            out.write_batch(pa.record_batch(arrays, schema=_SCHEMA))

        return convert(write)
