"""The concept bank: sources merged in order, filtered, each entry with where it came from."""

import csv
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from synthclip import keys, schema
from synthclip.errors import SynthClipError, needs_extra
from synthclip.recipe import Recipe
from synthclip.recipe.textgen import ConceptsConfig, ConceptSource
from synthclip.run.engine import Resources, Shard, Tick
from synthclip.run.stage import Stage
from synthclip.run.store import Outcome, RunDirectory, ShardWriter
from synthclip.schema import CONCEPT, REJECTED_CONCEPT
from synthclip.textgen import lexicons
from synthclip.textgen.matcher import ConceptMatcher

BANK = "00000"
"""The one shard of the concept bank."""


class Concepts(Stage):
    name, reads, sections = "concepts", (), ("concepts",)
    rejects = REJECTED_CONCEPT

    def shards(self) -> Sequence[Shard]:
        config = self.recipe.concepts
        blocked = {"block": keys.digest(*_block_list(config.block))} if config.block else {}
        return [Shard(BANK, _digests(config.sources) | blocked)]

    def resources(self) -> Resources:
        return Resources(max_workers=1)

    def make(self, shard: Shard, writer: ShardWriter, tick: Tick) -> Outcome:
        concepts = bank(self.recipe.concepts, writer.reject)
        if not concepts:
            why = ", ".join(f"{count} {reason}" for reason, count in writer.rejected.most_common())
            raise SynthClipError(
                f"the concept bank is empty{f' ({why})' if why else ''}: check concepts.sources"
            )
        texts, kinds = zip(*concepts, strict=True)
        columns = [pa.array(range(len(texts)), pa.int32()), pa.array(texts), pa.array(kinds)]
        with writer.table(f"{BANK}.parquet", CONCEPT) as out:
            out.write_table(pa.Table.from_arrays(columns, schema=CONCEPT))
        tick(1)
        return Outcome(len(texts), notes={"sources": dict(Counter(kinds))})


def read_bank(run: RunDirectory) -> list[str]:
    """The concepts of a run, by their ids."""
    table = schema.read_table(run.file("concepts", f"{BANK}.parquet"), columns=["text"])
    texts: list[str] = table["text"].to_pylist()
    return texts


def listed_bank(recipe: Recipe) -> list[str] | None:
    """The concepts that a run will have, where they stand in lists that are quick to read.

    None where they do not, or where the captions come from elsewhere.
    """
    kinds = {source.kind for source in recipe.concepts.sources}
    if recipe.captions.imported is not None or not kinds <= {"builtin", "csv", "json", "text"}:
        return None
    return [text for text, _ in bank(recipe.concepts)]


def bank(
    config: ConceptsConfig, reject: Callable[[dict[str, str], str], None] = lambda row, reason: None
) -> list[tuple[str, str]]:
    """(text, kind of its source) of every concept, each text once.

    `reject` is called with the `text` and `source` of every entry refused, and the reason.
    """
    found: dict[str, str] = {}
    pattern = re.compile(config.pattern) if config.pattern else None
    for source in config.sources:
        for entry in entries(source):
            reason = _refusal(entry, config, pattern)
            if reason is None and entry.strip() in found:
                reason = "duplicate"
            if reason is None:
                found[entry.strip()] = source.kind
            else:
                reject({"text": str(entry), "source": source.kind}, reason)
    if config.block:
        offsets, _ = ConceptMatcher(_block_list(config.block), lowercase=True).match(list(found))
        blocked = [text for text, hits in zip(found, np.diff(offsets), strict=True) if hits]
        for text in blocked:
            reject({"text": text, "source": found.pop(text)}, "blocked")
    return list(found.items())[: config.limit]


def _refusal(entry: Any, config: ConceptsConfig, pattern: re.Pattern[str] | None) -> str | None:
    if not isinstance(entry, str):
        return "not a string"
    text = entry.strip()
    if not text:
        return "empty"
    if len(text) < config.min_chars:
        return "too short"
    if len(text) > config.max_chars:
        return "too long"
    if not text.isprintable():
        return "unprintable characters"
    if pattern and not pattern.fullmatch(text):
        return "pattern"
    return None


def _block_list(block: Sequence[str]) -> list[str]:
    terms: list[str] = []
    for name in block:
        if name == "nsfw":
            with needs_extra("concepts", "concepts.block: 'nsfw'"):
                words = resources.files("better_profanity")
            path = Path(str(words / "profanity_wordlist.txt"))
        else:
            path = Path(name).expanduser()
        try:
            terms += path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise SynthClipError(f"concepts.block: {path}: cannot be read: {error}") from None
    return [term.strip() for term in terms if term.strip()]


def entries(source: ConceptSource) -> Iterator[Any]:
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


def _digests(sources: Sequence[ConceptSource]) -> dict[str, str]:
    """What the sources' files hold, by path. Raises SynthClipError for a file that is not there."""
    found = {}
    for source in sources:
        if source.kind == "wordnet":
            paths = lexicons.wordnet_files(_path(source))
        else:
            paths = [Path(path).expanduser() for path in (source.path, source.views) if path]
        for path in paths:
            try:
                found[str(path)] = keys.quick_digest(path)
            except OSError as error:
                raise _unreadable(path, error) from None
    return found


def _unreadable(path: Path, error: OSError) -> SynthClipError:
    return SynthClipError(f"concepts.sources: {path}: {error.strerror}: correct `path`")


def _path(source: ConceptSource) -> Path:
    return Path(source.path).expanduser() if source.path else lexicons.DEBIAN_WORDNET


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


def _wordfreq(_: Path, source: ConceptSource) -> Iterator[str]:
    """The most frequent words of a language, by the package wordfreq."""
    with needs_extra("concepts", "concepts.sources: kind 'wordfreq'"):
        from wordfreq import top_n_list
    yield from top_n_list(source.language, source.top, wordlist="best")


_READERS = {
    "builtin": _builtin,
    "csv": _csv,
    "json": _json,
    "text": _text,
    "wikipedia": lexicons.wikipedia,
    "wordfreq": _wordfreq,
    "wordnet": lexicons.wordnet,
}
