"""Stage images with a diffusion model, beside the plain pipeline call that a user would write.

    python benchmarks/imagegen_diffusers.py cpu             # about 2 minutes on one core
    python benchmarks/imagegen_diffusers.py gpu             # about 6 minutes on an H100
    python benchmarks/imagegen_diffusers.py gpu --tiny      # the same on any machine, to see that it runs

`cpu`: the whole stage, from captions to tars and manifests, around a tiny Stable Diffusion, against a bare
loop over the same pipeline that throws its images away. The two take turns, shard by shard, on one thread of
torch; CPU seconds count what the stage does beside the model on another core too.

`gpu`: the paper's setting with random weights of Stable Diffusion v1.5's shapes, against the plain pipeline
call at batch 16, at 50 steps and at few. Arithmetic and memory traffic do not depend on what weights
know. Idle is what nvidia-smi says of the device, all else of the stage included.
"""

import argparse
import dataclasses
import gc
import json
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from rich.console import Console
from rich.table import Table

from imagegen import captions, selected
from synthclip.imagegen import Images
from synthclip.recipe import load_recipe
from synthclip.run.engine import Shard, Work
from synthclip.run.stage import StageLoad

BATCH = 16
"""Of the plain pipeline call."""
FEW_STEP = 4
"""Times as many images where a model paints in few steps."""
SHARD = 64
"""Images of a shard of the CPU part; real ones hold thousands, so what a shard costs weighs less there."""


@dataclasses.dataclass(frozen=True)
class Shape:
    """A Stable Diffusion: channels of the denoiser and the decoder, layers a block, the text encoder."""

    latent: int
    unet: tuple[int, ...]
    vae: tuple[int, ...]
    groups: int
    layers: int
    text: int
    text_layers: int


TINY = Shape(latent=16, unet=(32, 64), vae=(16, 32), groups=8, layers=1, text=32, text_layers=2)
SD15 = Shape(64, (320, 640, 1280, 1280), (128, 256, 512, 512), 32, 2, 768, 12)


def import_quietly() -> None:
    """The libraries, their warnings and progress bars off."""
    from synthclip.models import diffusers, transformers

    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()


def save_pipeline(shape: Shape, folder: str, dtype: str) -> None:
    """A pipeline with random weights, in diffusers' layout."""
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    attended = len(shape.unet) - 1
    unet = UNet2DConditionModel(
        sample_size=shape.latent,
        block_out_channels=shape.unet,
        layers_per_block=shape.layers,
        down_block_types=("CrossAttnDownBlock2D",) * attended + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * attended,
        cross_attention_dim=shape.text,
        attention_head_dim=8,
        norm_num_groups=shape.groups,
    )
    vae = AutoencoderKL(
        block_out_channels=shape.vae,
        down_block_types=("DownEncoderBlock2D",) * len(shape.vae),
        up_block_types=("UpDecoderBlock2D",) * len(shape.vae),
        latent_channels=4,
        layers_per_block=shape.layers,
        norm_num_groups=shape.groups,
    )
    text = CLIPTextModel(
        CLIPTextConfig(
            hidden_size=shape.text,
            intermediate_size=4 * shape.text,
            num_attention_heads=max(4, shape.text // 64),
            num_hidden_layers=shape.text_layers,
            projection_dim=shape.text,
        )
    )
    pipeline = StableDiffusionPipeline(
        unet=unet,
        vae=vae,
        text_encoder=text,
        tokenizer=tokenizer(),
        scheduler=DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.to(dtype=getattr(torch, dtype)).save_pretrained(folder)


def tokenizer() -> Any:
    """CLIP's, from the vocabulary that open_clip carries."""
    import open_clip
    from transformers import CLIPTokenizer

    simple = open_clip.SimpleTokenizer()
    merges = sorted(simple.bpe_ranks, key=simple.bpe_ranks.__getitem__)
    words = dict(simple.encoder)
    words["<|startoftext|>"] = words.pop("<start_of_text>")
    words["<|endoftext|>"] = words.pop("<end_of_text>")
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "vocab.json").write_text(json.dumps(words))
        (Path(folder) / "merges.txt").write_text(
            "\n".join(["#version: 0.2", *(" ".join(merge) for merge in merges)]) + "\n"
        )
        return CLIPTokenizer.from_pretrained(folder, model_max_length=77)


class Plain:
    """The pipeline as its documentation calls it."""

    def __init__(
        self,
        folder: str,
        dtype: str,
        device: str,
        *,
        steps: int,
        guidance: float = 2.0,
        scheduler: str | None = None,
    ) -> None:
        import diffusers
        import torch

        self._steps, self._guidance = steps, guidance
        self._pipeline = diffusers.StableDiffusionPipeline.from_pretrained(
            folder, dtype=getattr(torch, dtype)
        )
        if scheduler is not None:
            kind = getattr(diffusers, scheduler)
            self._pipeline.scheduler = kind.from_config(self._pipeline.scheduler.config)
        self._pipeline.to(device)
        self._pipeline.set_progress_bar_config(disable=True)

    def __call__(self, texts: Sequence[str]) -> None:
        import torch

        for start in range(0, len(texts), BATCH):
            part = list(texts[start : start + BATCH])
            generators = [torch.Generator().manual_seed(start + at) for at in range(len(part))]
            self._pipeline(
                part,
                num_inference_steps=self._steps,
                guidance_scale=self._guidance,
                generator=generators,
            )


def stage(
    folder: Path, texts: Sequence[str], size_px: int, shard: int, **values: object
) -> tuple[Work, list[Shard]]:
    """Stage images with its model loaded, and its shards. Whatever random weights paint is kept."""
    painter = {"backend": "diffusers", "guidance": 2.0, **values}
    recipe = load_recipe(
        "demo",
        [
            f"text_to_image={json.dumps(painter)}",
            f"images.size_px={size_px}",
            f"images.captions_per_shard={shard}",
            "images.per_caption=1",
            "images.composition=0",
            "images.filters.min_contrast=0",
            "images.retries=0",
        ],
    )
    shards = list(Images(recipe, selected(folder, texts)).shards())
    return StageLoad(Images, recipe, folder)(), shards


def make(work: Work, shard: Shard) -> None:
    outcome = work(shard, lambda rows, **figures: None)
    if outcome.rejected:
        raise SystemExit(f"the model's images were refused: {outcome.rejected}")


class Clock:
    """Wall and CPU seconds of this process, summed over the times that it was entered."""

    def __init__(self) -> None:
        self.wall = self.cpu = 0.0

    def __enter__(self) -> Self:
        self.wall -= time.perf_counter()
        self.cpu -= time.process_time()
        return self

    def __exit__(self, *error: object) -> None:
        self.wall += time.perf_counter()
        self.cpu += time.process_time()


def cpu(sizes: Sequence[int]) -> Table:
    with Clock() as imports:
        import_quietly()
    import torch

    torch.set_num_threads(1)
    steps = 5
    table = Table(
        "images",
        "loop: start, work",
        "stage: start, work",
        "images/s",
        "work, wall",
        "work, CPU",
        "with start",
        title=f"Tiny pipeline of {steps} steps, CPU, batch {BATCH}; import of torch and diffusers, before "
        f"either starts: {imports.wall:.1f} s",
    )
    with tempfile.TemporaryDirectory() as weights:
        save_pipeline(TINY, weights, "float32")
        Plain(weights, "float32", "cpu", steps=steps)(
            captions(BATCH)
        )  # what a first call prepares is for both
        for size in sizes:
            texts = captions(size)
            loop_start, loop, stage_start, ours = Clock(), Clock(), Clock(), Clock()
            with tempfile.TemporaryDirectory() as run:
                with loop_start:
                    plain = Plain(weights, "float32", "cpu", steps=steps)
                with stage_start:
                    work, shards = stage(
                        Path(run), texts, 2 * TINY.latent, SHARD, model=weights, steps=steps, batch_size=BATCH
                    )
                for number, shard in enumerate(shards):
                    with loop:
                        plain(texts[number * SHARD : (number + 1) * SHARD])
                    with ours:
                        make(work, shard)
            table.add_row(
                str(size),
                f"{loop_start.wall:.1f} s, {loop.wall:.1f} s",
                f"{stage_start.wall:.1f} s, {ours.wall:.1f} s",
                f"{size / ours.wall:.1f}",
                f"{ours.wall / loop.wall:.3f}",
                f"{ours.cpu / loop.cpu:.3f}",
                f"{(stage_start.wall + ours.wall) / (loop_start.wall + loop.wall):.3f}",
            )
    return table


class Idle:
    """The share of the time inside that nothing ran on the GPU; NaN where there is none."""

    share = float("nan")

    def __enter__(self) -> Self:
        import torch

        self._watch = None
        if torch.cuda.is_available():
            device = f"--id=GPU-{torch.cuda.get_device_properties(0).uuid}"
            query = ["--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "--loop-ms=100"]
            self._watch = subprocess.Popen(["nvidia-smi", device, *query], stdout=subprocess.PIPE, text=True)
        return self

    def __exit__(self, *error: object) -> None:
        if self._watch is not None:
            self._watch.terminate()
            busy = [int(line) for line in self._watch.communicate()[0].splitlines() if line.isdecimal()]
            self.share = 1 - float(np.mean(busy)) / 100 if busy else float("nan")


def gpu(images: int, tiny: bool) -> Table:
    import_quietly()
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    shape, dtype = (TINY, "float32") if tiny else (SD15, "float16")
    settings: dict[str, dict[str, Any]] = {
        "50 steps": {"steps": 50},
        "4 steps without guidance (as sd15-lcm)": {"steps": 4, "guidance": 1.0, "scheduler": "LCMScheduler"},
        "1 step without guidance (as Turbo models)": {
            "steps": 1,
            "guidance": 1.0,
            "scheduler": "EulerAncestralDiscreteScheduler",
        },
    }
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    what = "A tiny pipeline" if tiny else "Stable Diffusion v1.5's shapes"
    table = Table(
        "", "images/s", "ratio", "device idle", "peak GiB", title=f"{what}, {name}, {images} images"
    )
    first = 0.0

    def add(row: str, count: int, clock: Clock, idle: Idle) -> None:
        nonlocal first
        rate = count / clock.wall
        first = first or rate
        gib = torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else float("nan")
        table.add_row(row, f"{rate:.2f}", f"{rate / first:.2f}", f"{idle.share:.1%}", f"{gib:.1f}")
        print(f"{row}: {rate:.2f} images/s", flush=True)
        torch._dynamo.reset()
        gc.collect()  # a pipeline holds itself in a cycle
        if device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    with tempfile.TemporaryDirectory() as weights:
        save_pipeline(shape, weights, dtype)
        for setting, values in settings.items():
            first = 0.0
            count = images if values["steps"] == 50 else FEW_STEP * images
            plain = Plain(weights, dtype, device, **values)
            plain(captions(BATCH))
            with Idle() as idle, Clock() as clock:
                plain(captions(count))
            del plain
            add(f"plain pipeline, {setting}, batch {BATCH}", count, clock, idle)
            for compiled in (False, True):
                batch = 2 * BATCH  # what "auto" begins with
                texts = captions(batch + count)
                painter = {"model": weights, "dtype": dtype, "compile": compiled and not tiny, **values}
                with tempfile.TemporaryDirectory() as run:
                    work, (whole,) = stage(Path(run), texts, 4 * shape.latent, len(texts), **painter)
                    # The first batch, which compiles, is a shard of its own before the clock starts.
                    with Clock() as start:
                        make(work, dataclasses.replace(whole, payload={**whole.payload, "stop": batch}))
                    rest = dataclasses.replace(whole, payload={**whole.payload, "start": batch})
                    with Idle() as idle, Clock() as clock:
                        make(work, rest)
                    del work
                how = f", compiled in {start.wall:.0f} s" if compiled else ""
                add(f"stage, {setting}, batch {batch}{how}", count, clock, idle)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = parser.add_subparsers(dest="part", required=True)
    part = parts.add_parser("cpu")
    part.add_argument("--sizes", type=int, nargs="+", default=[64, 192, 512])
    part = parts.add_parser("gpu")
    part.add_argument("--images", type=int, default=256)
    part.add_argument("--tiny", action="store_true")
    asked = parser.parse_args()
    if asked.part == "cpu":
        table = cpu(asked.sizes)
    else:
        import torch

        if not (asked.tiny or torch.cuda.is_available()):
            parser.error("no GPU here: --tiny shows that it runs")
        table = gpu(BATCH if asked.tiny else asked.images, asked.tiny)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
