"""The rows of a CSV with the columns `image_path` and `caption`: the official one's, which has tabs between
them, or commas where the header has no tab.

A row is one line, as the official captions have no newline: so an unbalanced quote spoils its own row and no
other.
"""

import csv
import io
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import IO

from synthclip.errors import SynthClipError

_LONGEST_HEADER = 2**20


class RowError(Exception):
    """A row that cannot be used; the message is the reason it is counted under."""


def numbered_rows(lines: IO[bytes], path: str) -> Iterator[tuple[int, bytes, tuple[str, str] | RowError]]:
    """Number and bytes of every line after the header, and its image path and caption, or why it has none.

    Raises SynthClipError where the header lacks a column.
    """
    header = lines.readline(_LONGEST_HEADER)
    told = header.decode("utf-8-sig", "replace").rstrip("\r\n")
    delimiter = "\t" if "\t" in told else ","
    names = [name.strip('"') for name in told.split(delimiter)]
    if not {"image_path", "caption"} <= set(names):
        raise SynthClipError(
            f"{path}, line 1: expected the columns image_path and caption, with tabs or commas between them, "
            f"not {', '.join(names)[:200]!r}"
        )
    image, caption = names.index("image_path"), names.index("caption")
    for number, line in enumerate(lines, start=2):
        try:
            fields = _fields(line, len(names), delimiter)
            yield number, line, (fields[image], fields[caption].strip())
        except RowError as error:
            yield number, line, error


def _fields(line: bytes, width: int, delimiter: str) -> list[str]:
    try:
        text = line.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError:
        raise RowError("not UTF-8") from None
    if "\0" in text:
        raise RowError("NUL byte")
    if '"' not in text:
        fields = text.split(delimiter)
    else:
        try:
            fields = next(csv.reader([text], delimiter=delimiter, strict=True))
        except csv.Error:
            raise RowError("quotes do not match") from None
    if len(fields) != width:
        raise RowError("wrong number of columns")
    return fields


_MAX_RECORD_LINES = 100
"""Lines over which a quoted field may go; a quote that is not closed by then spoils its own line alone."""


def records(lines: Iterable[bytes], delimiter: str) -> Iterator[tuple[int, list[str] | RowError]]:
    """Number of the first line and fields of every record of a CSV, or why it has none.

    The first record is the header: its byte-order mark is left out, and the others have as many fields as it.
    A quoted field may hold newlines; a quote that nothing closes spoils its own line, not the rest of the
    file. Empty lines are skipped.
    """
    source, ahead = iter(lines), list[bytes]()
    number, width = 1, 0
    while ahead or (ahead := list(islice(source, 1))):
        count, fields = 1, _record(ahead[:1], delimiter, width)
        while isinstance(fields, RowError) and b'"' in ahead[0] and count < _MAX_RECORD_LINES:
            if count == len(ahead):
                ahead += islice(source, 1)
            if count == len(ahead):
                break
            count += 1
            if b'"' in ahead[count - 1]:
                fields = _record(ahead[:count], delimiter, width)
        if isinstance(fields, RowError):
            count, fields = 1, _record(ahead[:1], delimiter, width)
        elif not width:
            width = len(fields)
        if ahead[0].strip():
            yield number, fields
        number += count
        del ahead[:count]


def _record(lines: list[bytes], delimiter: str, width: int) -> list[str] | RowError:
    try:
        text = b"".join(lines).decode("utf-8" if width else "utf-8-sig")
    except UnicodeDecodeError:
        return RowError("not UTF-8")
    if "\0" in text:
        return RowError("NUL byte")
    try:
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True))
    except csv.Error:
        return RowError("quotes do not match")
    if len(rows) != 1 or (width and len(rows[0]) != width):
        return RowError("wrong number of columns")
    return rows[0]
