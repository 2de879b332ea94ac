"""Which concepts of the bank a text names: exact n-gram matching, as MetaCLIP and the paper do it."""

from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from synthclip.engine import Shard, Tick
from synthclip.schema import MATCH
from synthclip.stage import Maker, Stage
from synthclip.store import Outcome, ShardWriter
from synthclip.textgen.concepts import BANK

_SPACED = str.maketrans(
    {**{mark: f" {mark} " for mark in ",.;:?!`"}, **dict.fromkeys("\t\n\r", " ")}
)  # the seven marks and three blanks of MetaCLIP's `spacing`


class ConceptMatcher:
    """Finds every concept in every text.

    A concept is found where it stands between single spaces once the text is padded with a space on each
    side, each of `,.;:?!` and the backquote has a space put around it, and tab, newline and carriage return
    are turned into a space (paper, section 3.1; the rule of MetaCLIP). Case counts unless `lowercase`.

    >>> matcher = ConceptMatcher(["dog", "red", "red ball"])
    >>> offsets, concept_ids = matcher.match(["A dog, a red ball.", "dogs"])
    >>> offsets, concept_ids
    (array([0, 3, 3]), array([0, 1, 2], dtype=int32))
    """

    def __init__(self, concepts: Sequence[str], *, lowercase: bool = False) -> None:
        """Concepts may repeat: each is found under all its positions."""
        import daachorse

        self._lowercase = lowercase
        patterns: dict[bytes, list[int]] = {}
        for position, concept in enumerate(concepts):
            text = concept.lower() if lowercase else concept
            patterns.setdefault(f" {text} ".encode("utf-8", "surrogatepass"), []).append(position)
        self._ids = list(patterns.values())
        self._automaton = daachorse.DoubleArrayAhoCorasick(list(patterns)) if patterns else None

    def match(self, texts: Iterable[str]) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """(offsets int64 [N + 1], concept_ids int32 [offsets[-1]]) in CSR form.

        The concepts of text i are `concept_ids[offsets[i]:offsets[i + 1]]`: positions in `concepts`,
        ascending, each once.
        """
        counts, found = [0], []
        for text in texts:
            if self._lowercase:
                text = text.lower()
            spaced = f" {text.translate(_SPACED)} ".encode("utf-8", "surrogatepass")
            hits = self._automaton.find_overlapping(spaced) if self._automaton else ()
            ids = sorted({concept for _, _, pattern in hits for concept in self._ids[pattern]})
            counts.append(len(ids))
            found.extend(ids)
        return np.cumsum(counts, dtype=np.int64), np.array(found, dtype=np.int32)


class Match(Stage):
    """One shard for every shard of captions, row for row."""

    name, reads, sections = "match", ("concepts", "captions"), ("match",)

    def shards(self) -> Sequence[Shard]:
        [bank] = self.whole("concepts")
        concepts = bank.digest(f"{BANK}.parquet")
        return [
            Shard(
                captions.shard,
                {"concepts": concepts, "captions": captions.digest(f"{captions.shard}.parquet")},
                size=captions.rows,
            )
            for captions in self.whole("captions")
        ]

    def load(self) -> Maker:
        bank = pq.read_table(self.run.file("concepts", f"{BANK}.parquet"), columns=["text"])
        matcher = ConceptMatcher(bank["text"].to_pylist(), lowercase=self.recipe.match.lowercase)

        def make(shard: Shard, writer: ShardWriter, tick: Tick) -> Outcome:
            captions = pq.read_table(
                self.run.file("captions", f"{shard.name}.parquet"), columns=["caption_id", "text"]
            )
            offsets, ids = matcher.match(captions["text"].to_pylist())
            lists = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(ids))
            with writer.table(f"{shard.name}.parquet", MATCH) as out:
                out.write_table(
                    pa.Table.from_arrays([captions["caption_id"], pa.chunked_array([lists])], schema=MATCH)
                )
            tick(captions.num_rows)
            unmatched = int((np.diff(offsets) == 0).sum())
            return Outcome(captions.num_rows, notes={"unmatched": unmatched, "matches": len(ids)})

        return make
