"""Stage `eval`: the trained model on the run's own held-out captions and images."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from synthclip import schema
from synthclip.engine import Resources, Shard, Tick
from synthclip.evaluation.encoder import Encoder
from synthclip.evaluation.heldout import Heldout, read_heldout
from synthclip.evaluation.metrics import Measurement, ranking, retrieval, zero_shot
from synthclip.evaluation.results import class_rows, item_rows, result_row
from synthclip.keys import digest
from synthclip.stage import Maker, Stage
from synthclip.store import Outcome, ShardWriter

if TYPE_CHECKING:
    from torch import Tensor

DATASET = "heldout"
"""The name of the run's own held-out set in results."""

_RECALL_AT = (1, 5)
_NEAREST_TEXTS = 8
_NEAREST_IMAGES = 5


class Eval(Stage):
    """Zero-shot over the whole concept bank, and retrieval, on captions and images kept from training.

    Zero-shot takes the images whose caption names exactly one concept of the bank, so that there is one right
    answer; retrieval takes all. Where several images were painted from a caption, any of them counts.
    """

    name: ClassVar[str] = "eval"
    reads: ClassVar[tuple[str, ...]] = ("concepts", "balance", "images", "train")
    sections: ClassVar[tuple[str, ...]] = ("evaluation", "seed")

    def shards(self) -> Sequence[Shard]:
        of = {name: self.whole(name) for name in self.reads}
        wanted = {"concepts": "", "balance": "heldout/", "images": "heldout/", "train": "model/"}
        inputs = {}
        for stage, start in wanted.items():
            entries = [entry for whole in of[stage] for entry in whole.files if entry.path.startswith(start)]
            inputs[stage] = digest(*(part for entry in entries for part in (entry.path, entry.sha256)))
        images = sum(whole.rows for whole in of["images"] if whole.shard.startswith("heldout/"))
        return [Shard("all", inputs, {"checkpoint": inputs["train"][:16]}, size=max(1, images))]

    def resources(self) -> Resources:
        return Resources(gpus=1)

    def load(self) -> Maker:
        from synthclip.interop.load import load_model

        loaded = load_model(self.run.file("train", "model"))
        encoder = Encoder(*loaded, batch_size=self.recipe.evaluation.batch_size)

        def make(shard: Shard, writer: ShardWriter, tick: Tick) -> Outcome:
            return self._make(encoder, shard, writer, tick)

        return make

    def _make(self, encoder: Encoder, shard: Shard, writer: ShardWriter, tick: Tick) -> Outcome:
        config = self.recipe.evaluation
        heldout = read_heldout(self.run, config.captions, self.recipe.seed)
        measured: list[tuple[Measurement, Sequence[str]]] = []
        classes: list[dict[str, Any]] = []
        nearest: list[dict[str, Any]] = []
        notes = {"heldout_captions": len(heldout.texts), "heldout_images": len(heldout.image_keys)}
        unreadable = 0
        if heldout.image_keys:
            encoded = encoder.images(heldout.pictures(), tick)
            unreadable = len(encoded.unreadable)
            seen = heldout.only(encoded.kept)
            texts_TD = encoder.texts(seen.texts)
            measured += _retrieval(seen, texts_TD, encoded.features)
            nearest = _nearest(seen, texts_TD, encoded.features)
            labels, single = _labels(seen)
            notes["one_concept_images"] = len(single)
            if len(single):
                bank = pq.read_table(self.run.file("concepts", "00000.parquet"), columns=["text"])
                names = bank["text"].to_pylist()
                classifier_CD = encoder.classifier(names, config.templates)
                figures, ranked = zero_shot(encoded.features[single], labels, classifier_CD)
                measured += [(figure, [seen.image_keys[image] for image in single]) for figure in figures]
                classes += class_rows(DATASET, names, labels, ranked)
        checkpoint = str(shard.payload["checkpoint"])
        results = [result_row(DATASET, figure, checkpoint) for figure, _ in measured]
        items = (row for figure, names in measured for row in item_rows(DATASET, figure, names))
        writer.rows("results.parquet", schema.EVAL_RESULT, results)
        writer.rows("per_class.parquet", schema.EVAL_CLASS, classes)
        writer.rows("items.parquet", schema.EVAL_ITEM, items)
        writer.rows("nearest.parquet", schema.EVAL_NEAREST, nearest)
        return Outcome(len(results), {"unreadable image": unreadable} if unreadable else {}, notes)


def _labels(heldout: Heldout) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The images whose caption names exactly one concept: their concepts, and their positions."""
    one = np.array([ids[0] if len(ids) == 1 else -1 for ids in heldout.concept_ids], np.int64)
    of_image = one[heldout.text_of_image]
    single = np.flatnonzero(of_image >= 0)
    return of_image[single], single


def _retrieval(
    heldout: Heldout, texts_TD: "Tensor", images_ID: "Tensor"
) -> list[tuple[Measurement, Sequence[str]]]:
    images = np.arange(len(heldout.image_keys))
    pairs = np.stack([heldout.text_of_image, images], axis=1)
    by_text = retrieval("image_retrieval", texts_TD, images_ID, pairs, _RECALL_AT)
    by_image = retrieval("text_retrieval", images_ID, texts_TD, pairs[:, ::-1], _RECALL_AT)
    return [
        *((figure, heldout.texts) for figure in by_text),
        *((figure, heldout.image_keys) for figure in by_image),
    ]


def _nearest(heldout: Heldout, texts_TD: "Tensor", images_ID: "Tensor") -> list[dict[str, Any]]:
    """Rows of `schema.EVAL_NEAREST`. Captions are in the order of their ids, so the first are a fair draw."""
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
