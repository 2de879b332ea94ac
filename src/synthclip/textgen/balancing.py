"""Balancing: captions of concepts that are plentiful are thinned out, by a draw from their content.

The rule is MetaCLIP's (arXiv 2309.16671, Algorithm 1), which the paper takes over: with `count[e]` captions
that match concept e, each match is drawn with probability `p[e] = t / max(count[e], t)`, and a caption is
kept if any of its matches is drawn, so with probability `1 - prod(1 - p[e])`.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from synthclip import keys
from synthclip.engine import Resources, Shard, Tick
from synthclip.keys import U64
from synthclip.schema import BALANCE_COUNT, SELECTED
from synthclip.stage import Maker, Stage
from synthclip.store import Outcome, ShardWriter
from synthclip.textgen.buckets import SortedByBucket

SPLITS = ("train", "heldout")


def keep_probability(
    offsets: NDArray[np.int64], concept_ids: NDArray[np.int32], counts: NDArray[np.int64], t: float | None
) -> NDArray[np.float64]:
    """The chance of each caption to be kept, float64 [N], 0 where it matches nothing.

    `offsets` [N + 1] and `concept_ids` are matches in CSR form, `counts` [concepts] the captions that match
    each concept; with `t` None all that match anything are kept.
    """
    matched = np.diff(offsets) > 0
    if t is None or not len(concept_ids):
        return matched.astype(np.float64)
    dropped = 1.0 - t / np.maximum(counts, t)
    kept = np.zeros(len(matched))
    kept[matched] = 1.0 - np.multiply.reduceat(dropped[concept_ids], offsets[:-1][matched])
    return kept


class Balance(Stage):
    name, reads, sections = "balance", ("captions", "match"), ("seed", "balance")

    def shards(self) -> Sequence[Shard]:
        inputs, rows = {}, 0
        for stage in self.reads:
            for manifest in self.whole(stage):
                inputs[f"{stage}/{manifest.shard}"] = manifest.digest(f"{manifest.shard}.parquet")
                rows += manifest.rows
        return [Shard("all", inputs, size=rows)]

    def resources(self) -> Resources:
        return Resources(max_workers=1)

    def load(self) -> Maker:
        config, seed = self.recipe.balance, self.recipe.seed

        def make(shard: Shard, writer: ShardWriter, tick: Tick) -> Outcome:
            names = [manifest.shard for manifest in self.whole("match")]
            unique = _Unique(self._ids(name) for name in names)
            counts = self._count(names, unique, tick)
            selected = np.zeros_like(counts)
            unmatched = 0
            unique.restart()
            with SortedByBucket(writer.path("buckets"), SELECTED, unique.rows) as buckets:
                for name in names:
                    ids, offsets, concepts = self._matches(name)
                    chance = keep_probability(offsets, concepts, counts, config.t)
                    fresh = unique.first(ids)
                    unmatched += int((fresh & (chance == 0)).sum())
                    drawn = keys.uniform(ids, stream="balance", seed=seed) < chance
                    rows = np.flatnonzero(fresh & drawn)
                    lists = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(concepts))
                    chosen = lists.take(pa.array(rows))
                    selected += np.bincount(pc.list_flatten(chosen).to_numpy(), minlength=len(counts))
                    texts = pq.read_table(self.run.file("captions", f"{name}.parquet"), columns=["text"])
                    buckets.add(
                        pa.Table.from_arrays(
                            [
                                pa.array(ids[rows]),
                                texts["text"].take(pa.array(rows)),
                                chosen,
                                pa.array(chance[rows].astype(np.float32)),
                            ],
                            schema=SELECTED,
                        )
                    )
                    tick(len(ids))
                kept = self._write(buckets, writer)
            with writer.table("counts.parquet", BALANCE_COUNT) as out:
                columns = [pa.array(range(len(counts)), pa.int32()), pa.array(counts), pa.array(selected)]
                out.write_table(pa.Table.from_arrays(columns, schema=BALANCE_COUNT))
            notes = {"duplicates": unique.duplicates, "unmatched": unmatched, "t": config.t, **kept}
            return Outcome(sum(kept.values()), notes=notes)

        return make

    def _ids(self, name: str) -> U64:
        table = pq.read_table(self.run.file("match", f"{name}.parquet"), columns=["caption_id"])
        ids: U64 = table["caption_id"].to_numpy()
        return ids

    def _matches(self, name: str) -> tuple[U64, NDArray[np.int64], NDArray[np.int32]]:
        """Caption ids [N] and their concepts in CSR form."""
        table = pq.read_table(self.run.file("match", f"{name}.parquet")).combine_chunks()
        if not table.num_rows:
            return np.empty(0, np.uint64), np.zeros(1, np.int64), np.empty(0, np.int32)
        lists = table["concept_ids"].chunk(0)
        lengths = pc.list_value_length(lists).to_numpy()
        offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        return table["caption_id"].to_numpy(), offsets, pc.list_flatten(lists).to_numpy()

    def _count(self, names: Sequence[str], unique: "_Unique", tick: Tick) -> NDArray[np.int64]:
        """How many different captions match each concept, int64 [concepts]."""
        [bank] = self.whole("concepts")
        counts = np.zeros(bank.rows, np.int64)
        for name in names:
            ids, offsets, concepts = self._matches(name)
            fresh = np.repeat(unique.first(ids), np.diff(offsets))
            counts += np.bincount(concepts[fresh], minlength=len(counts))
            tick(len(ids))
        return counts

    def _write(self, buckets: SortedByBucket, writer: ShardWriter) -> dict[str, int]:
        """Write both splits, ascending by caption id; returns the rows of each."""
        config, seed = self.recipe.balance, self.recipe.seed
        waiting: dict[str, list[pa.Table]] = {split: [] for split in SPLITS}
        files = dict.fromkeys(SPLITS, 0)
        rows = dict.fromkeys(SPLITS, 0)

        def flush(split: str, least: int) -> None:
            there = pa.concat_tables(waiting[split]) if waiting[split] else SELECTED.empty_table()
            while there.num_rows >= least:
                with writer.table(f"{split}/{files[split]:05d}.parquet", SELECTED) as out:
                    out.write_table(there.slice(0, config.captions_per_shard))
                there = there.slice(config.captions_per_shard)
                files[split] += 1
                if not there.num_rows:
                    break
            waiting[split] = [there]

        for table in buckets:
            held = keys.uniform(table["caption_id"].to_numpy(), stream="heldout", seed=seed) < config.heldout
            for split, mask in (("train", ~held), ("heldout", held)):
                part = table.filter(pa.array(mask))
                rows[split] += part.num_rows
                waiting[split].append(part)
                flush(split, config.captions_per_shard)
        for split in SPLITS:
            flush(split, 1)
        return rows


class _Unique:
    """Tells the first occurrence of an id from its repeats, in files that are read in the same order again.

    Holds 8 bytes an id while it is built, then only the ids that occur more than once.
    """

    def __init__(self, files: Iterator[U64]) -> None:
        ids = np.concatenate([np.empty(0, np.uint64), *files])
        self.rows = len(ids)
        ids.sort()
        again = ids[1:] == ids[:-1]
        self.duplicates = int(again.sum())
        self._repeated = np.unique(ids[1:][again])
        self.restart()

    def restart(self) -> None:
        """Begin again with the first file."""
        self._seen = np.zeros(len(self._repeated), bool)

    def first(self, ids: U64) -> NDArray[np.bool_]:
        """Which rows of the next file hold an id for the first time, bool [N]."""
        fresh = np.ones(len(ids), bool)
        if not len(self._repeated):
            return fresh
        place = np.searchsorted(self._repeated, ids)
        place[place == len(self._repeated)] = 0
        rows = np.flatnonzero(self._repeated[place] == ids)
        where, first = np.unique(place[rows], return_index=True)
        fresh[rows] = False
        fresh[rows[first[~self._seen[where]]]] = True
        self._seen[where] = True
        return fresh
