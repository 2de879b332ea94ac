"""WebDataset shards: tars that img2dataset, open_clip and webdataset read, equal for equal samples."""

import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self


class Place(NamedTuple):
    """Where the bytes of a file lie inside a tar."""

    offset: int
    length: int


class TarShard:
    """Writes samples to a tar: `{key}.jpg`, `{key}.txt`, `{key}.json`, with no times and no owners.

    Headers come from `tarfile`, whose own writer would keep every member's in memory.
    """

    def __init__(self, path: Path) -> None:
        self._out = path.open("wb")
        self._keys: set[str] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._out:
            self._out.write(bytes(2 * tarfile.BLOCKSIZE))
            self._out.write(bytes(-self._out.tell() % tarfile.RECORDSIZE))

    def add(self, key: str, jpeg: bytes, caption: str, metadata: Mapping[str, Any]) -> Place:
        """Returns where the JPEG lies. Raises ValueError on a key that the tar holds already: readers
        would take the two for one sample."""
        if key in self._keys:
            raise ValueError(f"two samples with the key {key!r}")
        self._keys.add(key)
        place = self._file(f"{key}.jpg", jpeg)
        self._file(f"{key}.txt", caption.encode("utf-8", "replace"))
        self._file(
            f"{key}.json", json.dumps(metadata, sort_keys=True, ensure_ascii=False).encode("utf-8", "replace")
        )
        return place

    def _file(self, name: str, data: bytes) -> Place:
        entry = tarfile.TarInfo(name)
        entry.size = len(data)
        self._out.write(entry.tobuf(tarfile.USTAR_FORMAT))
        start = self._out.tell()
        self._out.write(data)
        self._out.write(bytes(-len(data) % tarfile.BLOCKSIZE))
        return Place(start, len(data))
