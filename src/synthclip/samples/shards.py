"""WebDataset shards: tars that img2dataset, open_clip and webdataset read, equal for equal samples."""

import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

_JSON = json.JSONEncoder(sort_keys=True, ensure_ascii=False)
_BLANK = tarfile.TarInfo().tobuf(tarfile.USTAR_FORMAT)


class Place(NamedTuple):
    """Where the bytes of a file lie inside a tar."""

    offset: int
    length: int


class TarShard:
    """Writes samples to a tar: `{key}.jpg`, `{key}.txt`, `{key}.json`, with no times and no owners.

    The bytes are those of `tarfile`, whose own writer keeps every member's header in memory and takes as
    long over the headers of a sample as decoding its JPEG does.
    """

    def __init__(self, path: Path) -> None:
        self._out = path.open("wb")
        self._size = 0
        self._keys: set[str] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._out:
            end = 2 * tarfile.BLOCKSIZE
            self._out.write(bytes(end + -(self._size + end) % tarfile.RECORDSIZE))

    def add(self, key: str, jpeg: bytes, caption: str, metadata: Mapping[str, Any]) -> Place:
        """Returns where the JPEG lies. Raises ValueError on a key that the tar holds already: readers
        would take the two for one sample."""
        if key in self._keys:
            raise ValueError(f"two samples with the key {key!r}")
        self._keys.add(key)
        place = self._file(f"{key}.jpg", jpeg)
        self._file(f"{key}.txt", caption.encode("utf-8", "replace"))
        self._file(f"{key}.json", _JSON.encode(metadata).encode("utf-8", "replace"))
        return place

    def _file(self, name: str, data: bytes) -> Place:
        header = _header(name, len(data))
        blocks = b"".join((header, data, bytes(-len(data) % tarfile.BLOCKSIZE)))
        self._out.write(blocks)
        place = Place(self._size + len(header), len(data))
        self._size += len(blocks)
        return place


def _header(name: str, size: int) -> bytes:
    """What `tarfile` puts before a plain file; names and sizes beyond a simple header are left to it."""
    raw = name.encode("utf-8", "surrogateescape")
    if len(raw) > tarfile.LENGTH_NAME or size >= 8**11:
        entry = tarfile.TarInfo(name)
        entry.size = size
        return entry.tobuf(tarfile.USTAR_FORMAT)
    header = bytearray(_BLANK)
    header[: len(raw)] = raw
    header[124:135] = b"%011o" % size
    header[148:156] = b" " * 8  # of which the checksum is taken
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)
