"""Matching: which concepts of the bank every caption names."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from synthclip.errors import SynthClipError
from synthclip.run.engine import Shard, Tick
from synthclip.run.stage import Stage
from synthclip.run.store import Manifest, Outcome, ShardWriter, disk_errors
from synthclip.schema import MATCH
from synthclip.textgen import imported
from synthclip.textgen.bank import BANK, read_bank
from synthclip.textgen.matcher import ConceptMatcher


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
            [bank] = self.whole("concepts")
            return imported.make_matches(shard, writer, tick, bank.rows)
        rows = unmatched = 0
        captions = pq.ParquetFile(self.run.file("captions", f"{shard.name}.parquet"))
        with writer.table(f"{shard.name}.parquet", MATCH) as out:
            for group in range(captions.num_row_groups):
                table = captions.read_row_group(group, columns=["caption_id", "text"])
                offsets, ids = self._concepts.match(table["text"].combine_chunks())
                lists = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(ids))
                columns = [table["caption_id"], pa.chunked_array([lists])]
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
        return {shard.name: shard for shard in imported.shards(self.recipe.captions.imported)}
