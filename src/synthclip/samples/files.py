"""Local and remote files: plain paths are read directly, URLs (`s3://…`, `hf://…`) through fsspec."""

import itertools
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from synthclip.errors import SynthClipError, first_line
from synthclip.keys import digest

Place = tuple[Path, int, int]
"""A file, and the offset and length of some bytes in it."""


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
    if pattern.startswith("pipe:"):
        raise SynthClipError(f"{pattern}: commands are not run: give the address itself, such as s3://…")
    try:
        with os_errors(pattern):
            found = _remote_matches(pattern) if is_remote(pattern) else _local_matches(pattern)
    except OSError as error:
        raise SynthClipError(f"{pattern}: cannot be read ({error}): check training.sources") from None
    if not found:
        raise SynthClipError(f"{pattern}: no such file: check training.sources")
    return found


def _remote_matches(pattern: str) -> list[str]:
    fs, inner = _filesystem(pattern)
    if "::" in pattern:  # a chain cannot be put together again from what it matches
        if any(character in pattern for character in "*?["):
            raise SynthClipError(f"{pattern}: chained addresses take no wildcards: name each file")
        return [pattern] if fs.exists(inner) else []
    return [fs.unstrip_protocol(name) for name in fs.glob(inner)]


def _local_matches(pattern: str) -> list[str]:
    path = Path(pattern).expanduser()
    # A file's own name may hold the characters of a pattern.
    at = Path(path.anchor)
    found = [path] if path.exists() else list(at.glob(str(path.relative_to(at))))
    for one in found:
        if not one.is_file():  # a pipe or a device has no end
            raise SynthClipError(f"{one}: not a regular file: check training.sources")
    return [str(one) for one in found]


def read_range(path: str, start: int, end: int, most: int) -> bytes:
    """The bytes from `start` up to `end`. Raises OSError where the file does not reach so far, where they are
    more than `most`, or where a server answers with other bytes than asked for."""
    if not 0 <= start <= end or end - start > most:
        raise OSError(f"bytes {start} to {end}: more than {most // 2**20} MiB")
    if is_remote(path):
        fs, inner = _filesystem(path)
        with os_errors(path):
            content: bytes = fs.cat_file(inner, start=start, end=end)
        if len(content) != end - start:
            raise OSError(
                f"{len(content)} bytes came where {end - start} were asked for: the server sends no parts of "
                "files, or the file is shorter: download it"
            )
        return content
    handle = os.open(path, os.O_RDONLY)
    try:
        return _pread(handle, start, end)
    finally:
        os.close(handle)


def read_places(places: Iterable[Place]) -> Iterator[bytes]:
    """The bytes at each place; consecutive places in one file open it once. Raises OSError as `read_range`
    does."""
    for path, run in itertools.groupby(places, lambda place: place[0]):
        handle = os.open(path, os.O_RDONLY)
        try:
            for _, offset, length in run:
                yield _pread(handle, offset, offset + length)
        finally:
            os.close(handle)


def _pread(handle: int, start: int, end: int) -> bytes:
    """Memory is taken only for what is there."""
    if not 0 <= start <= end <= os.fstat(handle).st_size:
        raise OSError(f"bytes {start} to {end} lie beyond the end of the file")
    return os.pread(handle, end - start, start)


def size(path: str) -> int:
    """In bytes. Raises OSError."""
    if is_remote(path):
        fs, inner = _filesystem(path)
        with os_errors(path):
            return int(fs.size(inner) or 0)
    return Path(path).stat().st_size


def open_binary(path: str) -> IO[bytes]:
    """Open for reading. Raises OSError."""
    if is_remote(path):
        fs, inner = _filesystem(path)
        with os_errors(path):
            remote: IO[bytes] = fs.open(inner, "rb")
        return remote
    return Path(path).open("rb")


def read_inside(root: str, path: str, most: int) -> bytes:
    """The bytes of a file that another file names, relative to `root`. Raises OSError where it lies outside
    `root`, is no regular file, or has more than `most` bytes."""
    if is_remote(root):
        full = path if is_remote(path) else f"{root.rstrip('/')}/{path}"
        if not full.startswith(f"{root.rstrip('/')}/") or ".." in full.split("/"):
            raise OSError(f"outside {root}")
        with open_binary(full) as handle:
            content = handle.read(most + 1)
    else:
        top = Path(os.path.normpath(Path(root).expanduser().absolute()))
        inner = Path(os.path.normpath(top / path))
        if is_remote(path) or not inner.is_relative_to(top):
            raise OSError(f"outside {root}")
        if not inner.is_file():  # a device or a pipe would be read for ever
            raise OSError("no such file" if not inner.exists() else "not a regular file")
        with inner.open("rb") as handle:
            content = handle.read(most + 1)
    if len(content) > most:
        raise OSError(f"more than {most // 2**20} MiB")
    return content


def identity(path: str) -> str:
    """A digest that changes when the file does: of its name, size and time of change. Raises OSError."""
    if is_remote(path):
        fs, inner = _filesystem(path)
        with os_errors(path):
            return digest(path, str(fs.info(inner).get("size")), str(fs.ukey(inner)))
    known = Path(path).stat()
    return digest(Path(path).name, str(known.st_size), str(known.st_mtime_ns))


def cache_folder() -> Path:
    """Where what was derived from data files is kept: `$XDG_CACHE_HOME/synthclip`."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    try:
        return Path(base).expanduser() / "synthclip"
    except RuntimeError:
        raise SynthClipError("no home folder: set XDG_CACHE_HOME to a folder for derived data") from None


@contextmanager
def os_errors(path: str) -> Iterator[None]:
    """Turn what the many clients behind fsspec raise into an OSError of one line."""
    try:
        yield
    except (OSError, SynthClipError):
        raise
    except Exception as error:
        if not is_remote(path):
            raise
        reason = first_line(error)
        hint = "; the server sends no parts of files: download it" if "bytes than" in reason else ""
        raise OSError(f"{reason}{hint}") from None


@cache
def _filesystem(path: str) -> tuple[Any, str]:
    import fsspec

    try:
        fs, inner = fsspec.core.url_to_fs(path)
    except (ImportError, ValueError) as error:  # no driver; no such protocol
        raise SynthClipError(f"{path}: {first_line(error)}") from None
    return fs, inner


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A file to write that takes the place of `target` at the end in one step; on an error it is removed."""
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        yield partial
        partial.replace(target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def derived(name: str, folders: Sequence[Path], make: Callable[[], pa.Table]) -> pa.Table:
    """The table that `make` gives, mapped from a file of that name in one of the folders.

    A file that is cut or changed is made again; where none can be written, the table stays in memory.
    """
    for folder in folders:
        if (table := _mapped(folder / name)) is not None:
            return table
    table = make()
    for folder in folders:
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            with replacing(folder / name) as partial:
                content = _ipc_bytes(table)
                partial.write_bytes(content + zlib.crc32(content).to_bytes(4, "little"))
            return _mapped(folder / name) or table
    return table


def _mapped(path: Path) -> pa.Table | None:
    """A table with its checksum after it, or None where there is none, or it is damaged."""
    try:
        with pa.memory_map(str(path)) as mapped:
            content = mapped.read_buffer()
        body, check = content[:-4], content[-4:].to_pybytes()
        if len(check) < 4 or zlib.crc32(body).to_bytes(4, "little") != check:
            return None
        return pa.ipc.open_file(body).read_all()
    except (OSError, pa.ArrowException):
        return None


def _ipc_bytes(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as out:
        out.write_table(table.combine_chunks())
    content: bytes = sink.getvalue().to_pybytes()
    return content
