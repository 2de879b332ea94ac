"""The official CSV, split into one list of captions for each zip."""

import shutil
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa

from synthclip.run.store import Outcome, ShardWriter
from synthclip.training.tables import RowError, numbered_rows

_BUFFERED_BYTES = 64 * 2**20
_ROWS_A_BATCH = 10_000
_REJECTED_ROW = pa.schema([("row", pa.int64()), ("line", pa.string()), ("reason", pa.string())])
_SHOWN_CHARACTERS = 500


def split_csv(path: Path, folder: Path, zips: Collection[str], writer: ShardWriter) -> Outcome:
    """Write `folder/<zip>.tsv`, lines of image path and caption, for every name in `zips`.

    Bad rows are counted, and named in `rejected/csv.parquet` of `writer`; the note
    `rows_without_zip` counts the rows of other zips.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    rejected: Counter[str] = Counter()
    without_zip = 0
    buffers: defaultdict[str, list[bytes]] = defaultdict(list)
    buffered = 0
    with path.open("rb") as lines, writer.table("rejected/csv.parquet", _REJECTED_ROW) as table:
        bad: list[dict[str, Any]] = []
        for number, line, row in numbered_rows(lines, str(path)):
            try:
                if isinstance(row, RowError):
                    raise row
                image_path, caption = row
                zip_name = _zip_name(image_path)
                if not caption:
                    raise RowError("empty caption")
            except RowError as error:
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


def _zip_name(image_path: str) -> str:
    """The zip that holds the image: the path's first folder."""
    parts = PurePosixPath(image_path).parts
    if image_path.startswith("/") or ".." in parts or "\\" in image_path or "\0" in image_path:
        raise RowError("path leaves the folder")
    if len(parts) < 2:
        raise RowError("path names no zip")
    return parts[0]


def _flush(buffers: defaultdict[str, list[bytes]], folder: Path) -> None:
    for name, lines in buffers.items():
        with (folder / f"{name}.tsv").open("ab") as out:
            out.writelines(lines)
    buffers.clear()
