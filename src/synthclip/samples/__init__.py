"""Pairs of a picture and a text on disk: written (`tars`), indexed, and read at random.

A tar of a run has a sidecar, a Parquet table of `schema.IMAGE`. Of any other WebDataset tar an index is made
that says the same of its samples.
"""

import bisect
import hashlib
import itertools
import json
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from synthclip import schema
from synthclip.errors import SynthClipError, first_line
from synthclip.keys import digest, text_ids, uniform
from synthclip.samples import files
from synthclip.samples.pictures import MAX_BYTES
from synthclip.samples.tars import Entry, entries, members

OTHER_TEXTS = "other_texts"
"""Further captions of an image: a column of a sidecar that has some, and a key of the JSON in its tar."""
_INDEX = pa.schema(
    [
        ("key", pa.string()),
        ("offset", pa.int64()),
        ("length", pa.int64()),
        ("text", pa.string()),
        ("concept_ids", pa.list_(pa.int32())),
        ("sha256", pa.string()),
        (OTHER_TEXTS, pa.list_(pa.string())),
    ]
)
"""What an index says of each sample: the columns of a sidecar that training reads."""
_FORMAT = "4"
"""Raised when the same tar would be indexed otherwise."""
_BAD_ROWS = b"bad_rows"
_MAX_TEXT_BYTES = 2**20


class SampleError(Exception):
    """A sample that cannot be used; it is counted, named and skipped."""

    def __init__(self, reason: str, name: str) -> None:
        super().__init__(reason, name)
        self.reason, self.name = reason, name


@dataclass(frozen=True)
class Sample:
    """One pair as it is stored: the bytes of an image file, its text, and the concepts in it."""

    image: bytes
    text: str
    concepts: pa.ListScalar | None = None
    other_texts: tuple[str, ...] = ()
    """Further captions of the same image: each pass of a training draws one of all."""

    @property
    def concept_ids(self) -> tuple[int, ...]:
        """The concepts in the text, where they are known."""
        return tuple(self.concepts.as_py() or ()) if self.concepts is not None else ()


class Source(Protocol):
    """Samples by number. `read` is called by many threads at once."""

    @property
    def bad_rows(self) -> Mapping[str, str]:
        """What could not be indexed at all: where it stands, and why."""
        ...

    def __len__(self) -> int: ...

    def read(self, index: int) -> Sample:
        """Raises SampleError."""
        ...

    def name_of(self, index: int) -> str:
        """Where the sample stands, for messages."""
        ...


def located(ends: Sequence[int], index: int) -> tuple[int, int]:
    """Which of some parts in a row holds an index, and its place there; `ends` are where the parts end."""
    number = bisect.bisect_right(ends, index)
    return number, index - (ends[number - 1] if number else 0)


class Concatenated:
    """Sources one after the other."""

    def __init__(self, parts: Sequence[Source]) -> None:
        self.parts = tuple(parts)
        self._ends = list(itertools.accumulate(len(part) for part in parts))
        self.bad_rows = {where: reason for part in parts for where, reason in part.bad_rows.items()}

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def read(self, index: int) -> Sample:
        part, row = self._find(index)
        return part.read(row)

    def name_of(self, index: int) -> str:
        part, row = self._find(index)
        return part.name_of(row)

    def _find(self, index: int) -> tuple[Source, int]:
        number, place = located(self._ends, index)
        return self.parts[number], place


class TarSource:
    """Pairs in one tar, by its index. The index is mapped from disk, so it takes no memory."""

    def __init__(self, path: str, index: pa.Table) -> None:
        self.path = path
        self.bad_rows: dict[str, str] = json.loads((index.schema.metadata or {}).get(_BAD_ROWS, b"{}"))
        (batch,) = index.combine_chunks().to_batches() or [pa.RecordBatch.from_pylist([], schema=_INDEX)]
        self._keys, offset, length, self._texts, self._concepts, self._digests, self._others = batch.columns
        self._start, self._length = offset.to_numpy(), length.to_numpy()
        self._has_digests = self._digests.null_count < len(batch)

    def __len__(self) -> int:
        return len(self._start)

    def read(self, row: int) -> Sample:
        start, length = int(self._start[row]), int(self._length[row])
        try:
            image = files.read_range(self.path, start, start + length, MAX_BYTES)
        except OSError as error:
            raise SampleError("unreadable shard", f"{self.path} ({error.strerror or error})") from None
        if self._has_digests and hashlib.sha256(image).hexdigest() != self._digests[row].as_py():
            raise SampleError("damaged image", self.name_of(row))
        text = self._texts[row].as_py()
        if not text or not text.strip():
            raise SampleError("empty caption", self.name_of(row))
        return Sample(image, text, self._concepts[row], tuple(self._others[row].as_py() or ()))

    def name_of(self, row: int) -> str:
        return f"{self.path} sample {self._keys[row]}"


def own_shards(sidecars: Sequence[Path], share: float = 1.0, seed: int = 0) -> Concatenated:
    """The images of a run, by the sidecars of their tars: those of a share of its captions, drawn by content,
    so that a smaller share of one seed is a subset of a larger one."""
    indexes = [_of_sidecar(path) for path in sidecars]
    if share < 1:
        drawn = [uniform(text_ids(index["text"].to_pylist()), stream="share", seed=seed) for index in indexes]
        indexes = [index.filter(pa.array(own < share)) for index, own in zip(indexes, drawn, strict=True)]
    parts = zip(sidecars, indexes, strict=True)
    return Concatenated([TarSource(str(_tar(path)), index) for path, index in parts])


def own_twins(sidecars: Sequence[Path]) -> Concatenated:
    """The images of a run that two captions were painted into from one seed: sample 2 i and sample 2 i + 1
    are of one seed. Images without their twin, which was refused, are left out."""
    parts = []
    for path in sidecars:
        index, seeds = _of_sidecar(path), schema.read_table(path, columns=["seed"])["seed"].to_numpy()
        order = np.argsort(seeds, kind="stable")
        first = np.flatnonzero(seeds[order][1:] == seeds[order][:-1])
        parts.append(TarSource(str(_tar(path)), index.take(order[np.stack([first, first + 1], 1).ravel()])))
    return Concatenated(parts)


def any_shards(paths: Sequence[str], caption_key: str = "caption") -> Concatenated:
    """WebDataset tars, local or remote. An index of each is made on its first use.

    Captions stand in `KEY.txt` or, where there is none, in `KEY.json` under `caption_key`. Raises
    SynthClipError where a file is no tar, or compressed, or where no sample can be used.
    """
    source = Concatenated([TarSource(path, _of_tar(path, caption_key)) for path in paths])
    if not len(source):
        name, reason = next(iter(source.bad_rows.items()), (paths[0], "no files"))
        raise SynthClipError(f"{name}: {reason}; none of its samples can be used: check training.sources")
    return source


def images(
    sidecars: Iterable[Path], columns: Sequence[str], where: pc.Expression | None = None
) -> Iterator[dict[str, Any]]:
    """The given columns of the rows of sidecars, each with the bytes of its image as `jpeg`.

    Raises SynthClipError where an image is not what its sidecar says.
    """
    for sidecar in sidecars:
        tar = _tar(sidecar)
        wanted = list(dict.fromkeys((*columns, "key", "offset", "length", "sha256")))
        try:
            rows = schema.read_table(sidecar, columns=wanted, filters=where).to_pylist()
            places = [(tar, row["offset"], row["length"]) for row in rows]
            for row, jpeg in zip(rows, files.read_places(places), strict=True):
                if row["sha256"] and hashlib.sha256(jpeg).hexdigest() != row["sha256"]:
                    raise OSError(f"image {row['key']} is damaged")
                yield {**row, "jpeg": jpeg}
        except (OSError, pa.ArrowException) as error:
            reason = first_line(error)
            raise SynthClipError(f"{tar}: damaged shard ({reason}): make it again") from None


def read_metadata(tar: Path, key: str) -> dict[str, Any]:
    """What `KEY.json` in a tar of a run says; nothing where there is none."""
    return next((about for _, about in metadata(tar, f"{key}.json")), {})


def metadata(tar: Path, ending: str = ".json") -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, content) of each file of a run's tar whose name has that ending, in JSON.

    Raises SynthClipError where the tar is damaged.
    """
    try:
        with tar.open("rb") as handle:
            for name, place in members(handle, tar.stat().st_size):
                if name.endswith(ending):
                    handle.seek(place.offset)
                    yield name, json.loads(handle.read(place.length))
    except (OSError, tarfile.TarError, ValueError) as error:
        reason = first_line(error)
        raise SynthClipError(f"{tar}: damaged shard ({reason}): make it again") from None


def _tar(sidecar: Path) -> Path:
    return sidecar.with_suffix(".tar")


def _of_sidecar(path: Path) -> pa.Table:
    try:
        there = pq.read_schema(path).names
        if not set(_INDEX.names) - {OTHER_TEXTS} <= set(there):  # of an older version
            return _of_tar(str(_tar(path)), "caption")
        name = f"{path.stem}.{digest(str(path), files.identity(str(path)), _FORMAT)[:32]}.index"
        return files.derived(
            name,
            [files.cache_folder() / "index"],
            lambda: _indexed(schema.read_table(path, columns=[n for n in _INDEX.names if n in there])),
        )
    except (OSError, pa.ArrowException) as error:
        reason = first_line(error)
        raise SynthClipError(f"{path}: cannot be read ({reason}): run `synthclip images` again") from None


def _indexed(sidecar: pa.Table) -> pa.Table:
    """Columns of a sidecar as an index; only one of an image with further captions has these."""
    if OTHER_TEXTS not in sidecar.column_names:
        none = pa.nulls(len(sidecar), _INDEX.field(OTHER_TEXTS).type)
        sidecar = sidecar.append_column(OTHER_TEXTS, none)
    return sidecar.cast(_INDEX)


def _of_tar(path: str, caption_key: str) -> pa.Table:
    """The index of a tar, from `PATH.….index` or, where none can be written there, the cache."""
    try:
        key = digest(files.identity(path), caption_key, _FORMAT)
        folders = [] if files.is_remote(path) else [Path(path).parent]
        name = f"{Path(path).name}.{key[:16]}.index"
        return files.derived(
            name, [*folders, files.cache_folder() / "index"], lambda: _scanned(path, caption_key)
        )
    except OSError as error:
        raise SynthClipError(f"{path}: cannot be read ({error}): check training.sources") from None


def _scanned(path: str, caption_key: str) -> pa.Table:
    with files.os_errors(path), files.open_binary(path) as handle:
        found, damage = entries(handle, files.size(path))
        if damage and not found:
            raise SynthClipError(f"{path}: not a tar ({damage}): check training.sources")
        rows: list[dict[str, Any]] = []
        bad = {f"{path} after {found[-1].key}": f"cut off: {damage}"} if damage else {}
        for entry in found:
            try:
                rows.append(_row(entry, handle, caption_key))
            except ValueError as error:
                bad[f"{path} sample {entry.key}"] = str(error)
        if files.is_remote(path) and rows:  # else a server without ranges would be noticed in training
            files.read_range(path, rows[-1]["offset"], rows[-1]["offset"] + rows[-1]["length"], MAX_BYTES)
    schema = _INDEX.with_metadata({_BAD_ROWS: json.dumps(bad).encode()})
    return pa.Table.from_pylist(rows, schema=schema)


def _row(entry: Entry, handle: Any, caption_key: str) -> dict[str, Any]:
    """Raises ValueError with the reason why a sample cannot be used."""

    def content(kind: str) -> str | None:
        place = entry.text(kind)
        if place is None:
            return None
        if place.length > _MAX_TEXT_BYTES:
            raise ValueError(f".{kind} larger than 1 MiB")
        handle.seek(place.offset)
        try:
            text: str = handle.read(place.length).decode("utf-8-sig")
        except UnicodeDecodeError:
            raise ValueError(f".{kind} is not UTF-8") from None
        return text

    if not entry.pictures:
        raise ValueError("no picture" if entry.says else "neither a picture nor a text")
    if len(entry.pictures) > 1:
        raise ValueError(f"several pictures: {', '.join(sorted(entry.pictures))}")
    place = entry.files[entry.pictures[0]]
    text = content("txt")
    try:
        about = json.loads(content("json") or "{}")
    except (ValueError, RecursionError):
        if text is None:
            raise ValueError("no caption: its .json cannot be read") from None
        about = {}
    if text is None:
        text = about.get(caption_key) if isinstance(about, dict) else None
        if text is None:
            beside = f": its .json has no {caption_key!r}" if entry.text("json") else ""
            beside = ": a class (.cls) alone" if entry.text("cls") else beside
            raise ValueError(f"no caption{beside}")
        if not isinstance(text, str):
            raise ValueError(f"no caption: {caption_key!r} in its .json is no text")
    known = about if isinstance(about, dict) else {}
    return {
        "key": entry.key,
        "text": text,
        "concept_ids": _concept_ids(known.get("concept_ids")),
        OTHER_TEXTS: _texts(known.get(OTHER_TEXTS)),
        **place._asdict(),
    }


def _texts(value: object) -> list[str]:
    return [one for one in value if isinstance(one, str) and one.strip()] if isinstance(value, list) else []


def _concept_ids(value: object) -> list[int]:
    known = isinstance(value, list) and all(type(one) is int and 0 <= one < 2**31 for one in value)
    return list(value) if known and isinstance(value, list) else []
