"""Balancing: captions of concepts that are plentiful are thinned out, by a draw from their content.

The rule is MetaCLIP's (arXiv 2309.16671, Algorithm 1), which the paper takes over: with `count[e]` captions
that match concept e, each match is drawn with probability `p[e] = t / max(count[e], t)`, and a caption is
kept if any of its matches is drawn, so with probability `1 - prod(1 - p[e])`.
"""

from collections.abc import Sequence
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from synthclip import keys
from synthclip.errors import SynthClipError
from synthclip.keys import U64
from synthclip.run.engine import Resources, Shard, Tick
from synthclip.run.stage import Stage
from synthclip.run.store import Outcome, ShardWriter
from synthclip.run.threads import in_order
from synthclip.schema import BALANCE_COUNT, NEAR_DUPLICATE, SELECTED, SPLITS
from synthclip.textgen import near_duplicates
from synthclip.textgen.match import Matches, Part, SortedByBucket, first_of_equal, lists, matched_parts

_SAMPLE = 2_000_000  # captions from which t is solved for a target size
_STEPS = 60


class Balance(Stage):
    name, reads, sections = "balance", ("concepts", "captions", "match"), ("seed", "balance")
    revision = 2
    rejects = NEAR_DUPLICATE

    def shards(self) -> Sequence[Shard]:
        inputs, rows = {}, 0
        for stage in self.reads:
            for manifest in self.manifests_of(stage):
                inputs[f"{stage}/{manifest.shard}"] = manifest.digest(f"{manifest.shard}.parquet")
                rows += manifest.rows if stage != "concepts" else 0
        return [Shard("all", inputs, size=rows)]

    def resources(self) -> Resources:
        return Resources(max_workers=1)

    def make(self, shard: Shard, writer: ShardWriter, tick: Tick) -> Outcome:
        """Two passes over the matches, row group by row group: count, then draw."""
        config, seed = self.recipe.balance, self.recipe.seed
        parts = matched_parts(self.run)
        ids = list(in_order(Part.ids, parts))
        fresh = first_of_equal(ids)
        rows, different = sum(map(len, ids)), sum(int(mask.sum()) for mask in fresh)
        distinct = different - self._reject_near_duplicates(parts, ids, fresh, writer)
        counts, sample = self._count(parts, fresh, distinct, tick)
        curve = Curve(sample, counts, distinct, seed)
        t = config.t if config.target is None else curve.solve(config.target)
        alike = curve.alike(t) if config.sample == "random" else None
        selected = np.zeros_like(counts)
        unmatched = 0
        draw = partial(_drawn, dropped=dropped(counts, t), alike=alike, seed=seed)
        with SortedByBucket(writer.path("buckets"), SELECTED, rows) as buckets:
            for chosen, without, seen in in_order(draw, zip(parts, fresh, strict=True)):
                concepts = pc.list_flatten(chosen["concept_ids"]).to_numpy()
                selected += np.bincount(concepts, minlength=len(counts))
                buckets.add(chosen)
                unmatched += without
                tick(seen)
            kept = self._write(buckets, writer)
        if not any(kept.values()):
            raise SynthClipError(
                f"balance: none of {distinct} different captions is selected, {unmatched} match no concept: "
                "check captions, match and balance in the recipe"
            )
        with writer.table("counts.parquet", BALANCE_COUNT) as out:
            columns = [pa.array(range(len(counts)), pa.int32()), pa.array(counts), pa.array(selected)]
            out.write_table(pa.Table.from_arrays(columns, schema=BALANCE_COUNT))
        notes = {"duplicates": rows - different, "unmatched": unmatched, "t": t, "curve": curve.points()}
        return Outcome(sum(kept.values()), notes={**notes, **kept})

    def _reject_near_duplicates(
        self,
        parts: Sequence[Part],
        ids: Sequence[U64],
        fresh: list[NDArray[np.bool_]],
        writer: ShardWriter,
    ) -> int:
        """Take near duplicates out of `fresh` and reject each with what it is near to; returns how many."""
        threshold = self.recipe.balance.near_duplicates
        if threshold is None:
            return 0
        read = partial(_sketched, threshold=threshold)
        sketches = in_order(read, zip(parts, fresh, strict=True))
        gone, near = near_duplicates.find(sketches, threshold, writer.path("near"))
        schema = NEAR_DUPLICATE.remove(NEAR_DUPLICATE.get_field_index("reason"))
        with SortedByBucket(writer.path("buckets"), schema, len(gone)) as buckets:
            for part, own, mask in zip(parts, ids, fresh, strict=True):
                rows = np.flatnonzero(mask & np.isin(own, gone))
                if len(rows):
                    place = np.searchsorted(gone, own[rows])
                    texts = part.texts().take(pa.array(rows))
                    columns = [pa.array(own[rows]), texts, pa.array(near[place])]
                    buckets.add(pa.Table.from_arrays(columns, schema=schema))
                    mask[rows] = False
            for table in buckets:
                writer.reject_table(table, "near duplicate")
        return len(gone)

    def _count(
        self, parts: Sequence[Part], fresh: Sequence[NDArray[np.bool_]], distinct: int, tick: Tick
    ) -> tuple[NDArray[np.int64], Matches]:
        """How many different captions match each concept, int64 [concepts], and a sample of the matches."""
        [bank] = self.manifests_of("concepts")
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
        config, seed = self.recipe.balance, self.recipe.heldout_seed
        waiting = dict.fromkeys(SPLITS, SELECTED.empty_table())
        files = dict.fromkeys(SPLITS, 0)
        rows = dict.fromkeys(SPLITS, 0)

        def flush(split: str, least: int) -> None:
            while waiting[split].num_rows >= least:
                with writer.table(f"{split}/{files[split]:05d}.parquet", SELECTED) as out:
                    out.write_table(waiting[split].slice(0, config.captions_per_shard))
                waiting[split] = waiting[split].slice(config.captions_per_shard)
                files[split] += 1

        for table in buckets:
            held = keys.uniform(table["caption_id"].to_numpy(), stream="heldout", seed=seed) < config.heldout
            for split, mask in (("train", ~held), ("heldout", held)):
                part = table.filter(pa.array(mask))
                rows[split] += part.num_rows
                waiting[split] = pa.concat_tables([waiting[split], part])
                flush(split, config.captions_per_shard)
        for split in SPLITS:
            flush(split, 1)
        return rows


def _counted(piece: tuple[Part, NDArray[np.bool_]], distinct: int) -> tuple[int, NDArray[np.int32], Matches]:
    """(rows, the concepts of all different captions, the matches of those in the sample)."""
    part, fresh = piece
    matches = part.matches()
    some = matches.rows(fresh & in_sample(matches.ids, distinct))
    return len(fresh), matches.rows(fresh).concepts, some


def _drawn(
    piece: tuple[Part, NDArray[np.bool_]],
    dropped: NDArray[np.float64] | None,
    alike: float | None,
    seed: int,
) -> tuple[pa.Table, int, int]:
    """(the captions selected, how many match nothing, rows). `alike` is the chance of every caption that
    matches anything; None where `dropped` says it of each concept."""
    part, fresh = piece
    ids, offsets, concepts = part.matches()
    chance = keep_probability(offsets, concepts, dropped if alike is None else None)
    chance *= 1.0 if alike is None else alike
    rows = np.flatnonzero(fresh & (draws(ids, seed) < chance))
    named = lists(offsets, concepts).take(pa.array(rows))
    texts = part.texts().take(pa.array(rows))
    columns = [pa.array(ids[rows]), texts, named, pa.array(chance[rows].astype(np.float32))]
    unmatched = int((fresh & (np.diff(offsets) == 0)).sum())
    return pa.Table.from_arrays(columns, schema=SELECTED), unmatched, len(fresh)


def _sketched(piece: tuple[Part, NDArray[np.bool_]], threshold: float) -> tuple[U64, near_duplicates.Sketch]:
    """Of captions that match something: no other is ever selected."""
    part, fresh = piece
    ids, offsets, _ = part.matches()
    mask = fresh & (np.diff(offsets) > 0)
    return ids[mask], near_duplicates.sketch(part.texts().filter(pa.array(mask)), threshold)


def dropped(counts: NDArray[np.int64], t: float | None) -> NDArray[np.float64] | None:
    """The chance of a match of each concept not to be drawn, float64 [concepts]; None where t is None.

    `counts` [concepts] are the captions that match each concept.
    """
    return None if t is None else 1.0 - t / np.maximum(counts, t)


def keep_probability(
    offsets: NDArray[np.int64], concept_ids: NDArray[np.int32], dropped: NDArray[np.float64] | None
) -> NDArray[np.float64]:
    """The chance of each caption to be kept, float64 [N], 0 where it matches nothing.

    `offsets` [N + 1] and `concept_ids` are matches in CSR form; where `dropped` is None all that match
    anything are kept.
    """
    matched = np.diff(offsets) > 0
    if dropped is None or not len(concept_ids):
        return matched.astype(np.float64)
    kept = np.zeros(len(matched))
    kept[matched] = 1.0 - np.multiply.reduceat(dropped[concept_ids], offsets[:-1][matched])
    return kept


def draws(ids: U64, seed: int) -> NDArray[np.float64]:
    """The number in [0, 1) that each caption's probability must exceed, float64 [N]."""
    return keys.uniform(ids, stream="balance", seed=seed)


def in_sample(ids: U64, captions: int) -> NDArray[np.bool_]:
    """Which of `captions` different captions t is solved from, bool [N]: all, where they are few."""
    return keys.uniform(ids, stream="sample", seed=0) < _share(captions)


def _share(captions: int) -> float:
    """The chance of each of `captions` to be in the sample."""
    return min(1.0, _SAMPLE / max(captions, 1))


class Curve:
    """How many captions each t selects."""

    def __init__(self, sample: Matches, counts: NDArray[np.int64], captions: int, seed: int) -> None:
        """`sample` is what `in_sample` picks of `captions` different ones."""
        self._sample, self._counts = sample, counts
        self._share = _share(captions)
        self._draws = draws(sample.ids, seed)

    def size(self, t: float | None) -> int:
        """Exact where the sample holds all captions, else an estimate."""
        chance = keep_probability(self._sample.offsets, self._sample.concepts, dropped(self._counts, t))
        return round(int((self._draws < chance).sum()) / self._share)

    def solve(self, target: int) -> float | None:
        """The t that selects `target` captions; None, which keeps all, where there are no more."""
        if target >= self.size(None):
            return None
        low, high = 0.0, float(self._counts.max(initial=1))
        for _ in range(_STEPS):
            middle = (low + high) / 2
            low, high = (middle, high) if self.size(middle) < target else (low, middle)
        return high

    def alike(self, t: float | None) -> float:
        """The chance of every caption that matches anything with which as many are selected as by `t`."""
        drawn = np.sort(self._draws[np.diff(self._sample.offsets) > 0])
        selected = round(self.size(t) * self._share)
        return float(drawn[selected]) if selected < len(drawn) else 1.0

    def points(self) -> list[tuple[float, int]]:
        """(t, size) for t = 1, 2, 5, 10, … until all are selected."""
        found: list[tuple[float, int]] = []
        most = self.size(None)
        for power in range(10):
            for step in (1, 2, 5):
                if found and found[-1][1] >= most:
                    return found
                found.append((float(step * 10**power), self.size(step * 10**power)))
        return found
