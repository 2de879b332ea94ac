"""Where concepts come from: each reader yields the entries of one source, in the source's own order."""

import csv
import json
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

from synthclip.errors import SynthClipError
from synthclip.textgen.config import ConceptSource


def read(source: ConceptSource) -> Iterator[Any]:
    """The entries of a source, unfiltered: strings, or whatever else stands where a string should.

    Raises SynthClipError, with file and row, where the source as a whole cannot be read.
    """
    if source.kind == "builtin":
        packaged = resources.files("synthclip.textgen") / "nouns.txt"
        yield from packaged.read_text(encoding="utf-8").splitlines()
        return
    path = located(source)
    assert path is not None
    try:
        yield from _FILES[source.kind](path, source)
    except OSError as error:
        raise SynthClipError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise SynthClipError(
            f"{path}: not UTF-8 (byte {error.start} of what was read): convert the file"
        ) from None


def located(source: ConceptSource) -> Path | None:
    """The source's file or folder, None where it has none."""
    return Path(source.path).expanduser() if source.path else None


def _text(path: Path, _: ConceptSource) -> Iterator[str]:
    with path.open(encoding="utf-8-sig") as lines:
        for line in lines:
            yield line.rstrip("\r\n")


def _csv(path: Path, source: ConceptSource) -> Iterator[str | None]:
    delimiter = "\t" if path.suffix == ".tsv" else ","
    with path.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines, delimiter=delimiter)
        if source.column not in (reader.fieldnames or ()):
            raise SynthClipError(
                f"{path}: no column {source.column!r}: set `column` to one of {reader.fieldnames or []}"
            )
        try:
            for row in reader:
                yield row[source.column]
        except csv.Error as error:
            raise SynthClipError(f"{path}, line {reader.line_num}: not CSV: {error}") from None


def _json(path: Path, _: ConceptSource) -> Iterator[Any]:
    try:
        entries = json.loads(path.read_bytes())
    except json.JSONDecodeError as error:
        raise SynthClipError(
            f"{path}, line {error.lineno}: not JSON ({error.msg}): is it cut short?"
        ) from None
    if not isinstance(entries, list):
        raise SynthClipError(f"{path}: expected a JSON list of strings, such as MetaCLIP's metadata.json")
    yield from entries


_FILES = {"text": _text, "csv": _csv, "json": _json}
