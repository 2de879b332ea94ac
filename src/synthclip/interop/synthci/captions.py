"""The official CSV, split into one list of captions for each zip."""

import csv
import shutil
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa

from synthclip.errors import SynthClipError
from synthclip.store import Outcome, ShardWriter

_BUFFERED_BYTES = 64 * 2**20
_ROWS_A_BATCH = 10_000
_REJECTED_ROW = pa.schema([("row", pa.int64()), ("line", pa.string()), ("reason", pa.string())])
_SHOWN_CHARACTERS = 500
_LONGEST_HEADER = 2**20


class _RowError(Exception):
    """A row that cannot be used; the message is the reason it is counted under."""


def split_csv(path: Path, folder: Path, zips: Collection[str], writer: ShardWriter) -> Outcome:
    """Write `folder/<zip>.tsv`, lines of image path and caption, for every name in `zips`.

    A row is one line, as the official captions have no newline: so an unbalanced quote spoils its own row and
    no other. Bad rows are counted, and named in `rejected/csv.parquet` of `writer`; the note
    `rows_without_zip` counts the rows of other zips.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    rejected: Counter[str] = Counter()
    without_zip = 0
    buffers: defaultdict[str, list[bytes]] = defaultdict(list)
    buffered = 0
    with path.open("rb") as lines, writer.table("rejected/csv.parquet", _REJECTED_ROW) as table:
        image_column, caption_column, width = _columns(path, lines.readline(_LONGEST_HEADER))
        bad: list[dict[str, Any]] = []
        for number, line in enumerate(lines, start=2):
            try:
                fields = _fields(line, width)
                image_path, caption = fields[image_column], fields[caption_column].strip()
                zip_name = _zip_name(image_path)
                if not caption:
                    raise _RowError("empty caption")
            except _RowError as error:
                rejected[str(error)] += 1
                shown = line[:_SHOWN_CHARACTERS].decode("utf-8", "replace").rstrip("\r\n")
                bad.append({"row": number, "line": shown, "reason": str(error)})
                if len(bad) == _ROWS_A_BATCH:
                    table.write_table(pa.Table.from_pylist(bad, _REJECTED_ROW))
                    bad.clear()
                continue
            if zip_name not in zips:
                without_zip += 1
                continue
            entry = f"{image_path}\t{caption}\n".encode()
            buffers[zip_name].append(entry)
            buffered += len(entry)
            if buffered >= _BUFFERED_BYTES:
                _flush(buffers, folder)
                buffered = 0
        if bad:
            table.write_table(pa.Table.from_pylist(bad, _REJECTED_ROW))
    _flush(buffers, folder)
    return Outcome(0, rejected, {"rows_without_zip": without_zip})


def read_captions(path: Path) -> Iterator[tuple[str, str]]:
    """Image path and caption of every row that `split_csv` wrote to a file."""
    if path.exists():
        with path.open("rb") as lines:
            for line in lines:
                image_path, _, caption = line.decode().rstrip("\n").partition("\t")
                yield image_path, caption


def _columns(path: Path, header: bytes) -> tuple[int, int, int]:
    names = header.decode("utf-8-sig", "replace").rstrip("\r\n").split("\t")
    names = [name.strip('"') for name in names]
    if not {"image_path", "caption"} <= set(names):
        raise SynthClipError(
            f"{path}, line 1: expected the tab-separated columns image_path and caption, not "
            f"{', '.join(names)[:200]!r}"
        )
    return names.index("image_path"), names.index("caption"), len(names)


def _fields(line: bytes, width: int) -> list[str]:
    try:
        text = line.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError:
        raise _RowError("not UTF-8") from None
    if '"' not in text:
        fields = text.split("\t")
    else:
        try:
            fields = next(csv.reader([text], delimiter="\t", strict=True))
        except csv.Error:
            raise _RowError("quotes do not match") from None
    if len(fields) != width:
        raise _RowError("wrong number of columns")
    return fields


def _zip_name(image_path: str) -> str:
    """The zip that holds the image: the path's first folder."""
    parts = PurePosixPath(image_path).parts
    if image_path.startswith("/") or ".." in parts or "\\" in image_path or "\0" in image_path:
        raise _RowError("path leaves the folder")
    if len(parts) < 2:
        raise _RowError("path names no zip")
    return parts[0]


def _flush(buffers: defaultdict[str, list[bytes]], folder: Path) -> None:
    for name, lines in buffers.items():
        with (folder / f"{name}.tsv").open("ab") as out:
            out.writelines(lines)
    buffers.clear()
