"""Matching: which concepts of the bank every caption names, and how later stages read that back."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from synthclip.errors import SynthClipError
from synthclip.keys import U64
from synthclip.run.engine import Shard, Tick
from synthclip.run.stage import Stage
from synthclip.run.store import Manifest, Outcome, RunDirectory, ShardWriter, disk_errors
from synthclip.run.threads import in_order
from synthclip.schema import MATCH, read_table, row_groups
from synthclip.textgen import official
from synthclip.textgen.concepts import BANK, read_bank
from synthclip.textgen.matcher import ConceptMatcher

_ROWS_IN_MEMORY = 262_144
_IDS_AT_ONCE = 2**25


class Match(Stage):
    """One shard for every shard of captions, row for row and row group for row group."""

    name, reads, sections = "match", ("concepts", "captions"), ("match",)

    def shards(self) -> Sequence[Shard]:
        [bank] = self.manifests_of("concepts")
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
            for captions in self.manifests_of("captions")
        ]

    def prepare(self) -> None:
        """Build the matcher once, for all workers to read."""
        if self.recipe.match.imported:
            return
        matcher = ConceptMatcher(read_bank(self.run), lowercase=self.recipe.match.lowercase)
        with disk_errors(self._matcher()):
            self._matcher().parent.mkdir(parents=True, exist_ok=True)
            matcher.save(self._matcher())

    def load(self) -> None:
        if not self.recipe.match.imported:
            self._concepts = ConceptMatcher.load(self._matcher())

    def make(self, shard: Shard, writer: ShardWriter, tick: Tick) -> Outcome:
        if self.recipe.match.imported:
            [bank] = self.manifests_of("concepts")
            return official.make_matches(shard, writer, tick, bank.rows)
        rows = unmatched = 0
        captions = self.run.file("captions", f"{shard.name}.parquet")
        with writer.table(f"{shard.name}.parquet", MATCH) as out:
            for group in range(row_groups(captions)):
                table = read_table(captions, ["caption_id", "text"], row_group=group)
                offsets, ids = self._concepts.match(table["text"].combine_chunks())
                columns = [table["caption_id"], pa.chunked_array([lists(offsets, ids)])]
                out.write_table(pa.Table.from_arrays(columns, schema=MATCH))
                rows += table.num_rows
                unmatched += int((np.diff(offsets) == 0).sum())
                tick(table.num_rows)
        return Outcome(rows, notes={"unmatched": unmatched})

    def finish(self, manifests: Sequence[Manifest]) -> None:
        self._matcher().unlink(missing_ok=True)

    def _matcher(self) -> Path:
        return self.run.file(self.name, "matcher")

    def _imported(self) -> dict[str, Shard]:
        """The official files by shard of captions, where the matches are taken from them."""
        if not self.recipe.match.imported:
            return {}
        if self.recipe.captions.imported is None:
            raise SynthClipError("match.imported needs captions.imported, the folder of matched captions")
        return {shard.name: shard for shard in official.shards(self.recipe.captions.imported)}


class Matches(NamedTuple):
    """Captions [N] and their concepts in CSR form."""

    ids: U64
    offsets: NDArray[np.int64]
    """[N + 1]"""
    concepts: NDArray[np.int32]

    def rows(self, mask: NDArray[np.bool_]) -> "Matches":
        """The captions where `mask` [N] holds."""
        lengths = np.diff(self.offsets)
        return Matches(self.ids[mask], _offsets(lengths[mask]), self.concepts[np.repeat(mask, lengths)])

    @staticmethod
    def concatenated(parts: Sequence["Matches"]) -> "Matches":
        lengths = np.concatenate([np.diff(part.offsets) for part in parts])
        return Matches(
            np.concatenate([part.ids for part in parts]),
            _offsets(lengths),
            np.concatenate([part.concepts for part in parts]),
        )


def _offsets(lengths: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


def lists(offsets: NDArray[np.int64], concepts: NDArray[np.int32]) -> pa.ListArray:
    """What is in CSR form as Arrow's lists of int32."""
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(concepts))


class Part(NamedTuple):
    """One row group of the matches, and of the captions beside them."""

    match: Path
    captions: Path
    group: int

    def ids(self) -> U64:
        """The captions' ids, uint64 [N]."""
        table = read_table(self.match, ["caption_id"], row_group=self.group)
        ids: U64 = table["caption_id"].to_numpy()
        return ids

    def matches(self) -> Matches:
        table = read_table(self.match, row_group=self.group)
        concepts = table["concept_ids"].combine_chunks()
        offsets = _offsets(pc.list_value_length(concepts).to_numpy())
        return Matches(table["caption_id"].to_numpy(), offsets, pc.list_flatten(concepts).to_numpy())

    def texts(self) -> pa.ChunkedArray:
        return read_table(self.captions, ["text"], row_group=self.group)["text"]


def matched_parts(run: RunDirectory) -> list[Part]:
    """All matches of a run, in the order of their shards."""
    return [part for manifest in run.manifests("match") for part in _of_shard(run, manifest.shard)]


def captions_by_concept(run: RunDirectory, concepts: int) -> NDArray[np.int64]:
    """How many different captions match each concept, int64 [concepts]."""
    pieces = matched_parts(run)
    fresh = first_of_equal(list(in_order(Part.ids, pieces)))
    total = np.zeros(concepts, np.int64)
    for matches, mask in zip(in_order(Part.matches, pieces), fresh, strict=True):
        total += np.bincount(matches.rows(mask).concepts, minlength=concepts)
    return total


def _of_shard(run: RunDirectory, shard: str) -> Sequence[Part]:
    match, captions = (run.file(stage, f"{shard}.parquet") for stage in ("match", "captions"))
    return [Part(match, captions, group) for group in range(row_groups(match))]


def first_of_equal(files: Sequence[U64]) -> list[NDArray[np.bool_]]:
    """Which rows hold an id for the first time, bool [N] for each of `files`, uint64 [N], in their order."""
    repeated = _repeated(files)
    seen = np.zeros(len(repeated), bool)
    masks = []
    for file in files:
        fresh = np.ones(len(file), bool)
        if len(repeated):
            place = np.minimum(np.searchsorted(repeated, file), len(repeated) - 1)
            rows = np.flatnonzero(repeated[place] == file)
            where, first = np.unique(place[rows], return_index=True)
            fresh[rows] = False
            fresh[rows[first[~seen[where]]]] = True
            seen[where] = True
        masks.append(fresh)
    return masks


def _repeated(files: Sequence[U64]) -> U64:
    """The ids that stand in more than one row, ascending.

    Those with the same top bits are looked at together, so that what is sorted at a time stays of one size.
    """
    bits = (sum(map(len, files)) // _IDS_AT_ONCE).bit_length()
    shift = np.uint64(64 - bits)

    def among(bucket: int) -> U64:
        ids = np.concatenate([file[file >> shift == bucket] for file in files] if bits else list(files))
        ids.sort()
        return np.unique(ids[1:][ids[1:] == ids[:-1]])

    return np.concatenate([among(bucket) for bucket in range(2**bits)]) if files else np.empty(0, np.uint64)


class SortedByBucket:
    """Spreads rows over files by the top bits of `caption_id`, then sorts one file after the other.

    Ids are hashes, so the files are of about equal size; none is made where all rows fit in memory.
    """

    def __init__(self, folder: Path, schema: pa.Schema, rows: int) -> None:
        """`rows` is the most that will be added."""
        self._folder, self._schema = folder, schema
        self._bits = min(10, max(0, (rows // _ROWS_IN_MEMORY).bit_length()))
        self._few: list[pa.Table] = []
        self._paths = [folder / f"{number:04d}.arrow" for number in range(2**self._bits)]
        self._writers: list[pa.ipc.RecordBatchStreamWriter] = []

    def __enter__(self) -> Self:
        if self._bits:
            self._folder.mkdir(parents=True, exist_ok=True)
            options = pa.ipc.IpcWriteOptions(compression="lz4")
            self._writers = [pa.ipc.new_stream(path, self._schema, options=options) for path in self._paths]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()
        for path in self._paths:
            path.unlink(missing_ok=True)

    def add(self, table: pa.Table) -> None:
        if not self._bits:
            self._few.append(table)
            return
        table = table.sort_by("caption_id").combine_chunks()
        bucket = table["caption_id"].to_numpy() >> np.uint64(64 - self._bits)
        edges = np.searchsorted(bucket, np.arange(len(self._writers) + 1, dtype=np.uint64))
        for writer, start, stop in zip(self._writers, edges[:-1], edges[1:], strict=True):
            if stop > start:
                writer.write_table(table.slice(start, stop - start))

    def __iter__(self) -> Iterator[pa.Table]:
        """All rows, ascending by `caption_id`, a bucket at a time; nothing may be added after."""
        if not self._bits:
            yield pa.concat_tables([self._schema.empty_table(), *self._few]).sort_by("caption_id")
            return
        self._close()
        for path in self._paths:
            with pa.ipc.open_stream(path) as stream:
                yield stream.read_all().sort_by("caption_id")

    def _close(self) -> None:
        for writer in self._writers:
            writer.close()
        self._writers = []
