"""The rows of a CSV with the columns `image_path` and `caption`: the official one's, which has tabs between
them, or commas where the header has no tab.

A row is one line, as the official captions have no newline: so an unbalanced quote spoils its own row and no
other.
"""

import csv
from collections.abc import Iterator
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
