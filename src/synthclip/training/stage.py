"""The train stage: a run's shards -> a CLIP in an open_clip folder, and its loss curve."""

from collections import Counter
from collections.abc import Sequence

import pyarrow as pa

from synthclip.engine import Resources, Shard, Tick
from synthclip.errors import SynthClipError
from synthclip.stage import Maker, Stage
from synthclip.store import Outcome, ShardWriter

CURVE = pa.schema(
    [
        ("step", pa.int64()),
        ("samples_seen", pa.int64()),
        ("loss", pa.float64()),
        ("lr", pa.float64()),
        ("samples_per_s", pa.float64()),
        ("data_wait", pa.float64()),
    ]
)
"""`curve.parquet`, one row a step; `data_wait` is the share of the wall time spent waiting for data."""


class Train(Stage):
    name = "train"
    reads = ("images",)
    sections = ("seed", "model", "training")

    def shards(self) -> Sequence[Shard]:
        tables, rows = {}, 0
        for manifest in self.whole("images"):
            if manifest.shard.startswith("train/"):
                table = f"{manifest.shard}.parquet"
                tables[table] = manifest.digest(table)
                rows += manifest.rows
        config = self.recipe.training
        steps = int(config.epochs * (rows // config.batch_size))
        return [Shard("all", tables, size=max(1, steps * config.batch_size))]

    def resources(self) -> Resources:
        return Resources(gpus=1)

    def load(self) -> Maker:
        return self._make

    def _make(self, shard: Shard, writer: ShardWriter, tick: Tick) -> Outcome:
        from synthclip.training.job import asked_to_stop, build_trainer
        from synthclip.training.model import save_open_clip

        with asked_to_stop() as stop:
            trainer = build_trainer(self, shard, lambda rows, figures: tick(rows, **figures), stop)
            if not trainer.fit():
                raise SynthClipError(
                    f"{self.run.path}: training was asked to stop and has saved its state: "
                    "the same command goes on"
                )
        save_open_clip(trainer.model, self.recipe.model, writer.path("model/open_clip_config.json").parent)
        columns = zip(*trainer.curve, strict=True)
        arrays = [pa.array(column, kind) for column, kind in zip(columns, CURVE.types, strict=True)]
        with writer.table("curve.parquet", CURVE) as out:
            out.write_table(pa.table(arrays, CURVE))
        return Outcome(
            rows=trainer.steps * self.recipe.training.batch_size,
            rejected=Counter(trainer.loader.bad.reasons.values()),
            notes={"steps": trainer.steps, "final_loss": round(trainer.curve[-1][2], 6)},
        )
