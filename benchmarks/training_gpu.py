"""The trainer on a GPU, beside open_clip's own and the plain recipe.

    python benchmarks/training_gpu.py [--batch 1024 4096] [--steps 30] [--shards 'DIR/*.tar']
    python benchmarks/training_gpu.py --tiny   # the same on any machine, to see that it runs

ViT-B/16 at 224 px, the paper's, in bf16. Rows: open_clip's `train_one_epoch` and 77 tokens, not compiled; our
trainer on 77 tokens, then on captions of the length that shards of short captions have, not compiled and
compiled; the same fed from the tars given, decoded and cropped on the CPU. In memory, every step gets the
same pairs. Batches above 1,024 go through ours in micro-batches of 1,024, which compute each feature twice.
MFU counts the arithmetic of the tokens at hand, once, against the peak of the card's data sheet.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from synthclip.models.build import build_model, open_clip_config
from synthclip.recipe.training import ModelConfig, TextConfig, TrainingConfig, VisionConfig
from synthclip.samples import any_shards, files
from synthclip.training.checkpoint import Checkpoints
from synthclip.training.flops import devices_here, training_pair
from synthclip.training.loader import BadSamples, Batch, Loader
from synthclip.training.loop import Trainer, build_optimizer
from synthclip.training.order import Order

PAPER = ModelConfig(name="synthclip-vitb16")
TINY = ModelConfig(
    embed_dim=16,
    vision=VisionConfig(image_size_px=32, layers=1, width=32, head_width=16, patch_size_px=16),
    text=TextConfig(width=32, heads=2, layers=1),
)
TOKENS = 24
"""What the loader cuts captions of 15 words to."""
MICRO_BATCH = 1024


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, nargs="+", default=[1024])
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--warm", type=int, default=10, help="steps before the clock starts")
    parser.add_argument("--shards", help="WebDataset tars for the row that reads them")
    parser.add_argument("--threads", type=int, default=6, help="threads that decode")
    parser.add_argument("--tiny", action="store_true")
    asked = parser.parse_args()
    if asked.tiny:
        asked.batch, asked.steps, asked.warm = [16, 32], 3, 2
    elif not torch.cuda.is_available():
        parser.error("no GPU here: --tiny shows that it runs")
    for batch in asked.batch:
        Console(width=100).print(at(batch, TINY if asked.tiny else PAPER, asked))


def at(batch: int, model: ModelConfig, asked: argparse.Namespace) -> Table:
    whole, short = pairs(model, batch, 77), pairs(model, batch)
    compiled = not asked.tiny
    rows: list[tuple[str, Callable[[], float], int]] = [
        ("ours, 77 tokens", lambda: ours(model, asked, InMemory(whole, asked.warm), False), 77),
        (f"ours, {TOKENS} tokens", lambda: ours(model, asked, InMemory(short, asked.warm), False), TOKENS),
        (
            f"ours, {TOKENS} tokens, compiled",
            lambda: ours(model, asked, InMemory(short, asked.warm), compiled),
            TOKENS,
        ),
    ]
    if batch <= MICRO_BATCH:
        rows.insert(0, ("open_clip, 77 tokens", lambda: open_clips(model, whole, asked), 77))
    if asked.shards:
        shards = from_shards(model, batch, asked)
        read = Timed(shards, asked.warm, batch)
        rows.append(("ours, from shards, compiled", lambda: ours(model, asked, read, compiled), TOKENS))
    device = devices_here().device
    peak = None if device.name == "cpu" else device.peak("bf16")
    table = Table("", "pairs/s", "times the first", "MFU", "peak GiB", title=f"Batch {batch}, {device.name}")
    first = None
    for name, run, tokens in rows:
        rate = run()
        first = first or rate
        flops = rate * training_pair(model, TrainingConfig(), tokens, model.image_size_px)
        mfu = "-" if peak is None else f"{flops / peak:.1%}"
        gib = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0
        table.add_row(name, f"{rate:.1f}", f"{rate / first:.2f}", mfu, f"{gib:.1f}")
        print(f"{batch}: {name}: {rate:.1f} pairs/s, MFU {mfu}", flush=True)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
    return table


def pairs(model: ModelConfig, batch: int, tokens: int = TOKENS) -> Batch:
    draw = torch.Generator().manual_seed(0)
    size = model.vision.image_size_px
    ids = torch.randint(1, 40000, (batch, tokens), generator=draw)
    ids[:, -1] = 49407
    images = torch.randint(0, 256, (batch, size, size, 3), generator=draw, dtype=torch.uint8)
    if torch.cuda.is_available():
        images, ids = images.pin_memory(), ids.pin_memory()
    return Batch(images, ids, torch.arange(batch), torch.empty(batch, 0, dtype=torch.int64))


class Timed:
    """A loader that notes when the first steps are over."""

    def __init__(self, loader: Any, warm: int, batch_size: int) -> None:
        self._loader, self._warm, self.batch_size = loader, warm, batch_size
        self.bad: BadSamples = loader.bad
        self.pairs: list[int] = loader.pairs
        self.started = 0.0

    def batches(self, first: int, end: int) -> Generator[Batch]:
        for step, batch in enumerate(self._loader.batches(first, end), first):
            if step == self._warm:
                self.started = now()
            yield batch


class InMemory(Timed):
    def __init__(self, batch: Batch, warm: int) -> None:
        same = SimpleNamespace(
            bad=BadSamples(0), pairs=[0], batches=lambda first, end: [batch] * (end - first)
        )
        super().__init__(same, warm, len(batch.tokens))


def from_shards(model: ModelConfig, batch: int, asked: argparse.Namespace) -> Loader:
    source = any_shards(files.expand(asked.shards))
    return Loader(
        TrainingConfig(data_threads=asked.threads),
        open_clip_config(model),
        [source],
        Order([len(source)], [1.0], batch, 0),
        BadSamples(len(source)),
        steps=asked.warm + asked.steps,
        seed=0,
        pin_memory=torch.cuda.is_available(),
    )


def now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


class Unsaved(Checkpoints):
    def save(self, step: int, state: dict[str, Any]) -> None:
        pass


def ours(model: ModelConfig, asked: argparse.Namespace, loader: Any, compiled: bool) -> float:
    torch.manual_seed(0)
    config = TrainingConfig.model_validate(
        {
            "batch_size": loader.batch_size,
            "micro_batch": MICRO_BATCH,
            "precision": "bf16",
            "compile": compiled,
            "lr": 1e-6,
            "lr_end": 1e-6,
        }
    )
    with tempfile.TemporaryDirectory() as folder:
        Trainer(
            model=build_model(model),
            config=config,
            loader=loader,
            checkpoints=Unsaved(Path(folder), 1),
            device=torch.device("cuda" if torch.cuda.is_available() else "cpu"),
            steps=asked.warm + asked.steps,
            steps_per_epoch=asked.warm + asked.steps,
            seed=0,
            report=lambda rows, figures: None,
        ).fit()
    return float(loader.batch_size * asked.steps / (now() - loader.started))


def open_clips(model_config: ModelConfig, whole: Batch, asked: argparse.Namespace) -> float:
    """open_clip's model and loop as its command line sets them up for one GPU, in bf16 by autocast."""
    import open_clip
    from open_clip_train.params import parse_args
    from open_clip_train.train import train_one_epoch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    config = open_clip_config(model_config)["model_cfg"]
    model = open_clip.CLIP(**config, output_dict=True).to(device).train()
    args = parse_args(["--batch-size", str(len(whole.tokens)), "--precision", "amp_bf16"])
    args.device, args.rank, args.local_rank, args.world_size = device.type, 0, 0, 1
    args.distributed, args.distill, args.wandb, args.skip_scheduler = False, False, False, True
    optimizer = build_optimizer(model, TrainingConfig(lr=1e-6))
    batch_size = len(whole.tokens)
    images = torch.randn(batch_size, 3, *whole.images.shape[1:3])
    if device.type == "cuda":
        images = images.pin_memory()
    started = 0.0

    class Batches:
        num_batches = asked.warm + asked.steps
        num_samples = num_batches * batch_size

        def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
            nonlocal started
            for step in range(self.num_batches):
                if step == asked.warm:
                    started = now()
                yield images, whole.tokens

    data: Any = {"train": SimpleNamespace(dataloader=Batches(), set_epoch=lambda number: None)}
    train_one_epoch(model, data, open_clip.ClipLoss(), 0, optimizer, None, None, None, args)
    return float(batch_size * asked.steps / (now() - started))


if __name__ == "__main__":
    main()
