"""Files here or far away: plain paths are read directly, URLs (`s3://…`, `hf://…`) through fsspec."""

import os
from functools import cache
from pathlib import Path
from typing import IO, Any

from synthclip.errors import SynthClipError
from synthclip.keys import digest


def is_remote(path: str) -> bool:
    return "://" in path


def expand(pattern: str) -> list[str]:
    """The files that a path names, sorted; it may hold `*`, and braces as WebDataset has them: `{000..127}`.

    Raises SynthClipError where there is none, or none for one of the braces.
    """
    from braceexpand import braceexpand

    try:
        names = list(braceexpand(pattern))
    except ValueError:  # unbalanced: part of a name
        names = [pattern]
    return sorted(path for name in names for path in _matching(name))


def _matching(pattern: str) -> list[str]:
    if is_remote(pattern):
        fs, inner = _filesystem(pattern)
        found = [fs.unstrip_protocol(name) for name in fs.glob(inner)]
    else:
        path = Path(pattern).expanduser()
        # A file's own name may hold the characters of a pattern.
        at = Path(path.anchor)
        found = [str(name) for name in ([path] if path.exists() else at.glob(str(path.relative_to(at))))]
    if not found:
        raise SynthClipError(f"{pattern}: no such file: check training.sources")
    return found


def read_range(path: str, start: int, end: int) -> bytes:
    """The bytes from `start` up to `end`, or fewer where the file ends before. Raises OSError."""
    if is_remote(path):
        fs, inner = _filesystem(path)
        content: bytes = fs.cat_file(inner, start=start, end=end)
        return content
    handle = os.open(path, os.O_RDONLY)
    try:
        return os.pread(handle, end - start, start)
    finally:
        os.close(handle)


def open_binary(path: str) -> IO[bytes]:
    """Open for reading. Raises OSError."""
    if is_remote(path):
        fs, inner = _filesystem(path)
        remote: IO[bytes] = fs.open(inner, "rb")
        return remote
    return Path(path).open("rb")


def identity(path: str) -> str:
    """A digest that changes when the file does: of its name, size and time of change. Raises OSError."""
    if is_remote(path):
        fs, inner = _filesystem(path)
        return digest(path, str(fs.info(inner).get("size")), str(fs.ukey(inner)))
    known = Path(path).stat()
    return digest(Path(path).name, str(known.st_size), str(known.st_mtime_ns))


def cache_folder() -> Path:
    """Where what was derived from data files is kept: `$XDG_CACHE_HOME/synthclip`."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "synthclip"


def _filesystem(path: str) -> tuple[Any, str]:
    protocol, _, inner = path.partition("://")
    return _of_protocol(protocol), inner


@cache
def _of_protocol(protocol: str) -> Any:
    import fsspec

    return fsspec.filesystem(protocol)
