"""Files written completely or not at all, even through a power cut; manifests; errors of a full disk."""

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from synthclip.errors import SynthClipError
from synthclip.keys import sha256_of
from synthclip.samples.files import replacing

_ADVICE = {
    errno.ENOSPC: "no space left on the disk: free some and run the same command again",
    errno.EFBIG: "a file grows larger than may be written here: see `ulimit -f`",
    errno.EDQUOT: "disk quota exceeded: free some and run the same command again",
    errno.EROFS: "the disk is read-only: choose another --out",
    errno.EACCES: "permission denied: choose another --out",
    errno.EPERM: "permission denied: choose another --out",
    errno.ENAMETOOLONG: "the name is too long: choose another --out",
    errno.ENOTDIR: "a file stands where a folder should be: choose another --out",
    errno.EEXIST: "a file stands where a folder should be: choose another --out",
}


@contextlib.contextmanager
def disk_errors(path: Path, option: str = "--out") -> Iterator[None]:
    """Turn what a full or read-only disk raises into a line that says so; `option` is what chooses `path`."""
    try:
        yield
    except OSError as error:
        advice = _ADVICE.get(error.errno or 0)
        if advice is None:
            raise
        raise SynthClipError(f"{path}: {advice.replace('--out', option)}") from error


def to_json(value: Any) -> str:
    """The one text that a small JSON file of a run has for a value: another byte is damage."""
    return json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


_SEAL = re.compile(rb'\n "sha256": "([0-9a-f]{64})"(,?)(?=\n)')
"""The line that `seal` adds, at the outermost level."""


def seal(values: Mapping[str, Any]) -> str:
    """JSON that ends in a SHA-256 of itself, so that any other byte is noticed."""
    return to_json({**values, "sha256": hashlib.sha256(to_json(values).encode()).hexdigest()})


def unseal(raw: bytes) -> dict[str, Any] | None:
    """What `seal` was given, or None where a byte differs."""
    found = _SEAL.search(raw)
    if found is None:
        return None
    before, after = raw[: found.start()], raw[found.end() :]
    sealed = before + after if found[2] else before.removesuffix(b",") + after
    sealed = b"{}\n" if sealed == b"{\n}\n" else sealed
    if hashlib.sha256(sealed).hexdigest().encode() != found[1]:
        return None
    try:
        values: dict[str, Any] = json.loads(raw)
        del values["sha256"]
        return values
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def replace_text(target: Path, text: str, *, synced: bool = True) -> None:
    """Write a file in one step: a reader, or a kill, finds the old text or the new.

    Unless `synced`, a power cut may bring the old text back.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target) as partial, partial.open("w", encoding="utf-8") as handle:
        handle.write(text)
        if synced:
            handle.flush()
            os.fsync(handle.fileno())
    if synced:
        sync(target.parent)


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A scratch folder that becomes `folder` when the block ends well, and vanishes when it does not."""
    with disk_errors(folder):
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise SynthClipError(f"{folder}: not an empty folder: choose another")
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            yield scratch
            scratch.chmod(0o755)  # mkdtemp and safetensors let nobody else read
            for path in scratch.rglob("*"):
                path.chmod(0o755 if path.is_dir() else 0o644)
            scratch.replace(folder)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def is_partial(name: str) -> bool:
    """Whether a file of this name was left where `replacing` was killed."""
    return name.startswith(".") and name.endswith(".partial")


def sync(path: Path) -> None:
    """Wait until a file's bytes, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # what file systems answer that sync no folder
            raise
    finally:
        os.close(handle)


def to_line(values: Mapping[str, Any]) -> str:
    """A JSON object with a checksum, as a line."""
    text = json.dumps(values)
    return f'{text[:-1]}, "crc32": {zlib.crc32(text.encode())}}}\n'


def append_line(path: Path, values: Mapping[str, Any]) -> None:
    """Append `to_line`; a line that a kill has cut short is ended first."""
    with path.open("a+b") as handle:
        if handle.seek(0, os.SEEK_END) and handle.seek(-1, os.SEEK_END) >= 0 and handle.read(1) != b"\n":
            handle.write(b"\n")
        handle.write(to_line(values).encode())


def read_lines(path: Path) -> tuple[list[dict[str, Any]], list[int]]:
    """What `append_line` wrote, and the numbers of the lines that are damaged, counted from 1."""
    found, damaged = [], []
    raw = path.read_bytes() if path.is_file() else b""
    for number, line in enumerate(raw.split(b"\n")[:-1] if raw.endswith(b"\n") else raw.split(b"\n"), 1):
        text, _, checksum = line.rpartition(b', "crc32": ')
        try:
            if b"%d}" % zlib.crc32(text + b"}") != checksum:
                raise ValueError
            found.append(json.loads(text + b"}"))
        except (ValueError, RecursionError):
            damaged.append(number)
    return found, damaged


class FileEntry(NamedTuple):
    """One file of a shard; `path` is relative to the stage's folder."""

    path: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class Outcome:
    """What a shard came to: rows written, rows refused by reason, and anything else worth showing."""

    rows: int
    rejected: Mapping[str, int] = field(default_factory=dict)
    """What `ShardWriter.reject` was given is added by the writer."""
    notes: Mapping[str, Any] = field(default_factory=dict)


class Manifest(NamedTuple):
    """The proof that a shard is complete. It holds no times, so that equal work gives equal bytes."""

    shard: str
    fingerprint: str
    files: tuple[FileEntry, ...]
    rows: int
    rejected: Mapping[str, int]
    notes: Mapping[str, Any]

    def to_values(self) -> dict[str, Any]:
        """What its file holds."""
        return {**self._asdict(), "files": [entry._asdict() for entry in self.files]}

    @property
    def split(self) -> str:
        """One of `schema.IMAGE_SPLITS` where the shard is called `train/00000`, say."""
        return self.shard.partition("/")[0]

    def digest(self, path: str) -> str:
        """The SHA-256 of one of the shard's files."""
        return next(entry.sha256 for entry in self.files if entry.path == path)

    def damaged(self, folder: Path, *, skip: str | None = None) -> Iterator[tuple[str, str]]:
        """(path, what is wrong) of the shard's files in the stage's folder, compared byte by byte.

        Files whose names end in `skip` are not read.
        """
        for entry in self.files:
            path = folder / entry.path
            if path.is_symlink() or not path.is_file():
                yield entry.path, "missing, or no regular file"
            elif path.stat().st_size != entry.size_bytes:
                yield entry.path, f"{path.stat().st_size} bytes; its manifest says {entry.size_bytes}"
            elif not (skip and entry.path.endswith(skip)) and sha256_of(path) != entry.sha256:
                yield entry.path, "its SHA-256 is not the one in its manifest"


def rejected_by_reason(manifests: Iterable[Manifest]) -> Counter[str]:
    """Rows refused in all of these shards, the most frequent reason first."""
    total = Counter[str]()
    for manifest in manifests:
        for reason, count in manifest.rejected.items():
            total[reason] += count
    return Counter(dict(sorted((+total).items(), key=lambda item: (-item[1], item[0]))))


def stays_inside(path: object) -> bool:
    """Whether a path that a manifest names is one below its stage's folder."""
    if not isinstance(path, str) or not path or "\0" in path:
        return False
    return not path.startswith("/") and ".." not in path.split("/")
