"""The records of CSV files: of pairs (an image's path and a caption), and of any other columns.

A quoted field may hold newlines; a quote that nothing closes spoils its own line, not the rest of the file.
"""

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import IO

from synthclip.errors import SynthClipError

MAX_RECORD_LINES = 100
"""Lines over which a quoted field may go."""
_LONGEST_HEADER = 2**20
_SEPARATORS = ("\t", ",", ";", "|")
_IMAGE_COLUMNS, _TEXT_COLUMNS = ("image_path", "filepath"), ("caption", "title")
"""The official file's names, and those that open_clip's training expects."""


class RowError(Exception):
    """A row that cannot be used; the message is the reason it is counted under."""


def numbered_rows(
    lines: IO[bytes],
    path: str,
    image_column: str | None = None,
    text_column: str | None = None,
    separator: str | None = None,
) -> Iterator[tuple[int, bytes, tuple[str, str] | RowError]]:
    """First line's number and bytes of every record after the header, and its image path and caption, or why
    it has none.

    Columns that are not named are `image_path` or `filepath`, and `caption` or `title`; a separator that is
    not given is the tab, comma, semicolon or bar by which the header has both columns. Raises SynthClipError
    where it has not.
    """
    header = lines.readline(_LONGEST_HEADER)
    wanted = (
        (image_column,) if image_column else _IMAGE_COLUMNS,
        (text_column,) if text_column else _TEXT_COLUMNS,
    )
    for delimiter in (separator,) if separator else _SEPARATORS:
        names = next((fields for _, _, fields in records([header], delimiter)), RowError())
        if isinstance(names, list):
            found = [next((name for name in known if name in names), None) for known in wanted]
            if None not in found:
                break
    else:
        shown = header.decode("utf-8-sig", "replace").strip()[:200]
        expected = " and ".join(" or ".join(known) for known in wanted)
        raise SynthClipError(
            f"{path}, line 1: expected the columns {expected}, not {shown!r}: set image_column, text_column "
            "and separator in training.sources"
        )
    image, caption = (names.index(name) for name in found if name is not None)
    rows = records(chain([header], lines), delimiter)
    next(rows)
    for number, line, fields in rows:
        if isinstance(fields, RowError):
            yield number, line, fields
        else:
            yield number, line, (fields[image], fields[caption].strip())


def records(lines: Iterable[bytes], delimiter: str) -> Iterator[tuple[int, bytes, list[str] | RowError]]:
    """Number and bytes of the first line, and the fields, of every record of a CSV, or why it has none.

    The first record is the header: its byte-order mark is left out, and the others have as many fields as it.
    Empty lines are skipped.
    """
    source, ahead = iter(lines), list[bytes]()
    number, width = 1, 0
    while ahead or (ahead := list(islice(source, 1))):
        count, quotes = 1, ahead[0].count(b'"')
        fields = _record(ahead[:1], delimiter, width)
        while isinstance(fields, RowError) and quotes % 2 and count < MAX_RECORD_LINES:
            if count == len(ahead):
                ahead += islice(source, 1)
            if count == len(ahead):
                break
            more = ahead[count].count(b'"')
            count, quotes = count + 1, quotes + more
            if more and not quotes % 2:
                joined = _record(ahead[:count], delimiter, width)
                if isinstance(joined, list):
                    fields = joined
                    break
        if isinstance(fields, RowError):
            count = 1
        elif not width:
            width = len(fields)
        if ahead[0].strip():
            yield number, ahead[0], fields
        number += count
        del ahead[:count]


def _record(lines: Sequence[bytes], delimiter: str, width: int) -> list[str] | RowError:
    try:
        text = b"".join(lines).decode("utf-8" if width else "utf-8-sig")
    except UnicodeDecodeError:
        return RowError("not UTF-8")
    if "\0" in text:
        return RowError("NUL byte")
    if '"' not in text:
        rows = [text.rstrip("\r\n").split(delimiter)]
    else:
        # A field such as `"Stop" sign` breaks the rules; what it says is plain where its quotes are in pairs.
        for strict in (True, False) if not text.count('"') % 2 else (True,):
            try:
                rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=strict))
                break
            except csv.Error:
                rows = []
        if not rows:
            return RowError("quotes do not match")
    if len(rows) != 1 or (width and len(rows[0]) != width):
        return RowError("wrong number of columns")
    return rows[0]
