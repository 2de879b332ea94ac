"""From a recipe and a run to a trainer, in the process that will train."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator

import pyarrow.parquet as pq
import torch

from synthclip.engine import Shard
from synthclip.errors import SynthClipError
from synthclip.keys import seed_of
from synthclip.stage import Stage
from synthclip.training.checkpoint import Checkpoints
from synthclip.training.distributed import Group, join
from synthclip.training.loader import BadSamples, Loader
from synthclip.training.loop import Report, Trainer
from synthclip.training.model import build_encode, build_model
from synthclip.training.order import Order
from synthclip.training.sources import own_shards


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
    source = own_shards(stage.run, sorted(shard.inputs))
    order = Order([len(source)], [1.0], config.batch_size, recipe.seed)
    torch.manual_seed(seed_of("weights", stream="init", seed=recipe.seed) >> 1)
    loader = Loader(
        [source],
        order,
        build_encode(recipe.model),
        image_size=recipe.model.vision.image_size_px,
        context_length=recipe.model.text.context_length,
        crop_scale=config.crop_scale,
        text_masking=config.text_masking,
        rare=_rare_concepts(stage),
        seed=recipe.seed,
        bad=BadSamples(int(config.max_bad_share * len(source))),
        threads=_threads(config.data_threads, group),
        rank=group.rank,
        world_size=group.world_size,
        pin_memory=device.type == "cuda",
    )
    return Trainer(
        model=build_model(recipe.model),
        config=config,
        loader=loader,
        checkpoints=Checkpoints(stage.partial(shard), config.keep_checkpoints),
        device=device,
        steps=max(1, int(config.epochs * order.steps_per_epoch)),
        steps_per_epoch=order.steps_per_epoch,
        seed=recipe.seed,
        report=report,
        stop_asked=stop_asked,
        group=group,
    )


def _threads(wanted: int | str, group: Group) -> int:
    cores = len(os.sched_getaffinity(0))
    return wanted if isinstance(wanted, int) else max(1, min(16, cores // group.world_size))


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


@contextlib.contextmanager
def asked_to_stop(then: Callable[[], None] = lambda: None) -> Iterator[Callable[[], bool]]:
    """Inside, SIGTERM asks for a stop instead of killing: `then` is called, the function given says yes."""
    asked = threading.Event()

    def handle(*_: object) -> None:
        asked.set()
        then()

    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return
    before = signal.signal(signal.SIGTERM, handle)
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGTERM, before)
