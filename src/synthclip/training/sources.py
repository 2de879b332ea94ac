"""Where training samples come from: random access to pairs of an image file and a text."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from synthclip.errors import SynthClipError
from synthclip.store import RunDirectory

_BLOCK = 512
"""Tar stores headers and data in blocks of so many bytes."""
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

    `starts` and `ends` give the bytes that a sample's members take in its tar, headers included; one read
    fetches them. 20 bytes of memory a sample.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        shard_N: NDArray[np.int32],
        start_N: NDArray[np.int64],
        end_N: NDArray[np.int64],
    ) -> None:
        self._paths = tuple(paths)
        self._shard_N, self._start_N, self._end_N = shard_N, start_N, end_N

    def __len__(self) -> int:
        return len(self._start_N)

    def read(self, index: int) -> Sample:
        path = self._paths[self._shard_N[index]]
        start, end = int(self._start_N[index]), int(self._end_N[index])
        try:
            with path.open("rb", buffering=0) as handle:
                handle.seek(start)
                region = handle.read(end - start)
        except OSError as error:
            raise SampleError("unreadable shard", f"{path} ({error.strerror})") from None
        members = tar_members(region)
        try:
            image = next(members[kind] for kind in IMAGE_EXTENSIONS if kind in members)
            text = members["txt"].decode("utf-8")
        except (StopIteration, KeyError, UnicodeDecodeError):
            raise SampleError("incomplete sample", self.name_of(index)) from None
        return Sample(image, text, members.get("json", b""))

    def name_of(self, index: int) -> str:
        return f"{self._paths[self._shard_N[index]]} at byte {self._start_N[index]}"


def tar_members(region: bytes) -> Mapping[str, bytes]:
    """The regular files in a piece of a tar, by extension. What is cut off or no header is left out."""
    members: dict[str, bytes] = {}
    at = 0
    while at + _BLOCK <= len(region):
        header = region[at : at + _BLOCK]
        try:
            size = int(header[124:136].rstrip(b"\0 ") or b"0", 8)
        except ValueError:
            break
        data_end = at + _BLOCK + size
        if data_end > len(region):
            break
        if header[156:157] in (b"0", b"\0"):
            name = header[:100].rstrip(b"\0").decode("utf-8", "replace")
            members[name.rpartition(".")[2].lower()] = region[at + _BLOCK : data_end]
        at = data_end + -size % _BLOCK
    return members


def own_shards(run: RunDirectory, tables: Iterable[str]) -> TarSource:
    """The images of a run, from the sidecars that its ImageGen wrote beside the tars.

    `tables` are the sidecars' paths within the stage's folder, such as `images/train/00000.parquet`.
    """
    paths, shards, starts, ends = [], [], [], []
    for number, name in enumerate(tables):
        sidecar = run.file("images", name)
        tar = sidecar.with_suffix(".tar")
        try:
            offset = pq.read_table(sidecar, columns=["offset"])["offset"].to_numpy()
            size = tar.stat().st_size
        except OSError as error:
            raise SynthClipError(
                f"{sidecar}: cannot be read ({error}): run `synthclip images` again"
            ) from None
        start = np.sort(offset) - _BLOCK
        paths.append(tar)
        shards.append(np.full(len(start), number, dtype=np.int32))
        starts.append(start)
        ends.append(np.append(start[1:], size)[: len(start)])
    return TarSource(paths, np.concatenate(shards), np.concatenate(starts), np.concatenate(ends))
