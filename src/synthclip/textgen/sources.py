"""Where concepts come from: each reader yields the entries of one source, in the source's own order."""

import csv
import json
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from synthclip.errors import SynthClipError, needs_extra
from synthclip.keys import quick_digest
from synthclip.recipe.textgen import ConceptSource
from synthclip.textgen import wikipedia, wordnet


def read(source: ConceptSource) -> Iterator[Any]:
    """The entries of a source, unfiltered: strings, or whatever else stands where a string should.

    Raises SynthClipError, with file and row, where the source as a whole cannot be read.
    """
    path = _path(source)
    try:
        yield from _READERS[source.kind](path, source)
    except UnicodeDecodeError as error:
        raise SynthClipError(
            f"{path}: not UTF-8 (byte {error.start} of what was read): convert the file"
        ) from None
    except OSError as error:
        raise _unreadable(path, error) from None


def digests(sources: Sequence[ConceptSource]) -> dict[str, str]:
    """What the sources' files hold, by path. Raises SynthClipError for a file that is not there."""
    found = {}
    for source in sources:
        if source.kind == "wordnet":
            paths = wordnet.files(_path(source))
        else:
            paths = [Path(path).expanduser() for path in (source.path, source.views) if path]
        for path in paths:
            try:
                found[str(path)] = quick_digest(path)
            except OSError as error:
                raise _unreadable(path, error) from None
    return found


def _unreadable(path: Path, error: OSError) -> SynthClipError:
    return SynthClipError(f"concepts.sources: {path}: {error.strerror}: correct `path`")


def _path(source: ConceptSource) -> Path:
    return Path(source.path).expanduser() if source.path else wordnet.DEBIAN


def _builtin(_: Path, __: ConceptSource) -> Iterator[str]:
    yield from (resources.files("synthclip.textgen") / "nouns.txt").read_text(encoding="utf-8").splitlines()


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
        where = f"{path}, line {error.lineno}"
        raise SynthClipError(f"{where}: not JSON ({error.msg}): is it cut short?") from None
    if not isinstance(entries, list):
        raise SynthClipError(f"{path}: expected a JSON list of strings, such as MetaCLIP's metadata.json")
    yield from entries


def _wordnet(path: Path, source: ConceptSource) -> Iterator[str]:
    return wordnet.lemmas(path, source.include, source.named_people)


def _wordfreq(_: Path, source: ConceptSource) -> Iterator[str]:
    """The most frequent words of a language, by the package wordfreq."""
    with needs_extra("concepts", "concepts.sources: kind 'wordfreq'"):
        from wordfreq import top_n_list
    yield from top_n_list(source.language, source.top, wordlist="best")


def _wikipedia(path: Path, source: ConceptSource) -> Iterator[str]:
    return wikipedia.entries(path, source)


_READERS = {
    "builtin": _builtin,
    "csv": _csv,
    "json": _json,
    "text": _text,
    "wikipedia": _wikipedia,
    "wordfreq": _wordfreq,
    "wordnet": _wordnet,
}
