"""From a recipe and a run to a trainer, in the process that will train."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator

import torch

from synthclip.engine import Shard
from synthclip.errors import SynthClipError
from synthclip.keys import seed_of
from synthclip.stage import Stage
from synthclip.training.checkpoint import Checkpoints
from synthclip.training.loader import BadSamples, Loader
from synthclip.training.loop import Report, Trainer
from synthclip.training.model import build_encode, build_model
from synthclip.training.order import Order
from synthclip.training.sources import own_shards


def build_trainer(stage: Stage, shard: Shard, report: Report, stop_asked: Callable[[], bool]) -> Trainer:
    """A trainer for the train stage's shard, on the GPU where there is one."""
    recipe, config = stage.recipe, stage.recipe.training
    if not shard.inputs:
        raise SynthClipError(f"{stage.run.path}: no images to train on: the train split is empty")
    source = own_shards(stage.run, sorted(shard.inputs))
    order = Order([len(source)], [1.0], config.batch_size, recipe.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    cores = len(os.sched_getaffinity(0))
    torch.manual_seed(seed_of("weights", stream="init", seed=recipe.seed) >> 1)
    loader = Loader(
        [source],
        order,
        build_encode(recipe.model),
        image_size=recipe.model.vision.image_size_px,
        context_length=recipe.model.text.context_length,
        crop_scale=config.crop_scale,
        seed=recipe.seed,
        bad=BadSamples(int(config.max_bad_share * len(source))),
        threads=min(cores, 16) if config.data_threads == "auto" else config.data_threads,
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
    )


@contextlib.contextmanager
def asked_to_stop() -> Iterator[Callable[[], bool]]:
    """Inside, SIGTERM asks for a stop instead of killing; the function given tells whether it came."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return
    before = signal.signal(signal.SIGTERM, lambda *_: asked.set())
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGTERM, before)
