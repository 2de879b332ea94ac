"""Captions and their matches, read side by side in pieces that fit in memory."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from synthclip.keys import U64
from synthclip.store import RunDirectory
from synthclip.textgen.drawing import Matches, Unique


def parts(run: RunDirectory) -> list["Part"]:
    """All matches of a run, in the order of their shards."""
    return [part for manifest in run.manifests("match") for part in _of_shard(run, manifest.shard)]


def counts(run: RunDirectory, concepts: int) -> NDArray[np.int64]:
    """How many different captions match each concept, int64 [concepts]."""
    total = np.zeros(concepts, np.int64)
    pieces = parts(run)
    unique = Unique(piece.ids() for piece in pieces)
    for piece in pieces:
        matches = piece.matches()
        total += np.bincount(matches.rows(unique.first(matches.ids)).concepts, minlength=concepts)
    return total


def _of_shard(run: RunDirectory, shard: str) -> list["Part"]:
    match, captions = (run.file(stage, f"{shard}.parquet") for stage in ("match", "captions"))
    return [Part(match, captions, group) for group in range(pq.ParquetFile(match).num_row_groups)]


class Part(NamedTuple):
    """One row group of the matches, and of the captions beside them."""

    match: Path
    captions: Path
    group: int

    def ids(self) -> U64:
        """The captions' ids, uint64 [N]."""
        table = pq.ParquetFile(self.match).read_row_group(self.group, columns=["caption_id"])
        ids: U64 = table["caption_id"].to_numpy()
        return ids

    def matches(self) -> Matches:
        table = pq.ParquetFile(self.match).read_row_group(self.group)
        lists = table["concept_ids"].combine_chunks()
        lengths = pc.list_value_length(lists).to_numpy()
        offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        return Matches(table["caption_id"].to_numpy(), offsets, pc.list_flatten(lists).to_numpy())

    def texts(self) -> pa.ChunkedArray:
        return pq.ParquetFile(self.captions).read_row_group(self.group, columns=["text"])["text"]
