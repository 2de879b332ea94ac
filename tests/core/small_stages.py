"""A pipeline of three real stages that work in milliseconds: numbers, their squares, the sum."""

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from synthclip.errors import SynthClipError
from synthclip.run.engine import Resources, Shard, Tick
from synthclip.run.stage import Stage
from synthclip.run.store import Manifest, Outcome, ShardWriter

SCHEMA = pa.schema([("value", pa.int64())])
STAGES = {
    "numbers": "small_stages:Numbers",
    "squares": "small_stages:Squares",
    "total": "small_stages:Total",
}


class Numbers(Stage):
    name, reads, sections = "numbers", (), ("seed", "captions")

    def shards(self) -> Sequence[Shard]:
        return [Shard(f"{n:05d}", {}, {"first": 10 * n}, 10) for n in range(self.recipe.captions.per_concept)]

    def make(self, shard: Shard, writer: ShardWriter, tick: Tick) -> Outcome:
        first = shard.payload["first"] + self.recipe.seed
        writer.rows(f"{shard.name}.parquet", SCHEMA, [{"value": first + n} for n in range(10)])
        tick(10)
        return Outcome(10)


class Squares(Stage):
    name, reads, sections = "squares", ("numbers",), ("balance",)

    def shards(self) -> Sequence[Shard]:
        return [
            Shard(m.shard, {"numbers": m.digest(f"{m.shard}.parquet")}, size=m.rows)
            for m in self.manifests_of("numbers")
        ]

    def make(self, shard: Shard, writer: ShardWriter, tick: Tick) -> Outcome:
        values = pq.read_table(self.run.file("numbers", f"{shard.name}.parquet"))["value"].to_pylist()
        even = [{"value": value**2} for value in values if value % 2 == 0]
        writer.rows(f"{shard.name}.parquet", SCHEMA, even)
        return Outcome(len(even), {"odd": len(values) - len(even)})


class FlakySquares(Squares):
    def make(self, shard: Shard, writer: ShardWriter, tick: Tick) -> Outcome:
        tried = self.run.file("numbers", "tried")
        if shard.name == "00001" and not tried.exists():
            tried.touch()
            raise ZeroDivisionError("the first attempt")
        return super().make(shard, writer, tick)


class Total(Stage):
    name, reads, sections = "total", ("squares",), ("seed",)

    def resources(self) -> Resources:
        return Resources(max_workers=1)

    def shards(self) -> Sequence[Shard]:
        return [Shard("all", {m.shard: m.digest(f"{m.shard}.parquet") for m in self.manifests_of("squares")})]

    def make(self, shard: Shard, writer: ShardWriter, tick: Tick) -> Outcome:
        if self.recipe.match.lowercase:
            raise SynthClipError("numbers.txt, row 3: not a number: mend it")
        names = [f"{manifest.shard}.parquet" for manifest in self.manifests_of("squares")]
        total = sum(sum(pq.read_table(self.run.file("squares", n))["value"].to_pylist()) for n in names)
        writer.rows("all.parquet", SCHEMA, [{"value": total}])
        return Outcome(1)

    def finish(self, manifests: Sequence[Manifest]) -> None:
        self.run.write_text("total.txt", manifests[0].digest("all.parquet"))
