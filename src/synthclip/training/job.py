"""From a recipe and a run to a trainer, in the process that will train."""

import os
from collections.abc import Callable

import pyarrow.parquet as pq
import torch
from torch import nn

from synthclip.errors import SynthClipError
from synthclip.keys import seed_of
from synthclip.models.build import build_encode, build_model
from synthclip.recipe.training import ModelConfig, SourceConfig
from synthclip.run.engine import Shard
from synthclip.run.stage import Stage
from synthclip.samples import Source, any_shards, files, own_shards
from synthclip.training.checkpoint import Checkpoints
from synthclip.training.devices import devices_here
from synthclip.training.distributed import Group, join
from synthclip.training.flops import training_pair
from synthclip.training.loader import BadSamples, Loader
from synthclip.training.logs import Logs
from synthclip.training.loop import Report, Trainer
from synthclip.training.order import Order
from synthclip.training.resolution import check_tower, image_size
from synthclip.training.tables import Concatenated, open_csv, open_parquet
from synthclip.training.validation import Validation


def build_trainer(stage: Stage, shard: Shard, report: Report, stop_asked: Callable[[], bool]) -> Trainer:
    """A trainer for the train stage's shard. Under torchrun, one of the group's."""
    group, device = join()
    recipe, config = stage.recipe, stage.recipe.training
    if config.batch_size % group.world_size:
        raise SynthClipError(
            f"training.batch_size={config.batch_size} is no multiple of the {group.world_size} processes: "
            "change one of them"
        )
    if config.loss == "siglip" and recipe.model.logit_bias is None:
        raise SynthClipError("training.loss=siglip needs a bias: set model.logit_bias=-10")
    sources = [_open(source, stage, shard) for source in config.sources]
    sizes = [len(source) for source in sources]
    bad_rows = {where: reason for source in sources for where, reason in source.bad_rows.items()}
    order = Order(sizes, [source.weight for source in config.sources], config.batch_size, recipe.seed)
    torch.manual_seed(seed_of("weights", stream="init", seed=recipe.seed) >> 1)
    steps = max(1, int(config.epochs * order.steps_per_epoch))
    check_tower(recipe.model, config)
    loader = Loader(
        sources,
        order,
        build_encode(recipe.model),
        image_size=lambda step: image_size(step, steps, config, recipe.model.image_size_px),
        context_length=recipe.model.text.context_length,
        crop_scale=config.crop_scale,
        horizontal_flip=config.horizontal_flip,
        text_masking=config.text_masking,
        sub_captions=config.sub_captions,
        rare=_rare_concepts(stage),
        seed=recipe.seed,
        bad=BadSamples(int(config.max_bad_share * sum(sizes)), bad_rows),
        threads=_threads(config.data_threads, group),
        rank=group.rank,
        world_size=group.world_size,
        pin_memory=device.type == "cuda",
    )
    model = build_model(recipe.model)
    if config.init is not None:
        _start_from(config.init, model)
    return Trainer(
        model=model,
        config=config,
        loader=loader,
        checkpoints=Checkpoints(stage.partial(shard), config.keep_checkpoints),
        device=device,
        steps=steps,
        steps_per_epoch=order.steps_per_epoch,
        seed=recipe.seed,
        report=report,
        stop_asked=stop_asked,
        group=group,
        peak=_peak(recipe.model, config.precision, group) if device.type == "cuda" else None,
        validate=_validation(stage) if group.rank == 0 else None,
        log=Logs(config.loggers, stage.run, stage.fingerprint(shard)[:12]) if group.rank == 0 else None,
    )


def _open(config: SourceConfig, stage: Stage, shard: Shard) -> Source:
    if config.path is None:
        return own_shards([stage.run.file("images", table) for table in shard.payload["tables"]])
    paths = files.expand(config.path)
    if config.kind == "webdataset":
        return any_shards(paths, config.text_column or "caption")
    if config.kind == "csv":
        return Concatenated([open_csv(path, config.root) for path in paths])
    return Concatenated([open_parquet(path, config.text_column or "text", config.template) for path in paths])


def _validation(stage: Stage) -> Validation | None:
    return None if stage.recipe.training.eval.every_epochs is None else Validation(stage.recipe, stage.run)


def _threads(wanted: int | str, group: Group) -> int:
    cores = len(os.sched_getaffinity(0))
    return wanted if isinstance(wanted, int) else max(1, min(16, cores // group.world_size))


def _peak(model: ModelConfig, precision: str, group: Group) -> Callable[[int, int], float] | None:
    known = devices_here().device
    if known.name == "cpu":
        return None
    flops = group.world_size * known.peak(precision)
    return lambda tokens, image_size_px: flops / training_pair(model, tokens, image_size_px)


def _start_from(init: str, model: nn.Module) -> None:
    """Load weights of the same architecture. Raises SynthClipError with the names that do not fit."""
    from synthclip.models.load import load_model
    from synthclip.models.weights import differences

    given = load_model(init).model.state_dict()
    if told := differences(given, model.state_dict()):
        raise SynthClipError(
            f"training.init={init}: another architecture than the recipe's model: {told}: "
            "change model or training.init"
        )
    model.load_state_dict(given)


def _rare_concepts(stage: Stage) -> frozenset[int]:
    """The concepts of at most a given share of the selected captions; none where no masking is asked for."""
    share = stage.recipe.training.mask_false_negatives
    if share is None:
        return frozenset()
    path = stage.run.file("balance", "counts.parquet")
    try:
        counts = pq.read_table(path, columns=["concept_id", "selected"])
    except OSError:
        raise SynthClipError(
            f"training.mask_false_negatives needs {path}, which is not there: run `synthclip balance`, "
            "or leave it out"
        ) from None
    captions = sum(manifest.rows for manifest in stage.run.manifests("balance"))
    pairs = zip(counts["concept_id"].to_pylist(), counts["selected"].to_pylist(), strict=True)
    return frozenset(concept for concept, selected in pairs if selected <= share * captions)
