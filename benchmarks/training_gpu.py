"""The trainer on a GPU, beside open_clip's own and the plain recipe.

    python benchmarks/training_gpu.py [--batch 1024] [--steps 30] [--shards 'DIR/*.tar']
    python benchmarks/training_gpu.py --tiny   # the same on any machine, to see that it runs

ViT-B/16 at 224 px, the paper's. Rows: open_clip's `train_one_epoch` in bf16, not compiled, its model and 77
tokens; our trainer by the plain recipe (fp16, not compiled); our trainer in bf16, compiled; the same fed from
the tars given, decoded and cropped on the CPU. In memory, every step gets the same pairs, with captions of
the length that shards of short captions have. MFU counts the arithmetic of 77 tokens for open_clip and of the
tokens at hand for ours, against the peak of the card's data sheet.
"""

import argparse
import tempfile
import time
from collections.abc import Generator, Iterator
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


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--warm", type=int, default=10, help="steps before the clock starts")
    parser.add_argument("--shards", help="WebDataset tars for the row that reads them")
    parser.add_argument("--threads", type=int, default=16, help="threads that decode")
    parser.add_argument("--tiny", action="store_true")
    asked = parser.parse_args()
    if asked.tiny:
        asked.batch, asked.steps, asked.warm = 16, 3, 2
    elif not torch.cuda.is_available():
        parser.error("no GPU here: --tiny shows that it runs")
    model = TINY if asked.tiny else PAPER
    memory = InMemory(pairs(model, asked.batch), asked.warm)
    rows: list[tuple[str, Any, int]] = [
        ("open_clip, bf16", lambda: open_clips(model, asked), 77),
        ("ours, fp16, plain", lambda: ours(model, asked, memory, "fp16", False), TOKENS),
        ("ours, bf16, compiled", lambda: ours(model, asked, memory, "bf16", not asked.tiny), TOKENS),
    ]
    if asked.shards:
        shards = Timed(from_shards(model, asked), asked.warm)
        rows.append(("ours, from shards", lambda: ours(model, asked, shards, "bf16", not asked.tiny), TOKENS))
    device = devices_here().device
    peak = None if device.name == "cpu" else device.peak("bf16")
    table = Table(
        "", "pairs/s", "times the first", "MFU", "peak GiB", title=f"Batch {asked.batch}, {device.name}"
    )
    first = None
    for name, run, tokens in rows:
        rate = run()
        first = first or rate
        mfu = (
            "-" if peak is None else f"{rate * training_pair(model, tokens, model.image_size_px) / peak:.1%}"
        )
        gib = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0
        table.add_row(name, f"{rate:.1f}", f"{rate / first:.2f}", mfu, f"{gib:.1f}")
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
    Console(width=100).print(table)


def pairs(model: ModelConfig, batch: int, tokens: int = TOKENS) -> Batch:
    draw = torch.Generator().manual_seed(0)
    size = model.vision.image_size_px
    ids = torch.randint(1, 40000, (batch, tokens), generator=draw)
    ids[:, -1] = 49407
    images = torch.randint(0, 256, (batch, size, size, 3), generator=draw, dtype=torch.uint8)
    if torch.cuda.is_available():
        images = images.pin_memory()
    return Batch(images, ids, torch.arange(batch), torch.empty(batch, 0, dtype=torch.int64))


class Timed:
    """A loader that notes when the first steps are over."""

    def __init__(self, loader: Any, warm: int) -> None:
        self._loader, self._warm = loader, warm
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
        super().__init__(same, warm)


def from_shards(model: ModelConfig, asked: argparse.Namespace) -> Loader:
    source = any_shards(files.expand(asked.shards))
    return Loader(
        TrainingConfig(data_threads=asked.threads),
        open_clip_config(model),
        [source],
        Order([len(source)], [1.0], asked.batch, 0),
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


def ours(model: ModelConfig, asked: argparse.Namespace, loader: Any, precision: str, compiled: bool) -> float:
    torch.manual_seed(0)
    config = TrainingConfig.model_validate(
        {"batch_size": asked.batch, "precision": precision, "compile": compiled, "lr": 1e-6, "lr_end": 1e-6}
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
    return float(asked.batch * asked.steps / (now() - loader.started))


def open_clips(model_config: ModelConfig, asked: argparse.Namespace) -> float:
    """open_clip's model and loop as its command line sets them up for one GPU, in bf16 by autocast."""
    import open_clip
    from open_clip_train.params import parse_args
    from open_clip_train.train import train_one_epoch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    config = open_clip_config(model_config)["model_cfg"]
    model = open_clip.CLIP(**config, output_dict=True).to(device).train()
    args = parse_args(["--batch-size", str(asked.batch), "--precision", "amp_bf16"])
    args.device, args.rank, args.local_rank, args.world_size = device.type, 0, 0, 1
    args.distributed, args.distill, args.wandb, args.skip_scheduler = False, False, False, True
    optimizer = build_optimizer(model, TrainingConfig(lr=1e-6))
    whole = pairs(model_config, asked.batch, 77)
    images = torch.randn(asked.batch, 3, *whole.images.shape[1:3])
    if device.type == "cuda":
        images = images.pin_memory()
    started = 0.0

    class Batches:
        num_batches = asked.warm + asked.steps
        num_samples = num_batches * asked.batch

        def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
            nonlocal started
            for step in range(self.num_batches):
                if step == asked.warm:
                    started = now()
                yield images, whole.tokens

    data: Any = {"train": SimpleNamespace(dataloader=Batches(), set_epoch=lambda number: None)}
    train_one_epoch(model, data, open_clip.ClipLoss(), 0, optimizer, None, None, None, args)
    return float(asked.batch * asked.steps / (now() - started))


if __name__ == "__main__":
    main()
