"""Every model of a sweep, judged on the same held-out set and data sets, and what needs no training."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from PIL import Image

from synthclip.errors import SynthClipError
from synthclip.evaluation import own_datasets
from synthclip.evaluation.data import DataSet, identity, open_dataset
from synthclip.evaluation.encoder import Encoder
from synthclip.evaluation.evaluators import EVALUATORS, Settings, able_evaluators
from synthclip.evaluation.features import Features, digest_of_files
from synthclip.evaluation.results import Tables
from synthclip.evaluation.suites import plan_of_names
from synthclip.keys import digest
from synthclip.recipe import inspect_recipe
from synthclip.run.engine import Resources, Shard, Tick
from synthclip.run.stage import Stage
from synthclip.run.store import Outcome, RunDirectory, ShardWriter

if TYPE_CHECKING:
    from torch import Tensor

BASELINES = PIXELS, UNTRAINED = "pixels", "untrained"
_SIDE = 8
"""Of the pictures that the baseline `pixels` sees, in pixels."""


class Judge(Stage):
    """Figures of each model of a sweep, in the folder of the sweep; a shard is a model.

    `asked` says what there is to judge, and on what: see `questions`.
    """

    name: ClassVar[str] = "judged"
    reads = ()
    sections: ClassVar[tuple[str, ...]] = ("evaluation", "model")
    asked: Sequence[Shard] = ()

    def shards(self) -> Sequence[Shard]:
        return self.asked

    def resources(self) -> Resources:
        return Resources(gpus=1)

    def make(self, shard: Shard, writer: ShardWriter, tick: Tick) -> Outcome:
        model, tables, notes = shard.payload["model"], Tables(), []
        baseline = model in BASELINES
        features = Features(self._baseline(model, shard.payload["run"]) if baseline else model)
        for dataset, evaluators in self._datasets(shard.payload):
            for evaluator in evaluators:
                if model == PIXELS and evaluator != "linear_probe":
                    continue
                try:
                    found = EVALUATORS[evaluator](features, dataset, Settings())
                except SynthClipError as error:
                    notes.append(f"{dataset.name}, {evaluator}: {error}")
                else:
                    tables.add(dataset.name, found, features.checkpoint or None)
            tick(1)
        tables.write(writer, f"{shard.name}/")
        return Outcome(len(tables.results), notes={"failed": notes})

    def _datasets(self, payload: Any) -> Iterator[tuple[DataSet, Sequence[str]]]:
        for variant, path in payload["heldout"]:
            for dataset in own_datasets(RunDirectory(path), inspect_recipe(Path(path))):
                name = dataset.name if variant is None else f"{dataset.name} of {variant}"
                named = replace(dataset, name=name)
                yield named, able_evaluators(named)
        for name, evaluators in plan_of_names(payload["suite"]).items():
            opened = open_dataset(name, Path(payload["data"]))
            yield opened, evaluators or able_evaluators(opened)

    def _baseline(self, name: str, run: str) -> Encoder:
        from synthclip.models.load import as_loaded

        if name == PIXELS:
            return pixel_encoder()
        from synthclip.training.job import untrained

        return Encoder(*as_loaded(untrained(inspect_recipe(run))))


def questions(
    models: Mapping[str, tuple[str, Path]],
    heldout: Sequence[tuple[str | None, Path]],
    suite: Sequence[str],
    data: str | None,
) -> list[Shard]:
    """A shard for each of `models`: by name its run, or what baseline it is, and the run that this is one of.

    `heldout` are the runs whose held-out sets judge, each with the variant that its name says; None for the
    base.
    """
    root = Path(data or "").expanduser()
    same = {f"data set {name}": identity(name, root) for name in plan_of_names(suite)}
    for _, run in heldout:
        same[f"{run.name} evaluation"] = digest(json.dumps(inspect_recipe(run).section_results("evaluation")))
        for stage in ("concepts", "images"):
            found = RunDirectory(run).manifests(stage)
            files = [entry for one in found for entry in one.files if not entry.path.startswith("train/")]
            same[f"{run.name} {stage}"] = digest(
                *(text for file in files for text in (file.path, file.sha256))
            )
    judges = [(name, str(run)) for name, run in heldout]
    payload = {"heldout": judges, "suite": list(suite), "data": str(root)}
    shards = []
    for name, (model, run) in models.items():
        recipe = inspect_recipe(run)
        of = digest(model, str(recipe.training_seed), str(recipe.training.init))
        inputs = {**same, "model": of if model in BASELINES else digest_of_files(model) or ""}
        shards.append(Shard(name, inputs, {**payload, "model": model, "run": str(run)}, size=0))
    return shards


def pixel_encoder() -> Encoder:
    """Pictures as their 8 x 8 pixels: what a probe of them knows takes no model."""
    import torch

    def preprocess(image: Any) -> "Tensor":
        side, (width, height) = min(image.size), image.size
        left, top = (width - side) // 2, (height - side) // 2
        square = image.crop((left, top, left + side, top + side))
        small = np.asarray(square.resize((_SIDE, _SIDE), Image.Resampling.BOX), np.float32)
        return torch.from_numpy(small / 255).permute(2, 0, 1)

    class Pixels(torch.nn.Module):
        def encode_image(self, pixels_B3HW: "Tensor", normalize: bool) -> "Tensor":
            return pixels_B3HW.flatten(1)

    return Encoder(Pixels(), preprocess, lambda texts: torch.zeros(len(texts), 1, dtype=torch.int64))
