"""Tables of images and texts: Hugging Face Parquet, and CSV like the official data set's.

Neither can be read row by row in random order, so a table is written once, uncompressed, into the cache and
mapped into memory from there: it takes address space, not memory.
"""

import contextlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from synthclip.errors import SynthClipError, first_line
from synthclip.keys import digest
from synthclip.recipe.section import nearest
from synthclip.recipe.training import SourceConfig
from synthclip.run.store import disk_errors
from synthclip.samples import (
    Concatenated,
    Sample,
    SampleError,
    any_shards,
    files,
    own_shards,
    own_twins,
)
from synthclip.samples.csv_rows import RowError, numbered_rows
from synthclip.samples.pictures import MAX_BYTES
from synthclip.schema import class_names

_SCHEMA = pa.schema(
    [
        ("image", pa.large_binary()),
        ("path", pa.string()),
        ("texts", pa.list_(pa.string())),
        ("place", pa.int64()),
    ]
)
"""`place` is the row's number, or the line's, in the file that it came from."""
_FORMAT = "3"
"""Raised when the same file would be kept otherwise."""
_ROWS = 1024
"""Rows that are converted at a time."""
_BAD = ".bad.json"

Texts = Sequence[str | None] | None
"""The captions of an image."""
Write = Callable[[Sequence[bytes | None], Sequence[str | None], Sequence[Texts], Sequence[int]], None]
"""Takes images, paths, captions and places of some rows."""
Convert = Callable[[Write], dict[str, str]]
"""Writes all rows of a table; returns where rows stand that could not be read, and why."""


class TableSource:
    """Rows of `image` (the bytes of an image file) or `path` (of one, inside `root`), and `texts`.

    `name` says where a row stands: `{}` in it is the row's place.
    """

    def __init__(self, arrow: Path, name: str, root: str) -> None:
        table = pa.ipc.open_file(pa.memory_map(str(arrow))).read_all()
        self._image, self._path, self._texts, self._place = (table[column] for column in _SCHEMA.names)
        self._name, self._root = name, root
        self.bad_rows: dict[str, str] = json.loads(arrow.with_suffix(_BAD).read_bytes())
        """Rows that could not be read at all: where, and why."""

    def __len__(self) -> int:
        return len(self._texts)

    def read(self, index: int) -> Sample:
        texts = [text for text in self._texts[index].as_py() or () if text and text.strip()]
        if not texts:
            raise SampleError("empty caption", self.name_of(index))
        image = self._image[index].as_py()
        if image is None and (path := self._path[index].as_py()):
            try:
                image = files.read_inside(self._root, path, MAX_BYTES)
            except (OSError, ValueError) as error:  # ValueError: no name of a file
                reason = getattr(error, "strerror", None) or error
                raise SampleError("missing image", f"{self.name_of(index)}: {path} ({reason})") from None
        if not image:
            raise SampleError("incomplete sample", self.name_of(index))
        return Sample(image, texts[0], other_texts=tuple(texts[1:]))

    def name_of(self, index: int) -> str:
        return self._name.replace("{}", str(self._place[index].as_py()))


def open_source(config: SourceConfig, own: Sequence[Path], share: float = 1.0, seed: int = 0) -> Concatenated:
    """The samples of one of `training.sources`, a part for each file; `own` are the sidecars of the run's
    images for it, `share` and `seed` say which of them (`samples.own_shards`)."""
    if config.kind == "exchanged":
        return own_twins(own)
    if config.path is None:
        return own_shards(own, share, seed)
    paths = files.expand(config.path)
    if config.kind == "webdataset":
        return any_shards(paths, config.text_column or "caption")
    if config.kind == "csv":
        return Concatenated([open_csv(path, config) for path in paths])
    return Concatenated([open_parquet(path, config) for path in paths])


def open_parquet(path: str, config: SourceConfig) -> TableSource:
    """A Parquet file in the layout of Hugging Face's `datasets`: images are bytes, or structs of bytes and a
    path.

    The text column holds captions, lists of captions of the same image, or, with a template, class names or
    the numbers of classes that the file names; `{}` in the template is the class.
    """
    image_column, text_column = config.image_column or "image", config.text_column or "text"
    template = config.template

    def convert(write: Write) -> dict[str, str]:
        with files.open_binary(path) as handle:
            parquet = pq.ParquetFile(handle)
            schema = parquet.schema_arrow
            for setting, column in (("image_column", image_column), ("text_column", text_column)):
                if column not in schema.names:
                    raise SynthClipError(
                        f"{path}: set {setting} in training.sources: no column {column!r}"
                        f"{nearest(column, schema.names)}"
                    )
            kind = schema.field(image_column).type
            if not _holds_images(kind):
                raise SynthClipError(
                    f"{path}: column {image_column!r} holds {kind}, not image files: set image_column in "
                    "training.sources"
                )
            names = class_names(schema).get(text_column, ())
            kind = schema.field(text_column).type
            if not (_holds_texts(kind) or (names and pa.types.is_integer(kind))):
                raise SynthClipError(
                    f"{path}: column {text_column!r} holds {kind}, not text: set text_column in "
                    "training.sources"
                )
            row = 0
            for batch in parquet.iter_batches(_ROWS, columns=[image_column, text_column]):
                images = batch[image_column].to_pylist()
                parts = [image if isinstance(image, dict) else {"bytes": image} for image in images]
                values = batch[text_column].to_pylist()
                texts = [_texts(value, names, template) for value in values]
                bytes_, paths = ([part.get(key) for part in parts] for key in ("bytes", "path"))
                write(bytes_, paths, texts, range(row, row + len(parts)))
                row += len(parts)
        return {}

    how = f"parquet {image_column} {text_column} {template}"
    return _open(path, config, how, "row", convert)


def open_csv(path: str, config: SourceConfig) -> TableSource:
    """A CSV of image paths, relative to `root` or to the file's own folder, and captions; see
    `numbered_rows`."""

    def convert(write: Write) -> dict[str, str]:
        bad: dict[str, str] = {}
        good: list[tuple[str, list[str], int]] = []

        def flush() -> None:
            if good:
                write([None] * len(good), *zip(*good, strict=True))
            good.clear()

        with files.open_binary(path) as handle:
            columns = (config.image_column, config.text_column, config.separator)
            for line, _, row in numbered_rows(handle, path, *columns):
                if isinstance(row, RowError):
                    bad[f"{path} line {line}"] = f"CSV row: {row}"
                    continue
                image, text = row
                good.append((image, [text], line))
                if len(good) == _ROWS:
                    flush()
        flush()
        return bad

    how = f"csv {config.image_column} {config.text_column} {config.separator}"
    return _open(path, config, how, "line", convert)


def _holds_images(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return bool({"bytes", "path"} & {kind.field(at).name for at in range(kind.num_fields)})
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _holds_texts(kind: pa.DataType) -> bool:
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _texts(value: Any, names: Sequence[str], template: str | None) -> list[str | None]:
    """The captions that a value stands for: a text, several, or the number of a class."""
    if isinstance(value, int):
        value = names[value] if 0 <= value < len(names) else None
    texts = value if isinstance(value, list) else [value]
    return [template.replace("{}", text) if template and text is not None else text for text in texts]


def _open(path: str, config: SourceConfig, how: str, unit: str, convert: Convert) -> TableSource:
    """A table from the cache; what is not there, or is damaged, is made by `convert`.

    `unit` is what the places of its rows count.
    """
    name, root = f"{path} {unit} {{}}", config.root or path.rpartition("/")[0] or "."
    try:
        target = files.cache_folder() / "tables" / f"{digest(files.identity(path), how, _FORMAT)[:32]}.arrow"
        with contextlib.suppress(OSError, ValueError):
            return TableSource(target, name, root)
        with disk_errors(target.parent):
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
            except (PermissionError, NotADirectoryError, FileExistsError) as error:
                raise SynthClipError(
                    f"{target.parent}: cannot be made ({error.strerror}): set XDG_CACHE_HOME elsewhere"
                ) from None
            with files.replacing(target) as partial:
                bad_rows = _write(partial, convert)
                target.with_suffix(_BAD).write_text(json.dumps(bad_rows), encoding="utf-8")
        return TableSource(target, name, root)
    except (OSError, pa.ArrowException) as error:
        reason = first_line(error)
        raise SynthClipError(f"{path}: cannot be read ({reason}): check training.sources") from None


def _write(target: Path, convert: Convert) -> dict[str, str]:
    with pa.OSFile(str(target), "wb") as sink, pa.ipc.new_file(sink, _SCHEMA) as out:

        def write(*columns: Sequence[Any]) -> None:
            arrays = [pa.array(column, kind) for column, kind in zip(columns, _SCHEMA.types, strict=True)]
            out.write_batch(pa.record_batch(arrays, schema=_SCHEMA))

        return convert(write)
