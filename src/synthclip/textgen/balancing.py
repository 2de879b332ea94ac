"""Balancing: captions of concepts that are plentiful are thinned out, by a draw from their content."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from synthclip import keys
from synthclip.engine import Resources, Shard, Tick
from synthclip.schema import BALANCE_COUNT, SELECTED
from synthclip.stage import Maker, Stage
from synthclip.store import Outcome, ShardWriter
from synthclip.textgen import matched
from synthclip.textgen.buckets import SortedByBucket
from synthclip.textgen.drawing import Curve, Matches, Unique, draws, in_sample, keep_probability

SPLITS = ("train", "heldout")


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

    def load(self) -> Maker:
        return self._make

    def _make(self, shard: Shard, writer: ShardWriter, tick: Tick) -> Outcome:
        """Two passes over the matches, row group by row group: count, then draw."""
        parts = matched.parts(self.run)
        unique = Unique(part.ids() for part in parts)
        counts, sample = self._count(parts, unique, tick)
        curve = Curve(sample, counts, unique.different, self.recipe.seed)
        config = self.recipe.balance
        t = config.t if config.target is None else curve.solve(config.target)
        selected = np.zeros_like(counts)
        unmatched = 0
        unique.restart()
        with SortedByBucket(writer.path("buckets"), SELECTED, unique.rows) as buckets:
            for part in parts:
                ids, offsets, concepts = part.matches()
                chance = keep_probability(offsets, concepts, counts, t)
                fresh = unique.first(ids)
                unmatched += int((fresh & (np.diff(offsets) == 0)).sum())
                rows = np.flatnonzero(fresh & (draws(ids, self.recipe.seed) < chance))
                lists = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(concepts))
                chosen = lists.take(pa.array(rows))
                selected += np.bincount(pc.list_flatten(chosen).to_numpy(), minlength=len(counts))
                texts = part.texts().take(pa.array(rows))
                columns = [pa.array(ids[rows]), texts, chosen, pa.array(chance[rows].astype(np.float32))]
                buckets.add(pa.Table.from_arrays(columns, schema=SELECTED))
                tick(len(ids))
            kept = self._write(buckets, writer)
        with writer.table("counts.parquet", BALANCE_COUNT) as out:
            columns = [pa.array(range(len(counts)), pa.int32()), pa.array(counts), pa.array(selected)]
            out.write_table(pa.Table.from_arrays(columns, schema=BALANCE_COUNT))
        notes = {"duplicates": unique.duplicates, "unmatched": unmatched, "t": t, "curve": curve.points()}
        return Outcome(sum(kept.values()), notes={**notes, **kept})

    def _count(
        self, parts: Sequence[matched.Part], unique: Unique, tick: Tick
    ) -> tuple[NDArray[np.int64], Matches]:
        """How many different captions match each concept, int64 [concepts], and a sample of the matches."""
        [bank] = self.whole("concepts")
        counts = np.zeros(bank.rows, np.int64)
        sample = [Matches(np.empty(0, np.uint64), np.zeros(1, np.int64), np.empty(0, np.int32))]
        for part in parts:
            ids, offsets, concepts = part.matches()
            fresh = unique.first(ids)
            counts += np.bincount(concepts[np.repeat(fresh, np.diff(offsets))], minlength=len(counts))
            sample.append(Matches(ids, offsets, concepts).rows(fresh & in_sample(ids, unique.different)))
            tick(len(ids))
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
