"""Where training samples come from: random access to pairs of an image file and a text."""

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from synthclip.samples import files

_BLOCK = tarfile.BLOCKSIZE
IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")


class SampleError(Exception):
    """A sample that cannot be used; it is counted, named and passed over."""

    def __init__(self, reason: str, name: str) -> None:
        super().__init__(reason, name)
        self.reason, self.name = reason, name


@dataclass(frozen=True)
class Sample:
    """One pair as it is stored: the bytes of an image file, its text, and what else its shard says of it."""

    image: bytes
    text: str
    about: bytes = b""
    """A JSON object, or nothing."""

    @property
    def concept_ids(self) -> list[int]:
        """The concepts in the text, where the shard names them."""
        try:
            return [int(concept) for concept in json.loads(self.about)["concept_ids"]]
        except (ValueError, KeyError, TypeError):
            return []


class Source(Protocol):
    """Samples by number. `read` is called by many threads at once."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> Sample:
        """Raises SampleError."""
        ...

    def name_of(self, index: int) -> str:
        """Where the sample stands, for messages."""
        ...


class TarSource:
    """Pairs in WebDataset tars: the members of a sample stand together, `KEY.jpg` and `KEY.txt` among them.

    `span_N2` int64 gives the bytes that a sample's members take in its tar, headers included, so that one
    read fetches them; `shard_N` its tar. 20 bytes of memory a sample.
    """

    def __init__(self, paths: Sequence[str], shard_N: NDArray[np.int32], span_N2: NDArray[np.int64]) -> None:
        self._paths, self._shard_N, self._span_N2 = tuple(paths), shard_N, span_N2

    def __len__(self) -> int:
        return len(self._shard_N)

    def read(self, index: int) -> Sample:
        path = self._paths[self._shard_N[index]]
        start, end = self._span_N2[index].tolist()
        try:
            region = files.read_range(path, start, end)
        except OSError as error:
            raise SampleError("unreadable shard", f"{path} ({error.strerror})") from None
        members = tar_members(region)
        try:
            image = next(members[kind] for kind in IMAGE_EXTENSIONS if kind in members)
            text = members["txt"].decode("utf-8")
        except (StopIteration, KeyError, UnicodeDecodeError):
            raise SampleError("incomplete sample", self.name_of(index)) from None
        if not text.strip():
            raise SampleError("empty caption", self.name_of(index))
        return Sample(image, text, members.get("json", b""))

    def name_of(self, index: int) -> str:
        return f"{self._paths[self._shard_N[index]]} at byte {self._span_N2[index, 0]}"


def tar_members(region: bytes) -> Mapping[str, bytes]:
    """The regular files in a piece of a tar, by extension. What is cut off or damaged is left out."""
    members: dict[str, bytes] = {}
    at = 0
    while at + _BLOCK <= len(region):
        header = region[at : at + _BLOCK]
        if not header.strip(b"\0"):
            break  # the end of the archive
        kind = header[156:157]
        if kind not in (tarfile.REGTYPE, tarfile.AREGTYPE):
            return _any_tar_members(region)
        try:
            size = int(header[124:136].rstrip(b"\0 ") or b"0", 8)
        except ValueError:
            break
        data_end = at + _BLOCK + size
        if data_end > len(region):
            break
        name = header[:100].rstrip(b"\0").decode("utf-8", "replace")
        members[_extension(name)] = region[at + _BLOCK : data_end]
        at = data_end + -size % _BLOCK
    return members


def _any_tar_members(region: bytes) -> Mapping[str, bytes]:
    """As `tar_members`, for what has long names or other extras: five times slower."""
    members: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(region)) as tar:
            for entry in tar:
                content = tar.extractfile(entry) if entry.isfile() else None
                if content is not None:
                    members[_extension(entry.name)] = content.read()
    except tarfile.TarError:
        pass
    return members


def _extension(name: str) -> str:
    return name.rpartition(".")[2].lower()
