"""Training beside what one would use instead: the loader beside webdataset with Pillow and torchvision, the
trainer beside open_clip's own.

    python benchmarks/training.py loader [--images 1000 2000] [--px 256 512]
    python benchmarks/training.py trainer [--batch 64 128 256] [--steps 2]

Loader: JPEGs (of 256 px 12 kB each, chroma at half resolution) in a tar to 224 px random crops. Ours gives
uint8 and tokens, to be normalised on the device; theirs gives normalised floats and no tokens; `decode and
crop` is what simplejpeg and OpenCV take with the bytes already in memory, in the loader's way.

Trainer: a ViT-Ti/4 at 32 px with a text tower of the same size, float32, the captions "a photo of a
{class}."; `77 tokens` hands both the same tensors, `trimmed` is what our loader makes of such short captions.

Times are CPU seconds of one thread, so that whatever else runs on the machine changes them little; every row
is a process of its own, and so is its peak memory.
"""

import argparse
import contextlib
import io
import itertools
import json
import os
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import simplejpeg
import torch
from rich.console import Console
from rich.table import Table

from synthclip.models.build import IMAGE_MEAN, IMAGE_STD, build_encode, build_model, open_clip_config
from synthclip.recipe.training import ModelConfig, TextConfig, TrainingConfig, VisionConfig
from synthclip.run.engine.worker import memory_settings
from synthclip.samples import any_shards
from synthclip.training.augment import DRAWS, random_crop
from synthclip.training.checkpoint import Checkpoints
from synthclip.training.loader import BadSamples, Batch, Loader
from synthclip.training.loop import Trainer
from synthclip.training.order import Order

MODEL = ModelConfig(
    embed_dim=192,
    vision=VisionConfig(image_size_px=32, layers=12, width=192, head_width=64, patch_size_px=4),
    text=TextConfig(context_length=77, width=192, heads=3, layers=12),
)
WARM = 10
"""Batches that the loader makes before it is measured, and is ready to make afterwards."""
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["loader", "trainer"])
    parser.add_argument("--images", type=int, nargs="+", default=[1000, 2000])
    parser.add_argument("--px", type=int, nargs="+", default=[256, 512])
    parser.add_argument("--batch", type=int, nargs="+", default=[64, 128, 256])
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        print(json.dumps(ONE[asked.one](asked)))
    elif asked.what == "loader":
        for px in asked.px:
            names = ["webdataset", "loader", "decode and crop"]
            table(f"Loader, {px} px images a CPU second", names, "images", asked.images, ["--px", str(px)])
    else:
        names = ["open_clip 77 tokens", "trainer 77 tokens", "trainer trimmed"]
        steps = ["--steps", str(asked.steps)]
        table("Trainer, pairs a CPU second", names, "batch", asked.batch, steps)


def table(title: str, names: list[str], option: str, sizes: list[int], more: list[str]) -> None:
    out = Table("", option, "per CPU second", "times the first", "peak MiB", title=title)
    what = "loader" if option == "images" else "trainer"
    for size in sizes:
        base = None
        for name in names:
            command = [sys.executable, __file__, what, f"--{option}", str(size), "--one", name, *more]
            ours = memory_settings(not name.startswith(("open_clip", "webdataset")))  # as a worker has them
            environment = {**os.environ, **ours, "OMP_NUM_THREADS": "1"}
            done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
            rate, peak = json.loads(done.stdout.splitlines()[-1])
            base = base or rate
            out.add_row(name, str(size), f"{rate:.1f}", f"{rate / base:.2f}", f"{peak:.0f}")
    Console(width=100).print(out)


def measured(samples: int, started: float) -> tuple[float, float]:
    """Samples a CPU second since `started`, and the process's peak memory in MiB."""
    rate = samples / (time.process_time() - started)
    return rate, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def shard(folder: Path, images: int, px: int) -> Path:
    """A tar of so many smooth JPEGs, a hundred different ones, with captions."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:px, 0:px] * (256 / px)
    jpegs = []
    for _ in range(100):
        a, b, c = rng.uniform(5, 60, 3)
        waves = np.stack([np.sin(x / a), np.cos(y / b), np.sin((x + y) / c)], axis=-1)
        pixels = (127 + 100 * waves + rng.normal(0, 3, waves.shape)).clip(0, 255).astype(np.uint8)
        jpegs.append(simplejpeg.encode_jpeg(pixels, 90, colorsubsampling="420"))
    path = folder / "00000.tar"
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for number in range(images):
            caption = f"A photo of a {CLASSES[number % 10]}, number {number}."
            for kind, content in (("jpg", jpegs[number % 100]), ("txt", caption.encode())):
                entry = tarfile.TarInfo(f"{number:06d}.{kind}")
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    return path


def our_loader(images: int, px: int) -> tuple[float, float]:
    with tempfile.TemporaryDirectory() as folder:
        source = any_shards([str(shard(Path(folder), images, px))])
        loader = Loader(
            TrainingConfig(data_threads=1),
            open_clip_config(MODEL.model_copy(update={"vision": VisionConfig(image_size_px=224)})),
            [source],
            Order([len(source)], [1.0], 100, 0),
            BadSamples(0),
            steps=images // 100 + 2 * WARM,
            seed=0,
        )
        batches = loader.batches(0, images // 100 + 2 * WARM)
        with contextlib.closing(batches):
            for _ in itertools.islice(batches, WARM):  # imports and first allocations
                pass
            started = time.process_time()
            seen = sum(len(made.images) for made in itertools.islice(batches, images // 100))
            return measured(seen, started)


def decode_and_crop(images: int, px: int) -> tuple[float, float]:
    with tempfile.TemporaryDirectory() as folder:
        source = any_shards([str(shard(Path(folder), images, px))])
        files = [source.read(index).image for index in range(images)]
    out = np.empty((100, 224, 224, 3), dtype=np.uint8)
    draws = np.random.default_rng(0).random((images, DRAWS)).tolist()
    for warm in (True, False):
        started = time.process_time()
        for number in range(400 if warm else images):
            random_crop(files[number], (0.5, 1.0), draws[number], out[number % 100])
    return measured(images, started)


def webdataset_loader(images: int, px: int) -> tuple[float, float]:
    import webdataset as wds
    from torchvision import transforms

    crop = transforms.Compose(
        [
            transforms.RandomResizedCrop(224, scale=(0.5, 1.0)),
            transforms.ToTensor(),
            transforms.Normalize(IMAGE_MEAN, IMAGE_STD),
        ]
    )
    with tempfile.TemporaryDirectory() as folder:
        path = str(shard(Path(folder), images, px))
        pipeline = wds.WebDataset(path, shardshuffle=False, empty_check=False).shuffle(500).decode("pil")
        pipeline = pipeline.to_tuple("jpg", "txt").map_tuple(crop, str).batched(100)
        next(iter(pipeline))
        started = time.process_time()
        seen = sum(len(made[0]) for made in pipeline)
        return measured(seen, started)


def tensors(batch: int, length: int) -> Batch:
    rng = np.random.default_rng(0)
    encode = build_encode(open_clip_config(MODEL)["model_cfg"])
    tokens = np.zeros((batch, length), dtype=np.int64)
    for row in range(batch):
        ids = encode(f"a photo of a {CLASSES[row % 10]}.")
        tokens[row, : len(ids)] = ids
    images = torch.from_numpy(rng.integers(0, 256, (batch, 32, 32, 3), dtype=np.uint8))
    none = torch.empty(batch, 0, dtype=torch.int64)
    return Batch(images, torch.from_numpy(tokens), torch.arange(batch), none)


class InMemory:
    """Gives the trainer the same batch every step, and notes when the second one is asked for."""

    def __init__(self, batch: Batch) -> None:
        self._batch, self.bad, self.warm, self.pairs = batch, BadSamples(0), 0.0, [len(batch.images)]

    def batches(self, first: int, end: int) -> Generator[Batch]:
        for step in range(first, end):
            if step == 1:
                self.warm = time.process_time()
            yield self._batch


def our_trainer(length: int, batch: int, steps: int) -> tuple[float, float]:
    torch.manual_seed(0)
    loader = InMemory(tensors(batch, length))
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model=build_model(MODEL),
            config=TrainingConfig(batch_size=batch, lr=1e-6, lr_end=1e-6),
            loader=loader,  # type: ignore[arg-type]
            checkpoints=Unsaved(Path(folder), 1),
            device=torch.device("cpu"),
            steps=1 + steps,
            steps_per_epoch=1 + steps,
            seed=0,
            report=lambda rows, figures: None,
        )
        trainer.fit()
        return measured(steps * batch, loader.warm)


class Unsaved(Checkpoints):
    """The other trainer's loop saves nothing either."""

    def save(self, step: int, state: dict[str, Any]) -> None:
        pass


def open_clip_trainer(batch: int, steps: int) -> tuple[float, float]:
    """open_clip's own loop, `train_one_epoch`, with its own loss, optimiser settings and logging."""
    import open_clip
    from open_clip_train.params import parse_args
    from open_clip_train.scheduler import cosine_lr
    from open_clip_train.train import train_one_epoch

    torch.manual_seed(0)
    args = parse_args(["--batch-size", str(batch), "--precision", "fp32", "--log-every-n-steps", "10"])
    args.device, args.rank, args.local_rank, args.world_size = "cpu", 0, 0, 1
    args.distributed, args.distill, args.wandb = False, False, False
    config = open_clip_config(MODEL)["model_cfg"]
    model = open_clip.CLIP(**config, output_dict=True).train()
    named = list(model.named_parameters())
    spared = [p for name, p in named if p.ndim < 2 or "bn" in name or "ln" in name or "bias" in name]
    groups = [
        {"params": spared, "weight_decay": 0.0},
        {"params": [p for _, p in named if all(p is not s for s in spared)], "weight_decay": 0.2},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-6, betas=(0.9, 0.98), eps=1e-6)
    data = tensors(batch, 77)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (IMAGE_MEAN, IMAGE_STD))
    images = (data.images.permute(0, 3, 1, 2).float() / 255 - mean) / std

    class Batches:
        num_batches, num_samples = steps, steps * batch

        def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
            return iter([(images, data.tokens)] * self.num_batches)

    def epoch(count: int) -> None:
        Batches.num_batches, Batches.num_samples = count, count * batch
        batches: Any = SimpleNamespace(dataloader=Batches(), set_epoch=lambda number: None)
        schedule = cosine_lr(optimizer, 1e-6, 1, count)
        loss = open_clip.ClipLoss()
        train_one_epoch(model, {"train": batches}, loss, 0, optimizer, None, schedule, None, args)

    epoch(1)  # first allocations
    started = time.process_time()
    epoch(steps)
    return measured(steps * batch, started)


ONE: dict[str, Callable[[argparse.Namespace], tuple[float, float]]] = {
    "loader": lambda asked: our_loader(asked.images[0], asked.px[0]),
    "webdataset": lambda asked: webdataset_loader(asked.images[0], asked.px[0]),
    "decode and crop": lambda asked: decode_and_crop(asked.images[0], asked.px[0]),
    "open_clip 77 tokens": lambda asked: open_clip_trainer(asked.batch[0], asked.steps),
    "trainer 77 tokens": lambda asked: our_trainer(77, asked.batch[0], asked.steps),
    "trainer trimmed": lambda asked: our_trainer(16, asked.batch[0], asked.steps),
}

if __name__ == "__main__":
    main()
