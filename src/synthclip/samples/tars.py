"""WebDataset tars: written so that equal samples give equal bytes, and read by their headers."""

import json
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any, NamedTuple, Self

from synthclip.samples.pictures import SNIFF_BYTES, is_picture

TEXT_KINDS = ("txt", "cls", "json")
"""What may say what a picture shows."""

_BLOCK = tarfile.BLOCKSIZE
_BLANK = tarfile.TarInfo().tobuf(tarfile.USTAR_FORMAT)
_JSON = json.JSONEncoder(sort_keys=True, ensure_ascii=False)
_NAMED_PICTURES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")
"""What is a picture by its name although its content is none: a damaged one."""


class Place(NamedTuple):
    """Where the bytes of a file lie inside a tar."""

    offset: int
    length: int


class TarWriter:
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
        """Returns where the JPEG lies. Raises ValueError on a key that the tar holds already: readers would
        take the two for one sample."""
        if key in self._keys:
            raise ValueError("second image of a key")
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


def members(handle: IO[bytes], end: int) -> Iterator[tuple[str, Place]]:
    """The regular files of a tar of `end` bytes in their order, by name; each lies inside the tar.

    Plain headers, and extended ones that say only times, are read here, several times as fast as `tarfile`
    does; where another comes, `tarfile` goes on. Raises tarfile.ReadError where the tar is damaged or cut
    off.
    """
    at = 0
    while at < end:
        handle.seek(at)
        header = handle.read(_BLOCK)
        if not header.strip(b"\0"):
            return
        if len(header) < _BLOCK:
            raise tarfile.ReadError("unexpected end of data")
        digits = header[148:156].strip(b"\0 ")
        if not digits.isdigit() or int(digits, 8) != sum(header[:148]) + sum(header[156:]) + 8 * ord(" "):
            raise tarfile.ReadError(f"damaged at byte {at}")
        kind, digits = header[156:157], header[124:136].strip(b"\0 ")
        simple = kind in (tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.XHDTYPE) and not header[345]
        size = int(digits, 8) if simple and digits.isdigit() else None
        extended = handle.read(min(size or 0, end - at)) if kind == tarfile.XHDTYPE else b""
        if size is None or b" path=" in extended or b" size=" in extended:
            yield from _unusual_members(handle, at, end)
            return
        start, at = at + _BLOCK, at + _BLOCK + size + -size % _BLOCK
        if at > end:
            raise tarfile.ReadError("unexpected end of data")
        if kind == tarfile.REGTYPE:
            yield header[:100].partition(b"\0")[0].decode("utf-8", "surrogateescape"), Place(start, size)


def _unusual_members(handle: IO[bytes], at: int, end: int) -> Iterator[tuple[str, Place]]:
    handle.seek(at)
    try:
        with tarfile.open(fileobj=_Within(handle, end), mode="r:") as tar:  # type: ignore[call-overload]
            while (member := tar.next()) is not None:
                tar.members.clear()  # it would keep all that it has passed
                if member.isfile() and not member.issparse():
                    if member.offset_data + member.size > end:
                        raise tarfile.ReadError("unexpected end of data")
                    yield member.name, Place(member.offset_data, member.size)
    except (ValueError, OverflowError, EOFError) as error:  # of headers that `tarfile` does not check
        raise tarfile.ReadError(f"damaged after byte {at} ({error})") from None


class _Within:
    """A file that takes no more memory than there is to read, whatever a header says."""

    def __init__(self, handle: IO[bytes], end: int) -> None:
        self._handle, self._end = handle, end
        self.seek, self.tell = handle.seek, handle.tell

    def read(self, count: int) -> bytes:
        return self._handle.read(max(0, min(count, self._end - self.tell())))


def split_name(name: str) -> tuple[str, str]:
    """Key and kind of a file: what stands before its last dot, and what after, in lower case."""
    folder, slash, base = name.rpartition("/")
    stem, dot, kind = base.rpartition(".")
    return (folder + slash + stem, kind.lower()) if dot else (name, "")


@dataclass
class Entry:
    """The files of one sample, by kind."""

    key: str
    files: dict[str, Place] = field(default_factory=dict)
    pictures: list[str] = field(default_factory=list)
    """The kinds that are pictures."""

    def text(self, kind: str) -> Place | None:
        """The one file of a kind such as `txt`; `caption.txt` is of that kind too."""
        found = [place for name, place in self.files.items() if name.rpartition(".")[2] == kind]
        return self.files.get(kind) or (found[0] if len(found) == 1 else None)

    @property
    def says(self) -> bool:
        """Whether a text says what the picture shows."""
        return any(name.rpartition(".")[2] in TEXT_KINDS for name in self.files)


def entries(handle: IO[bytes], end: int) -> tuple[list[Entry], str | None]:
    """The samples of a tar in their order, whether or not their files stand together; and what is wrong with
    the tar, where it is cut off or damaged.

    Keys may hold dots: `clip.3.jpg` and `clip.3.txt` are the sample `clip.3`. Files that belong to a sample
    but have another name, such as `a.seg.png` beside `a.jpg` and `a.txt`, are left out. Others are one sample
    where they share what stands before their first dot. What is a picture is decided by its content.
    """
    found: list[Entry] = []
    current: dict[str, Entry] = {}
    damage = None
    try:
        if compression := _compression(handle):
            raise tarfile.ReadError(
                f"compressed by {compression}: decompress it, as samples are read at random"
            )
        for name, place in members(handle, end):
            folder, _, base = name.rpartition("/")
            if base.startswith("._") or "__MACOSX" in folder:
                continue
            key, kind = split_name(name)
            entry = current.get(key)
            if entry is None or kind in entry.files:
                entry = current[key] = Entry(key)
                found.append(entry)
            entry.files[kind] = place
            if kind not in TEXT_KINDS:
                handle.seek(place.offset)
                start = handle.read(min(place.length, SNIFF_BYTES))
                if is_picture(start) or kind in _NAMED_PICTURES:
                    entry.pictures.append(kind)
    except tarfile.TarError as error:
        damage = str(error)
    return _samples(found), damage


def _compression(handle: IO[bytes]) -> str | None:
    handle.seek(0)
    start = handle.read(8)
    known = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
    return next((name for magic, name in known.items() if start.startswith(magic)), None)


def _samples(found: list[Entry]) -> list[Entry]:
    sure = {entry.key for entry in found if entry.pictures and {"txt", "cls"} & entry.files.keys()}
    loose: dict[str, Entry] = {}
    result: list[Entry] = []
    for entry in found:
        if entry.key in sure or (entry.pictures and entry.says and not _above(entry.key) & sure):
            result.append(entry)
        elif not _above(entry.key) & sure:
            folder, slash, base = entry.key.rpartition("/")
            key = folder + slash + base.partition(".")[0]
            if key not in loose:
                loose[key] = Entry(key)
                result.append(loose[key])
            rest = entry.key[len(key) + 1 :]
            names = {kind: f"{rest}.{kind}" if rest else kind for kind in entry.files}
            loose[key].files |= {names[kind]: place for kind, place in entry.files.items()}
            loose[key].pictures += [names[kind] for kind in entry.pictures]
    return result


def _above(key: str) -> set[str]:
    """What stands before each dot of a key."""
    folder, slash, base = key.rpartition("/")
    parts = base.split(".")
    return {folder + slash + ".".join(parts[:count]) for count in range(1, len(parts))}
