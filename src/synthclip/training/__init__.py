"""The train stage: a run's shards -> a CLIP in an open_clip folder, and its loss curve."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from synthclip.errors import SynthClipError
from synthclip.evaluation import heldout_inputs
from synthclip.evaluation.data import identity
from synthclip.evaluation.suites import open_suite, plan_of_names
from synthclip.keys import digest
from synthclip.models.load import local_path
from synthclip.recipe import Recipe
from synthclip.recipe.training import HELDOUT, OWN, TrainingConfig
from synthclip.run.engine import Resources, Shard, Tick
from synthclip.run.engine.worker import asked_to_stop
from synthclip.run.stage import Stage
from synthclip.run.store import Manifest, Outcome, RunDirectory, ShardWriter
from synthclip.samples import Concatenated, files
from synthclip.schema import EVAL_RESULT, EXCHANGED
from synthclip.textgen.concepts import listed_bank
from synthclip.training.order import Order, parts
from synthclip.training.tables import open_source

if TYPE_CHECKING:
    from synthclip.training.loop import Report

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

MADE_WITH = "recipe.json"
"""The recipe values that the model was trained with; `stage.json` may be of a later, failed command."""


Tables = Mapping[str, Mapping[str, Manifest]]
"""The sidecars of a run's own images for each kind of source in `OWN`, in order, and their manifests."""


def own_tables(recipe: Recipe, manifests: Iterable[Manifest]) -> Tables:
    """Those that training reads, of the manifests of the images stage."""
    splits = {"train": "run"}
    if any(source.kind == "exchanged" for source in recipe.training.sources):
        splits[EXCHANGED] = "exchanged"
    tables: dict[str, dict[str, Manifest]] = {kind: {} for kind in OWN}
    for manifest in manifests:
        if manifest.split in splits:
            tables[splits[manifest.split]][f"{manifest.shard}.parquet"] = manifest
    return tables


def open_sources(
    recipe: Recipe, run: RunDirectory, tables: Mapping[str, Iterable[str]]
) -> list[Concatenated]:
    """What the pairs of a training come from, in the recipe's order; `tables` are those of `own_tables`."""
    config = recipe.training
    own = {kind: [run.file("images", table) for table in named] for kind, named in tables.items()}
    return [
        open_source(source, own.get(source.kind, ()), config.share, recipe.seed) for source in config.sources
    ]


def build_order(recipe: Recipe, sizes: Sequence[int]) -> Order:
    """The order of the samples of all sources, which hold `sizes`."""
    weights, batch_size, twins = _mixing(recipe.training)
    return Order(sizes, weights, batch_size, recipe.training_seed, twins)


def _mixing(config: TrainingConfig) -> tuple[list[float], int, list[int]]:
    """The weights of the sources, the size of a batch, and which sources hold pairs."""
    twins = [number for number, source in enumerate(config.sources) if source.kind == "exchanged"]
    return [source.weight for source in config.sources], config.batch_size, twins


class Train(Stage):
    name = "train"
    revision = 4
    reads: tuple[str, ...] = ("images",)
    sections = ("seed", "model", "training")

    def __init__(self, recipe: Recipe, run: RunDirectory) -> None:
        super().__init__(recipe, run)
        config = recipe.training
        judged = config.eval.every_epochs is not None and HELDOUT in config.eval.suite
        if not judged and all(source.kind not in OWN for source in config.sources):
            self.reads = ()
        if config.teacher is not None:
            self.reads += ("teacher",)

    def shards(self) -> Sequence[Shard]:
        config = self.recipe.training
        images = self.manifests_of("images") if "images" in self.reads else self.run.manifests("images")
        tables = own_tables(self.recipe, images)
        inputs = {table: one.digest(table) for named in tables.values() for table, one in named.items()}
        inputs |= self._outside() | self._evaluated()
        if config.teacher is not None:
            for manifest in self.manifests_of("teacher"):
                inputs |= {f"teacher/{entry.path}": entry.sha256 for entry in manifest.files}
        if config.concept_prompts:
            for manifest in self.manifests_of("concepts"):
                inputs |= {f"concepts/{entry.path}": entry.sha256 for entry in manifest.files}
        size = 0  # where another source comes first, only its index can tell
        if config.sources[0].kind == "run":
            pairs = int(config.share * sum(manifest.rows for manifest in tables["run"].values()))
            part = parts(*_mixing(config))[0]
            size = int(config.epochs * (pairs // max(1, part))) * config.batch_size
        named = {kind: list(of_kind) for kind, of_kind in tables.items()}
        return [Shard("all", inputs, {"tables": named}, size=size)]

    def steps_per_epoch(self) -> int:
        """How many batches a pass over the first source takes. The images stage has to be there."""
        tables = own_tables(self.recipe, self.run.manifests("images"))
        sizes = [len(source) for source in open_sources(self.recipe, self.run, tables)]
        return build_order(self.recipe, sizes).steps_per_epoch

    def _outside(self) -> dict[str, str]:
        """What is read from outside the run, and digests that change when it does."""
        config = self.recipe.training
        inputs: dict[str, str] = {}
        for source in config.sources:
            if source.path is not None:
                inputs |= {path: files.identity(path) for path in files.expand(source.path)}
        if config.init is not None and (init := local_path(config.init)).exists():
            found = [path for path in sorted(init.rglob("*")) if path.is_file()]
            inputs |= {str(path): files.identity(str(path)) for path in found or [init]}
        return inputs

    def _evaluated(self) -> dict[str, str]:
        """What evaluation in training follows from, where there is any."""
        config = self.recipe.training.eval
        if config.every_epochs is None:
            return {}
        inputs: dict[str, str] = {}
        if HELDOUT in config.suite:
            how = json.dumps(self.recipe.section_results("evaluation"), sort_keys=True)
            inputs = {f"heldout {stage}": known for stage, known in heldout_inputs(self).items()}
            inputs["heldout evaluation"] = digest(how)
        for name in plan_of_names(config.data_sets, config.evaluators):
            inputs[f"data set {name}"] = identity(name, Path(config.data or "").expanduser())
        return inputs

    def check(self) -> None:
        """Refuse files and data sets that are not there, and a batch above all pairs there can be."""
        self._outside()
        config = self.recipe.training
        if config.eval.every_epochs is not None and config.eval.data_sets:
            open_suite(",".join(config.eval.data_sets), Path(config.eval.data or "").expanduser())
        if any(one.kind == "exchanged" for one in config.sources) and not self.recipe.images.exchanged:
            raise SynthClipError(
                "training.sources: a source of kind exchanged needs images.exchanged, the number of its pairs"
            )
        names = listed_bank(self.recipe) if self.recipe.images.imported is None else None
        if not names or any(source.kind not in OWN for source in config.sources):
            return
        images = self.recipe.images
        captions, target = len(names) * self.recipe.captions.per_concept, self.recipe.balance.target
        pairs = int(min(captions, target or captions) * images.per_caption * config.share)
        of = f" x training.share={config.share:g}" if config.share < 1 else ""
        can = {
            "run": (pairs, f"{len(names)} concepts x captions.per_concept x images.per_caption{of}"),
            "exchanged": (
                2 * images.exchanged * images.per_caption,
                "2 x images.exchanged x images.per_caption",
            ),
        }
        for source, part in zip(config.sources, parts(*_mixing(config)), strict=True):
            most, how = can[source.kind]
            if part > most:
                raise SynthClipError(
                    f"training.batch_size={config.batch_size} takes {part} pairs of the source "
                    f"{source.kind!r}, and this recipe can make {most} ({how}): lower it"
                )

    def resources(self) -> Resources:
        config = self.recipe.training
        return Resources(gpus=config.processes, nodes=config.nodes, keep_memory=True)

    def make(self, shard: Shard, writer: ShardWriter, tick: Tick) -> Outcome:
        from synthclip.models.build import LeanCLIP, save_open_clip
        from synthclip.training.checkpoint import Checkpoints

        recipe = self.recipe
        self._train(shard, lambda rows, figures: tick(rows, **figures))
        state = Checkpoints(self.partial(shard), keep=1).latest()
        if state is None or state["step"] < state["steps"]:
            raise SynthClipError(
                f"{self.run.path}: training was stopped and its state saved: run the same command to resume"
            )
        model = LeanCLIP(json.loads(state["architecture"]))
        best = state["best"]
        model.load_state_dict(best["weights"] if best else state["average"] or state["model"])
        save_open_clip(model, writer.path("model/open_clip_config.json").parent)
        columns = state["curve"].T.numpy()
        arrays = [pa.array(column).cast(kind) for column, kind in zip(columns, CURVE.types, strict=True)]
        with writer.table("curve.parquet", CURVE) as out:
            out.write_table(pa.table(arrays, CURVE))
        made_with = json.dumps(self.values, indent=1, sort_keys=True, ensure_ascii=False)
        writer.path(MADE_WITH).write_text(made_with + "\n", encoding="utf-8")
        if state["evaluated"]:
            writer.rows("figures.parquet", EVAL_RESULT, state["evaluated"])
        notes = {"steps": state["steps"], "final_loss": round(float(state["curve"][-1, 2]), 6)}
        notes["pairs"] = state.get("pairs")  # of each source
        if best:
            notes |= {"best_step": best["step"], recipe.training.eval.metric: round(best["value"], 6)}
        for name, reason in state["bad"].items():
            writer.reject({"item": name}, reason)
        for _ in range(state["skipped"]):
            writer.reject({"item": "step"}, "step with a loss that is not finite")
        return Outcome(state["steps"] * recipe.training.batch_size, notes=notes)

    def _train(self, shard: Shard, report: "Report") -> None:
        """Train up to the last step, or until asked to stop; either way a checkpoint holds all."""
        config = self.recipe.training
        if config.nodes * config.processes > 1:
            from synthclip.training.job import torchrun

            torchrun(self.run.path, config.nodes, config.processes, report)
            return
        from synthclip.training.job import build_trainer

        with asked_to_stop() as stop:
            build_trainer(self, shard, report, stop).fit()
