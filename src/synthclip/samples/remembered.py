"""What files held, kept by the files' identity, so that a file that has not changed is not read again.

Derived data: it may be deleted at any time, and is made again where it is damaged or of another version.
"""

import hashlib
import os
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from synthclip.errors import SynthClipError
from synthclip.keys import digest, quick_digest
from synthclip.samples.files import cache_folder, replacing

Known = tuple[str, str]
"""The identity of a file, and what it held."""

_VERSION = b"synthclip 1"
_SETTLED_NS = 2 * 10**9
"""As coarse as the clock of a file system may be: within it a second change could go unseen."""


def identity(path: str) -> tuple[str, bool]:
    """What differs once a file was written, replaced or renamed: size, times and inode; and whether another
    change would show, as its last one is not of this very moment. Raises OSError."""
    found = os.stat(path)  # noqa: PTH116 (twice as fast: a run has many)
    settled = time.time_ns() - found.st_ctime_ns > _SETTLED_NS
    return f"{found.st_size} {found.st_mtime_ns} {found.st_ctime_ns} {found.st_ino}", settled


def recall(memory: Path) -> dict[str, Known]:
    """What `remember` wrote, by the names of the files; empty where a byte of it differs."""
    try:
        head, _, body = memory.read_bytes().partition(b"\n")
    except OSError:
        return {}
    if head != _head(body):
        return {}
    lines = (line.split("\t", 2) for line in body.decode("utf-8", "surrogateescape").split("\n")[:-1])
    return {name: (known, value) for name, known, value in lines}


def remember(memory: Path, known: Mapping[str, Known]) -> None:
    """Replace the memory in one step. Values are single lines. Where it cannot be written, none is kept."""
    lines = (f"{name}\t{one}\t{value}\n" for name, (one, value) in known.items() if _is_plain(name))
    body = "".join(lines).encode("utf-8", "surrogateescape")
    with suppress(OSError):
        memory.parent.mkdir(parents=True, exist_ok=True)
        with replacing(memory) as partial:
            partial.write_bytes(_head(body) + b"\n" + body)


def quick_digests(paths: Iterable[Path]) -> list[str]:
    """The `quick_digest` of each file, from the cache where the file has not changed. Raises OSError."""
    found = []
    known: dict[str, dict[str, Known]] = {}
    changed = set()
    for path in paths:
        folder, name = str(path.absolute().parent), path.name
        if folder not in known:
            memory = _memory(folder)
            known[folder] = recall(memory) if memory else {}
        now, settled = identity(str(path))
        before, value = known[folder].get(name, ("", ""))
        if before != now:
            value = quick_digest(path)
            if settled:
                known[folder][name] = (now, value)
                changed.add(folder)
        found.append(value)
    for folder in changed:
        if memory := _memory(folder):
            remember(memory, known[folder])
    return found


def _memory(folder: str) -> Path | None:
    """Where the digests of a folder's files are kept; None where this user has no folder for that."""
    try:
        return cache_folder() / "digests" / digest(folder)[:32]
    except SynthClipError:
        return None


def _head(body: bytes) -> bytes:
    return _VERSION + b" " + hashlib.sha256(body).hexdigest().encode()


def _is_plain(name: str) -> bool:
    return "\t" not in name and "\n" not in name
