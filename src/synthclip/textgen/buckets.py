"""Rows out of order in, rows ascending by caption id out, in little memory."""

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import pyarrow as pa

_ROWS_IN_MEMORY = 262_144


class SortedByBucket:
    """Spreads rows over files by the top bits of `caption_id`, then sorts one file after the other.

    Ids are hashes, so the files are of about equal size; none is made where all rows fit in memory.
    """

    def __init__(self, folder: Path, schema: pa.Schema, rows: int) -> None:
        """`rows` is the most that will be added."""
        self._folder, self._schema = folder, schema
        self._bits = min(10, max(0, (rows // _ROWS_IN_MEMORY).bit_length()))
        self._few: list[pa.Table] = []
        self._paths = [folder / f"{number:04d}.arrow" for number in range(2**self._bits)]
        self._writers: list[pa.ipc.RecordBatchStreamWriter] = []

    def __enter__(self) -> Self:
        if self._bits:
            self._folder.mkdir(parents=True, exist_ok=True)
            options = pa.ipc.IpcWriteOptions(compression="lz4")
            self._writers = [pa.ipc.new_stream(path, self._schema, options=options) for path in self._paths]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()
        for path in self._paths:
            path.unlink(missing_ok=True)

    def add(self, table: pa.Table) -> None:
        if not self._bits:
            self._few.append(table)
            return
        table = table.sort_by("caption_id").combine_chunks()
        bucket = table["caption_id"].to_numpy() >> np.uint64(64 - self._bits)
        edges = np.searchsorted(bucket, np.arange(len(self._writers) + 1, dtype=np.uint64))
        for writer, start, stop in zip(self._writers, edges[:-1], edges[1:], strict=True):
            if stop > start:
                writer.write_table(table.slice(start, stop - start))

    def __iter__(self) -> Iterator[pa.Table]:
        """All rows, ascending by `caption_id`, a bucket at a time; nothing may be added after."""
        if not self._bits:
            yield pa.concat_tables([self._schema.empty_table(), *self._few]).sort_by("caption_id")
            return
        self._close()
        for path in self._paths:
            with pa.ipc.open_stream(path) as stream:
                yield stream.read_all().sort_by("caption_id")

    def _close(self) -> None:
        for writer in self._writers:
            writer.close()
        self._writers = []
