"""Judging CLIP models: zero-shot classification, retrieval, linear probe and few-shot, each with its
uncertainty and the level that guessing reaches. Nothing here trains a CLIP.

Here is the stage `eval`: the trained model on the run's own held-out captions and images, which are data sets
like any other.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from synthclip import keys, schema
from synthclip.evaluation.data import Classification, Composition, DataSet, Pictures, Retrieval, Split
from synthclip.evaluation.encoder import Encoder
from synthclip.evaluation.evaluators import EVALUATORS, Settings, able_evaluators, readable_pairs
from synthclip.evaluation.features import Features
from synthclip.evaluation.metrics import ranking
from synthclip.evaluation.results import Tables
from synthclip.imagegen.jobs import composition_pairs
from synthclip.recipe import Recipe
from synthclip.recipe.training import HELDOUT, EvaluationConfig
from synthclip.run.engine import Resources, Shard, Tick
from synthclip.run.stage import Stage
from synthclip.run.store import Manifest, Outcome, RunDirectory, ShardWriter
from synthclip.samples import images
from synthclip.schema import COMPOSITION, HELDOUT_PAINTER
from synthclip.textgen.concepts import read_bank

_PARTS = {"concepts": "", "images": f"{HELDOUT}/"}
"""The stages whose files make the held-out set, and how the paths of those files begin."""
UNTRAINED = "untrained.parquet"
"""The figures of the same architecture with random weights, where the recipe asks for them."""
_NEAREST_TEXTS = 8
_NEAREST_IMAGES = 5


class Eval(Stage):
    """Zero-shot over the whole concept bank, and retrieval, on captions and images kept from training."""

    name: ClassVar[str] = "eval"
    revision: ClassVar[int] = 2
    reads = (*_PARTS, "train")
    may_be_empty: ClassVar[bool] = True
    sections: ClassVar[tuple[str, ...]] = ("evaluation", "seed")

    def shards(self) -> Sequence[Shard]:
        inputs = heldout_inputs(self) | {"train": _digest_of(self.manifests_of("train"), "model/")}
        images, config = self.manifests_of("images"), self.recipe.images
        for split, wanted in ((HELDOUT_PAINTER, config.heldout_painter), (COMPOSITION, config.composition)):
            if wanted:
                inputs[split] = _digest_of(images, f"{split}/")
        count = sum(one.rows for one in images if not one.shard.startswith("train/"))
        return [Shard("all", inputs, {"checkpoint": inputs["train"][:16]}, size=max(1, count))]

    def resources(self) -> Resources:
        return Resources(gpus=1)

    def load(self) -> None:
        from synthclip.models.load import load_encoder

        loaded = load_encoder(self.run.file("train", "model"))
        self._encoder = Encoder(*loaded, batch_size=self.recipe.evaluation.batch_size)

    def make(self, shard: Shard, writer: ShardWriter, tick: Tick) -> Outcome:
        tables, counted = Tables(), 0

        def progress(done: int, total: int) -> None:
            nonlocal counted
            tick(done - counted)
            counted = done

        features = Features(self._encoder, progress=progress)
        nearest: list[dict[str, Any]] = []
        notes = {"heldout_captions": 0, "heldout_images": 0, "one_concept_images": 0}
        datasets = own_datasets(self.run, self.recipe)
        for dataset in datasets:
            _judge(features, dataset, tables, str(shard.payload["checkpoint"]))
            if dataset.name != HELDOUT:
                continue
            if isinstance(dataset, Retrieval):
                notes |= {"heldout_captions": len(dataset.texts), "heldout_images": len(dataset.pictures)}
                nearest = _nearest(features, dataset)
            elif isinstance(dataset, Classification):
                notes["one_concept_images"] = len(dataset.splits["test"].labels)
        for names in tables.unreadable.values():
            for name in names:
                writer.reject({"item": name}, "unreadable image")
        tables.write(writer)
        if self.recipe.evaluation.untrained:
            baseline, features = Tables(), Features(self._untrained())
            for dataset in datasets:
                _judge(features, dataset, baseline, "untrained")
            writer.rows(UNTRAINED, schema.EVAL_RESULT, baseline.results)
        writer.rows("nearest.parquet", schema.EVAL_NEAREST, nearest)
        return Outcome(len(tables.results), notes=notes)

    def _untrained(self) -> Encoder:
        import torch

        from synthclip.models.build import build_model
        from synthclip.models.load import as_loaded

        torch.manual_seed(keys.seed_of("weights", stream="untrained", seed=self.recipe.seed) >> 1)
        return Encoder(
            *as_loaded(build_model(self.recipe.model)), batch_size=self.recipe.evaluation.batch_size
        )


def _judge(features: Features, dataset: DataSet, tables: Tables, checkpoint: str) -> None:
    """All evaluations that a data set is fit for."""
    for evaluator in able_evaluators(dataset):
        tables.add(dataset.name, EVALUATORS[evaluator](features, dataset, Settings()), checkpoint)


def own_datasets(run: RunDirectory, recipe: Recipe) -> list[DataSet]:
    """The held-out set, and what else of a run there is to be judged on."""
    splits = [HELDOUT] + [HELDOUT_PAINTER] * (recipe.images.heldout_painter is not None)
    found: list[DataSet] = []
    for split in splits:
        found += open_heldout(run, recipe.evaluation, recipe.seed, split)
    if recipe.images.composition:
        found += open_composition(run, recipe)
    return found


def open_heldout(
    run: RunDirectory, config: EvaluationConfig, seed: int, split: str = HELDOUT
) -> tuple[Retrieval | Classification, ...]:
    """A run's held-out captions that have an image, at most `config.captions` of them, drawn by content.

    Two sets of the name of the split: the captions with all their images, and the images whose caption names
    exactly one concept, so that there is one right answer among the whole bank. The second is missing where
    no caption does; both are where the run holds no such image.
    """
    sidecars = schema.split_tables(run.stage("images"), split)
    ids = [schema.read_table(path, columns=["caption_id"])["caption_id"].to_numpy() for path in sidecars]
    drawn = _draw(np.unique(np.concatenate([np.empty(0, np.uint64), *ids])), config.captions, seed)
    if not len(drawn):
        return ()
    where = pc.field("caption_id").isin(drawn)
    columns = ["key", "caption_id", "text", "concept_ids"]
    rows = pa.concat_tables(
        schema.read_table(path, columns, schema=schema.IMAGE, filters=where) for path in sidecars
    )
    pictures = _pictures(sidecars, rows["key"].to_pylist(), where)
    _, first, text_of_image = np.unique(rows["caption_id"].to_numpy(), return_index=True, return_inverse=True)
    texts = tuple(rows["text"].take(first).to_pylist())
    pairs = np.stack([text_of_image, np.arange(len(rows))], axis=1)
    captions = Retrieval(split, pictures, texts, pairs)
    concept_ids = rows["concept_ids"].to_pylist()
    single = np.flatnonzero([len(concepts) == 1 for concepts in concept_ids])
    names = read_bank(run)
    if not len(single) or len(names) < 2:
        return (captions,)
    labels = np.array([concept_ids[image][0] for image in single], np.int64)
    test = Split(pictures.only(single), labels, text_of_image[single])
    return captions, Classification(split, tuple(names), config.templates, {"test": test})


def open_composition(run: RunDirectory, recipe: Recipe) -> tuple[Composition, ...]:
    """The pairs of captions of exchanged words whose images the run holds; none where it holds no such
    pair."""
    sidecars = schema.split_tables(run.stage("images"), COMPOSITION)
    rows = [row for path in sidecars for row in schema.read_table(path, ["key", "text"]).to_pylist()]
    number = {row["text"]: at for at, row in enumerate(rows)}
    pairs = [
        pair
        for pair in composition_pairs(recipe, read_bank(run))
        if {pair.caption, pair.exchanged} <= number.keys()
    ]
    if not pairs:
        return ()
    pictures = _pictures(sidecars, [row["key"] for row in rows])
    place_N2 = np.array([(number[pair.caption], number[pair.exchanged]) for pair in pairs], np.int64)
    kinds = tuple(pair.kind for pair in pairs)
    return (Composition(COMPOSITION, pictures, tuple(number), place_N2, place_N2, kinds),)


def _pictures(
    sidecars: Sequence[Path], image_keys: Sequence[str], where: pc.Expression | None = None
) -> Pictures:
    """The images of the rows of sidecars, whose keys are given."""
    return Pictures(
        image_keys,
        lambda: keys.digest(*image_keys),
        lambda: (row["jpeg"] for row in images(sidecars, ["key"], where)),
    )


def heldout_inputs(stage: Stage) -> dict[str, str]:
    """Digests that change when the held-out set that a stage reads does, by the stages that made it."""
    return {name: _digest_of(stage.manifests_of(name), start) for name, start in _PARTS.items()}


def _digest_of(manifests: Iterable[Manifest], start: str) -> str:
    """A digest that changes when the files whose paths begin with `start` do."""
    entries = [entry for manifest in manifests for entry in manifest.files if entry.path.startswith(start)]
    return keys.digest(*(part for entry in entries for part in (entry.path, entry.sha256)))


def _draw(ids: keys.U64, limit: int, seed: int) -> keys.U64:
    """The `limit` ids with the lowest draws, ascending: the same whatever the shards are."""
    order = np.argsort(keys.uniform(ids, stream="evaluation", seed=seed), kind="stable")
    return np.sort(ids[order[:limit]])


def _nearest(features: Features, dataset: Retrieval) -> list[dict[str, Any]]:
    """Rows of `schema.EVAL_NEAREST`. Captions are in the order of their ids, so the first are a fair draw."""
    encoded, texts_TD = features.images(dataset.pictures), features.texts(dataset.texts)
    pairs = readable_pairs(dataset, encoded)
    shown = np.unique(pairs[:, 0])[:_NEAREST_TEXTS]
    belongs = set(map(tuple, pairs.tolist()))
    rows = []
    ranked = ranking(texts_TD[shown], encoded.features, _NEAREST_IMAGES)
    for text, best in zip(shown.tolist(), ranked.tolist(), strict=True):
        for rank, image in enumerate(best, 1):
            rows.append(
                {
                    "text": dataset.texts[text],
                    "rank": rank,
                    "key": dataset.pictures.names[encoded.kept[image]],
                    "score": round(float(texts_TD[text] @ encoded.features[image]), 4),
                    "right": (text, image) in belongs,
                }
            )
    return rows
