"""Stage `eval`: the trained model on the run's own held-out captions and images."""

from collections.abc import Sequence
from typing import Any, ClassVar

from synthclip import schema
from synthclip.evaluation.encoder import Encoder
from synthclip.evaluation.heldout import PARTS, Judged, digest_of, judge, read_heldout
from synthclip.evaluation.metrics import Measurement, ranking
from synthclip.evaluation.results import class_rows, item_rows, result_row
from synthclip.recipe.training import HELDOUT
from synthclip.run.engine import Resources, Shard, Tick
from synthclip.run.stage import Stage
from synthclip.run.store import Outcome, ShardWriter
from synthclip.textgen.concepts import read_bank

_NEAREST_TEXTS = 8
_NEAREST_IMAGES = 5


class Eval(Stage):
    """Zero-shot over the whole concept bank, and retrieval, on captions and images kept from training."""

    name: ClassVar[str] = "eval"
    reads: ClassVar[tuple[str, ...]] = ("concepts", "balance", "images", "train")
    sections: ClassVar[tuple[str, ...]] = ("evaluation", "seed")

    def shards(self) -> Sequence[Shard]:
        of = {name: self.manifests_of(name) for name in self.reads}
        inputs = {stage: digest_of(of[stage], start) for stage, start in PARTS.items()}
        inputs["train"] = digest_of(of["train"], "model/")
        images = sum(whole.rows for whole in of["images"] if whole.shard.startswith("heldout/"))
        return [Shard("all", inputs, {"checkpoint": inputs["train"][:16]}, size=max(1, images))]

    def resources(self) -> Resources:
        return Resources(gpus=1)

    def load(self) -> None:
        from synthclip.models.load import load_model

        loaded = load_model(self.run.file("train", "model"))
        self._encoder = Encoder(*loaded, batch_size=self.recipe.evaluation.batch_size)

    def make(self, shard: Shard, writer: ShardWriter, tick: Tick) -> Outcome:
        config = self.recipe.evaluation
        heldout = read_heldout(self.run, config.captions, self.recipe.seed)
        notes = {"heldout_captions": len(heldout.texts), "heldout_images": len(heldout.image_keys)}
        measured: list[tuple[Measurement, Sequence[str]]] = []
        classes: list[dict[str, Any]] = []
        nearest: list[dict[str, Any]] = []
        unreadable = 0
        if heldout.image_keys:
            names = read_bank(self.run)
            judged = judge(self._encoder, heldout, names, config.templates, tick)
            measured, nearest, unreadable = judged.figures, _nearest(judged), judged.unreadable
            notes["one_concept_images"] = len(judged.labels)
            if len(judged.labels):
                classes += class_rows(HELDOUT, names, judged.labels, judged.ranked)
        checkpoint = str(shard.payload["checkpoint"])
        results = [result_row(HELDOUT, figure, checkpoint) for figure, _ in measured]
        items = (row for figure, names in measured for row in item_rows(HELDOUT, figure, names))
        writer.rows("results.parquet", schema.EVAL_RESULT, results)
        writer.rows("per_class.parquet", schema.EVAL_CLASS, classes)
        writer.rows("items.parquet", schema.EVAL_ITEM, items)
        writer.rows("nearest.parquet", schema.EVAL_NEAREST, nearest)
        return Outcome(len(results), {"unreadable image": unreadable} if unreadable else {}, notes)


def _nearest(judged: Judged) -> list[dict[str, Any]]:
    """Rows of `schema.EVAL_NEAREST`. Captions are in the order of their ids, so the first are a fair draw."""
    heldout, texts_TD, images_ID = judged.seen, judged.texts_TD, judged.images_ID
    rows = []
    ranked = ranking(texts_TD[:_NEAREST_TEXTS], images_ID, _NEAREST_IMAGES)
    for text, images in enumerate(ranked.tolist()):
        for rank, image in enumerate(images, 1):
            rows.append(
                {
                    "text": heldout.texts[text],
                    "rank": rank,
                    "key": heldout.image_keys[image],
                    "score": round(float(texts_TD[text] @ images_ID[image]), 4),
                    "right": bool(heldout.text_of_image[image] == text),
                }
            )
    return rows
