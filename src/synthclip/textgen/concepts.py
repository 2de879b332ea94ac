"""The concept bank: sources merged in order, filtered, each entry with where it came from."""

import gzip
import io
import json
import re
import unicodedata
import zlib
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
from synthclip.samples.csv_rows import RowError, records
from synthclip.samples.remembered import quick_digests
from synthclip.schema import CONCEPT, REJECTED_CONCEPT
from synthclip.textgen import lexicons
from synthclip.textgen.matcher import ConceptMatcher

BANK = "00000"
"""The one shard of the concept bank."""
JOINERS = re.compile("[\u200c\u200d]")
"""Zero-width joiner and non-joiner: spelling in Persian and Indian scripts, and the glue of emoji."""
_HAN_KANA, _THAI_TO_KHMER = (
    "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff",
    "\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff",
)
_UNSPACED_SCRIPT = re.compile(f"[{_HAN_KANA}{_THAI_TO_KHMER}]")
_RUNS_ON = re.compile(f"[{_HAN_KANA}]{{8}}|[{_THAI_TO_KHMER}]{{25}}")
"""Longer than a word is."""
_SPACES = re.compile("[\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000]")
"""All but the plain space; a tab or a newline is no part of a concept."""


class Concepts(Stage):
    name, reads, sections = "concepts", (), ("concepts",)
    revision = 2
    rejects = REJECTED_CONCEPT

    def shards(self) -> Sequence[Shard]:
        config = self.recipe.concepts
        blocked = {"block": keys.digest(*_block_list(config.block))} if config.block else {}
        return [Shard(BANK, _digests(config.sources) | blocked)]

    def resources(self) -> Resources:
        return Resources(max_workers=1)

    def make(self, shard: Shard, writer: ShardWriter, tick: Tick) -> Outcome:
        concepts = bank(self.recipe.concepts, writer.reject)
        if self.recipe.captions.imported is None:
            refuse_unspaced([text for text, _ in concepts])
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
            text, reason = _judged(entry, config, pattern)
            if reason is None and text in found:
                reason = "duplicate"
            if reason is None:
                found[text] = source.kind
            else:
                reject({"text": text, "source": source.kind}, reason)
    if config.block:
        offsets, _ = ConceptMatcher(_block_list(config.block), lowercase=True).match(
            [JOINERS.sub("", text) for text in found]
        )
        blocked = [text for text, hits in zip(found, np.diff(offsets), strict=True) if hits]
        for text in blocked:
            reject({"text": text, "source": found.pop(text)}, "blocked")
    return list(found.items())[: config.limit]


def unspaced(text: str) -> bool:
    """Whether the text has no spaces between its words, as in Chinese, Japanese and Thai."""
    return _RUNS_ON.search(text) is not None


def refuse_unspaced(concepts: Sequence[str]) -> None:
    """Raise SynthClipError for a bank of which most is in scripts that set no spaces between words."""
    found = [text for text in concepts if _UNSPACED_SCRIPT.search(text)]
    if 2 * len(found) > len(concepts):
        raise SynthClipError(
            f"concepts: {len(found):,} of {len(concepts):,}, such as {found[0]!r}, are in a script without "
            "spaces between words, in which no caption matches them: give them in a language with spaces"
        )


def printable(text: str) -> bool:
    """Whether all characters can be seen, or are plain spaces or joiners."""
    return JOINERS.sub("", text).isprintable()


def _judged(entry: Any, config: ConceptsConfig, pattern: re.Pattern[str] | None) -> tuple[str, str | None]:
    """(concept, None), or (what stands there, why it is refused)."""
    if isinstance(entry, RowError):
        reason, where = entry.args
        return where, reason
    if not isinstance(entry, str):
        return str(entry), "not a string"
    text = _SPACES.sub(" ", unicodedata.normalize("NFC", entry)).strip()
    if not text:
        return entry, "empty"
    if len(text) < config.min_chars:
        return text, "too short"
    if len(text) > config.max_chars:
        return text, "too long"
    if not printable(text):
        return text, "unprintable characters"
    if pattern and not pattern.fullmatch(text):
        return text, "pattern"
    return text, None


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
            terms += path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise SynthClipError(f"concepts.block: {path}: cannot be read: {error}") from None
    terms = [_SPACES.sub(" ", unicodedata.normalize("NFC", term)).strip() for term in terms]
    return [term for term in terms if term]


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
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise SynthClipError(f"{path}: its compressed data is damaged ({error}): fetch it again") from None
    except OSError as error:
        raise _unreadable(path, error) from None


def _digests(sources: Sequence[ConceptSource]) -> dict[str, str]:
    """What the sources' files hold, by path. Raises SynthClipError for a file that is not there."""
    found: dict[str, str] = {}
    for source in sources:
        if source.kind == "wordnet":
            paths = lexicons.wordnet_files(_path(source))
        else:
            paths = [Path(path).expanduser() for path in (source.path, source.views) if path]
        try:
            found |= zip(map(str, paths), quick_digests(paths), strict=True)
        except OSError as error:
            raise _unreadable(Path(error.filename or paths[0]), error) from None
    return found


def _unreadable(path: Path, error: OSError) -> SynthClipError:
    return SynthClipError(f"concepts.sources: {path}: {error.strerror}: correct `path`")


def _path(source: ConceptSource) -> Path:
    return Path(source.path).expanduser() if source.path else lexicons.DEBIAN_WORDNET


def _builtin(_: Path, __: ConceptSource) -> Iterator[str]:
    yield from (resources.files("synthclip.textgen") / "nouns.txt").read_text(encoding="utf-8").splitlines()


def _text(path: Path, _: ConceptSource) -> Iterator[str]:
    with lexicons.open_bytes(path) as raw, io.TextIOWrapper(raw, encoding="utf-8-sig") as lines:
        for line in lines:
            yield line.rstrip("\r\n")


def _csv(path: Path, source: ConceptSource) -> Iterator[str | RowError]:
    with lexicons.open_bytes(path) as lines:
        rows = records(lines, "\t" if path.name.removesuffix(".gz").endswith(".tsv") else ",")
        _, _, names = next(rows, (1, b"", list[str]()))
        if isinstance(names, RowError) or source.column not in names:
            raise SynthClipError(f"{path}: no column {source.column!r}: set `column` to one of {names}")
        column = names.index(source.column)
        for number, _, fields in rows:
            if isinstance(fields, RowError):
                yield RowError(str(fields), f"{path.name}, line {number}")
            else:
                yield fields[column]


def _json(path: Path, _: ConceptSource) -> Iterator[Any]:
    try:
        with lexicons.open_bytes(path) as handle:
            listed = json.loads(handle.read())
    except json.JSONDecodeError as error:
        where = f"{path}, line {error.lineno}"
        raise SynthClipError(f"{where}: not JSON ({error.msg}): is it cut short?") from None
    except RecursionError:
        raise SynthClipError(f"{path}: nested too deeply for a list of concepts") from None
    if not isinstance(listed, list):
        raise SynthClipError(f"{path}: expected a JSON list of strings, such as MetaCLIP's metadata.json")
    yield from listed


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
