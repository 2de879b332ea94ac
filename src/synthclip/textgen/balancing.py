"""Balancing: captions of concepts that are plentiful are thinned out, by a draw from their content."""

from collections.abc import Sequence
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from synthclip import keys
from synthclip.keys import U64
from synthclip.run.engine import Resources, Shard, Tick
from synthclip.run.stage import Stage
from synthclip.run.store import Outcome, ShardWriter
from synthclip.run.threads import in_order
from synthclip.schema import BALANCE_COUNT, NEAR_DUPLICATE, SELECTED, SPLITS
from synthclip.textgen import matched, near_duplicates
from synthclip.textgen.buckets import SortedByBucket
from synthclip.textgen.drawing import (
    Curve,
    Matches,
    draws,
    dropped,
    first_of_equal,
    in_sample,
    keep_probability,
)


class Balance(Stage):
    name, reads, sections = "balance", ("concepts", "captions", "match"), ("seed", "balance")

    def shards(self) -> Sequence[Shard]:
        inputs, rows = {}, 0
        for stage in self.reads:
            for manifest in self.whole(stage):
                inputs[f"{stage}/{manifest.shard}"] = manifest.digest(f"{manifest.shard}.parquet")
                rows += manifest.rows if stage != "concepts" else 0
        return [Shard("all", inputs, size=rows)]

    def resources(self) -> Resources:
        return Resources(max_workers=1)

    def make(self, shard: Shard, writer: ShardWriter, tick: Tick) -> Outcome:
        """Two passes over the matches, row group by row group: count, then draw."""
        config, seed = self.recipe.balance, self.recipe.seed
        parts = matched.parts(self.run)
        ids = list(in_order(matched.Part.ids, parts))
        fresh = first_of_equal(ids)
        rows, different = sum(map(len, ids)), sum(int(mask.sum()) for mask in fresh)
        near = self._leave_near_duplicates(parts, ids, fresh, writer)
        distinct = different - near
        counts, sample = self._count(parts, fresh, distinct, tick)
        curve = Curve(sample, counts, distinct, seed)
        t = config.t if config.target is None else curve.solve(config.target)
        selected = np.zeros_like(counts)
        unmatched = 0
        draw = partial(_drawn, dropped=dropped(counts, t), seed=seed)
        with SortedByBucket(writer.path("buckets"), SELECTED, rows) as buckets:
            for chosen, without, seen in in_order(draw, zip(parts, fresh, strict=True)):
                concepts = pc.list_flatten(chosen["concept_ids"]).to_numpy()
                selected += np.bincount(concepts, minlength=len(counts))
                buckets.add(chosen)
                unmatched += without
                tick(seen)
            kept = self._write(buckets, writer)
        with writer.table("counts.parquet", BALANCE_COUNT) as out:
            columns = [pa.array(range(len(counts)), pa.int32()), pa.array(counts), pa.array(selected)]
            out.write_table(pa.Table.from_arrays(columns, schema=BALANCE_COUNT))
        notes = {"duplicates": rows - different, "unmatched": unmatched, "t": t, "curve": curve.points()}
        return Outcome(sum(kept.values()), {"near duplicate": near} if near else {}, notes={**notes, **kept})

    def _leave_near_duplicates(
        self,
        parts: Sequence[matched.Part],
        ids: Sequence[U64],
        fresh: list[NDArray[np.bool_]],
        writer: ShardWriter,
    ) -> int:
        """Take near duplicates out of `fresh`, write them with what they are near to, say how many."""
        threshold = self.recipe.balance.near_duplicates
        if threshold is None:
            return 0
        read = partial(_sketched, threshold=threshold)
        sketches = in_order(read, zip(parts, fresh, strict=True))
        gone, near = near_duplicates.find(sketches, threshold, writer.path("near"))
        with SortedByBucket(writer.path("buckets"), NEAR_DUPLICATE, len(gone)) as buckets:
            for part, own, mask in zip(parts, ids, fresh, strict=True):
                rows = np.flatnonzero(mask & np.isin(own, gone))
                if len(rows):
                    place = np.searchsorted(gone, own[rows])
                    texts = part.texts().take(pa.array(rows))
                    columns = [pa.array(own[rows]), texts, pa.array(near[place])]
                    buckets.add(pa.Table.from_arrays(columns, schema=NEAR_DUPLICATE))
                    mask[rows] = False
            with writer.table("rejected/all.parquet", NEAR_DUPLICATE) as out:
                for table in buckets:
                    out.write_table(table)
        return len(gone)

    def _count(
        self, parts: Sequence[matched.Part], fresh: Sequence[NDArray[np.bool_]], distinct: int, tick: Tick
    ) -> tuple[NDArray[np.int64], Matches]:
        """How many different captions match each concept, int64 [concepts], and a sample of the matches."""
        [bank] = self.whole("concepts")
        counts = np.zeros(bank.rows, np.int64)
        sample = [Matches(np.empty(0, np.uint64), np.zeros(1, np.int64), np.empty(0, np.int32))]
        read = partial(_counted, distinct=distinct)
        for rows, concepts, some in in_order(read, zip(parts, fresh, strict=True)):
            counts += np.bincount(concepts, minlength=len(counts))
            sample.append(some)
            tick(rows)
        return counts, Matches.concatenated(sample)

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


def _counted(
    piece: tuple[matched.Part, NDArray[np.bool_]], distinct: int
) -> tuple[int, NDArray[np.int32], Matches]:
    """(rows, the concepts of all different captions, the matches of those in the sample)."""
    part, fresh = piece
    matches = part.matches()
    some = matches.rows(fresh & in_sample(matches.ids, distinct))
    return len(fresh), matches.concepts[np.repeat(fresh, np.diff(matches.offsets))], some


def _drawn(
    piece: tuple[matched.Part, NDArray[np.bool_]], dropped: NDArray[np.float64] | None, seed: int
) -> tuple[pa.Table, int, int]:
    """(the captions selected, how many match nothing, rows)."""
    part, fresh = piece
    ids, offsets, concepts = part.matches()
    chance = keep_probability(offsets, concepts, dropped)
    rows = np.flatnonzero(fresh & (draws(ids, seed) < chance))
    lists = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(concepts)).take(pa.array(rows))
    texts = part.texts().take(pa.array(rows))
    columns = [pa.array(ids[rows]), texts, lists, pa.array(chance[rows].astype(np.float32))]
    unmatched = int((fresh & (np.diff(offsets) == 0)).sum())
    return pa.Table.from_arrays(columns, schema=SELECTED), unmatched, len(fresh)


def _sketched(
    piece: tuple[matched.Part, NDArray[np.bool_]], threshold: float
) -> tuple[U64, near_duplicates.Sketch]:
    """Of captions that match something: no other is ever selected."""
    part, fresh = piece
    ids, offsets, _ = part.matches()
    mask = fresh & (np.diff(offsets) > 0)
    return ids[mask], near_duplicates.sketch(part.texts().filter(pa.array(mask)), threshold)
