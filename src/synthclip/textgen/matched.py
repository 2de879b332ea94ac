"""Captions and their matches, read side by side in pieces that fit in memory."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from synthclip.keys import U64
from synthclip.run.store import RunDirectory
from synthclip.run.threads import in_order
from synthclip.textgen.drawing import Matches, first_of_equal


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


def parts(run: RunDirectory) -> list[Part]:
    """All matches of a run, in the order of their shards."""
    return [part for manifest in run.manifests("match") for part in _of_shard(run, manifest.shard)]


def counts(run: RunDirectory, concepts: int) -> NDArray[np.int64]:
    """How many different captions match each concept, int64 [concepts]."""
    pieces = parts(run)
    fresh = first_of_equal(list(in_order(Part.ids, pieces)))
    total = np.zeros(concepts, np.int64)
    for matches, mask in zip(in_order(Part.matches, pieces), fresh, strict=True):
        total += np.bincount(matches.rows(mask).concepts, minlength=concepts)
    return total


def _of_shard(run: RunDirectory, shard: str) -> Sequence[Part]:
    match, captions = (run.file(stage, f"{shard}.parquet") for stage in ("match", "captions"))
    return [Part(match, captions, group) for group in range(pq.ParquetFile(match).num_row_groups)]
