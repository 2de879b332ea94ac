"""Which concepts of the bank a text names: exact n-gram matching, as MetaCLIP and the paper do it."""

from collections.abc import Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from synthclip.engine import Shard, Tick
from synthclip.errors import SynthClipError
from synthclip.schema import MATCH
from synthclip.stage import Maker, Stage
from synthclip.store import Manifest, Outcome, ShardWriter, disk_errors
from synthclip.textgen import BANK, imported

_MARKS = tuple(bytes([mark]) for mark in b",.;:?!`")
_BLANKS = bytes.maketrans(b"\t\n\r", b"   ")
_BETWEEN = 0xFF  # stands between texts: a byte that UTF-8 has no use for
_TEXTS_AT_ONCE = 64  # beyond this the list of hits leaves the cache


class ConceptMatcher:
    """Finds every concept in every text, by one Aho-Corasick automaton over bytes.

    A concept is found where it stands between single spaces once the text is padded with a space on each
    side, each of `,.;:?!` and the backquote has a space put around it, and tab, newline and carriage return
    are turned into a space (MetaCLIP, arXiv 2309.16671, Algorithm 1). Case counts unless `lowercase`.

    >>> matcher = ConceptMatcher(["dog", "red", "red ball"])
    >>> offsets, concept_ids = matcher.match(["A dog, a red ball.", "dogs"])
    >>> offsets.tolist(), concept_ids.tolist()
    ([0, 3, 3], [0, 1, 2])
    """

    def __init__(self, concepts: Sequence[str], *, lowercase: bool = False) -> None:
        """Concepts may repeat: each is found under all its positions."""
        patterns: dict[bytes, list[int]] = {}
        for position, concept in enumerate(concepts):
            text = concept.lower() if lowercase else concept
            patterns.setdefault(f" {text} ".encode("utf-8", "surrogatepass"), []).append(position)
        self._lowercase = lowercase
        self._positions = np.fromiter(chain.from_iterable(patterns.values()), np.int32, len(concepts))
        self._repeats = np.fromiter(map(len, patterns.values()), np.int64, len(patterns))
        self._starts = np.cumsum(self._repeats) - self._repeats
        self._automaton: Any = None
        if patterns:
            from daachorse import DoubleArrayAhoCorasick

            self._automaton = DoubleArrayAhoCorasick(list(patterns), use_prefilter=False)

    def match(self, texts: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """(offsets int64 [N + 1], concept_ids int32 [offsets[-1]]) in CSR form.

        The concepts of text i are `concept_ids[offsets[i]:offsets[i + 1]]`: positions in `concepts`,
        ascending, each once. Raises ValueError for a text with half a surrogate pair, which is no Unicode.
        """
        counts, found = [np.zeros(1, np.int64)], [np.empty(0, np.int32)]
        for first in range(0, len(texts), _TEXTS_AT_ONCE):
            some = texts[first : first + _TEXTS_AT_ONCE]
            text_of, concept = self._pairs(some)
            counts.append(np.bincount(text_of, minlength=len(some)))
            found.append(concept)
        return np.cumsum(np.concatenate(counts)), np.concatenate(found)

    def _pairs(self, texts: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """(text, concept) of every match, ascending, each pair once."""
        haystack = _spaced(texts, self._lowercase)
        hits = self._automaton.find_overlapping(haystack) if self._automaton else []
        flat = np.fromiter(chain.from_iterable(hits), np.int64, 3 * len(hits)).reshape(-1, 3)
        ends = np.flatnonzero(np.frombuffer(haystack, np.uint8) == _BETWEEN)
        text_of, pattern = np.searchsorted(ends, flat[:, 0]), flat[:, 2]
        if len(self._repeats) != len(self._positions):
            repeats = self._repeats[pattern]
            text_of, pattern = np.repeat(text_of, repeats), np.repeat(pattern, repeats)
            within = np.arange(len(pattern)) - np.repeat(np.cumsum(repeats) - repeats, repeats)
            concept = self._positions[self._starts[pattern] + within]
        else:
            concept = self._positions[pattern]
        pairs = (text_of << 32) | concept
        pairs.sort()
        pairs = pairs[np.flatnonzero(np.diff(pairs, prepend=-1))]
        return pairs >> 32, (pairs & 0xFFFFFFFF).astype(np.int32)

    def save(self, path: Path) -> None:
        """Write the automaton for `load`, a tenth of a second against the seconds of building it."""
        automaton = self._automaton.serialize() if self._automaton else b""
        header = np.array([self._lowercase])
        with path.open("wb") as handle:
            for part in (header, self._positions, self._repeats):
                np.save(handle, part)
            handle.write(automaton)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote on a machine of the same byte order."""
        from daachorse import DoubleArrayAhoCorasick

        matcher = cls.__new__(cls)
        with path.open("rb") as handle:
            matcher._lowercase = bool(np.load(handle)[0])
            matcher._positions, matcher._repeats = np.load(handle), np.load(handle)
            raw = handle.read()
        matcher._starts = np.cumsum(matcher._repeats) - matcher._repeats
        matcher._automaton = DoubleArrayAhoCorasick.deserialize(raw) if raw else None
        return matcher


def _spaced(texts: Sequence[str], lowercase: bool) -> bytes:
    """The texts as MetaCLIP spaces them, one `_BETWEEN` between two."""
    joined = " \udcff ".join(texts)
    if lowercase:
        joined = joined.lower()
    try:
        spaced = joined.encode("utf-8", "surrogateescape").translate(_BLANKS)
        if spaced.count(_BETWEEN) != max(0, len(texts) - 1):
            raise ValueError("a text holds half a surrogate pair, which is no Unicode")
    except UnicodeEncodeError as error:
        raise ValueError("a text holds half a surrogate pair, which is no Unicode") from error
    for mark in _MARKS:
        spaced = spaced.replace(mark, b" " + mark + b" ")
    return b" " + spaced + b" "


class Match(Stage):
    """One shard for every shard of captions, row for row and row group for row group."""

    name, reads, sections = "match", ("concepts", "captions"), ("match",)

    def shards(self) -> Sequence[Shard]:
        [bank] = self.whole("concepts")
        concepts = bank.digest(f"{BANK}.parquet")
        files = self._imported()
        return [
            Shard(
                captions.shard,
                {
                    "concepts": concepts,
                    "captions": captions.digest(f"{captions.shard}.parquet"),
                    **(dict(files[captions.shard].inputs) if files else {}),
                },
                dict(files[captions.shard].payload) if files else {},
                size=captions.rows,
            )
            for captions in self.whole("captions")
        ]

    def prepare(self) -> None:
        """Build the automaton once, for all workers to read."""
        if self.recipe.match.imported:
            return
        bank = pq.read_table(self.run.file("concepts", f"{BANK}.parquet"), columns=["text"])
        matcher = ConceptMatcher(bank["text"].to_pylist(), lowercase=self.recipe.match.lowercase)
        with disk_errors(self._automaton()):
            self._automaton().parent.mkdir(parents=True, exist_ok=True)
            matcher.save(self._automaton())

    def load(self) -> Maker:
        if self.recipe.match.imported:
            [bank] = self.whole("concepts")
            return partial(imported.make_matches, concepts=bank.rows)
        matcher = ConceptMatcher.load(self._automaton())

        def make(shard: Shard, writer: ShardWriter, tick: Tick) -> Outcome:
            rows = unmatched = 0
            captions = pq.ParquetFile(self.run.file("captions", f"{shard.name}.parquet"))
            with writer.table(f"{shard.name}.parquet", MATCH) as out:
                for group in range(captions.num_row_groups):
                    table = captions.read_row_group(group, columns=["caption_id", "text"])
                    offsets, ids = matcher.match(table["text"].to_pylist())
                    lists = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(ids))
                    columns = [table["caption_id"], pa.chunked_array([lists])]
                    out.write_table(pa.Table.from_arrays(columns, schema=MATCH))
                    rows += table.num_rows
                    unmatched += int((np.diff(offsets) == 0).sum())
                    tick(table.num_rows)
            return Outcome(rows, notes={"unmatched": unmatched})

        return make

    def finish(self, manifests: Sequence[Manifest]) -> None:
        self._automaton().unlink(missing_ok=True)

    def _automaton(self) -> Path:
        return self.run.file(self.name, "automaton")

    def _imported(self) -> dict[str, Shard]:
        """The official files by shard of captions, where the matches are taken from them."""
        if not self.recipe.match.imported:
            return {}
        if self.recipe.captions.imported is None:
            raise SynthClipError("match.imported needs captions.imported, the folder of matched captions")
        return {shard.name: shard for shard in imported.shards(self.recipe.captions.imported)}
