"""How long evaluation takes: encoding beside the bare forward, the CIFAR-10 battery beside CLIP_benchmark's.

    python benchmarks/evaluation_speed.py encode [--sizes 64 128 256]
    python benchmarks/evaluation_speed.py battery [--sizes 500 1000 2000]

Needs CIFAR-10 (see evaluation_inputs.py), and the battery `clip-benchmark`. Weights are random but fixed:
speed does not depend on what a model knows. Both sides have all cores: run it with nothing beside it.
"""

import argparse
import io
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from evaluation_inputs import SMALL, cifar, new_table, write_cifar_tars, write_model
from synthclip.evaluation.encoder import Encoder
from synthclip.models import open_clip
from synthclip.models.load import load_model

BATCH = 64
"""The default of both commands."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("part", choices=["encode", "battery"])
    parser.add_argument("--sizes", type=int, nargs="+", help="images; of the battery, test images")
    parser.add_argument(
        "--workers", type=int, nargs="+", default=[4, 0], help="CLIP_benchmark's --num_workers"
    )
    chosen = parser.parse_args()
    if chosen.part == "encode":
        table = encode(chosen.sizes or [64, 128, 256])
    else:
        table = battery(chosen.sizes or [500, 1000, 2000], chosen.workers)
    Console(width=140).print(table)


def encode(sizes: Sequence[int]) -> Table:
    """ViT-B/16 from encoded bytes to features, beside the forward alone on pixels that lie ready."""
    title = "ViT-B/16, images/s (10,000 would take most of an hour on two cores; the share shows its trend)"
    table = new_table(title, "bare forward", "ours", "share", "share of CPU time")
    with tempfile.TemporaryDirectory() as scratch:
        folder = write_model(Path(scratch), open_clip.get_model_config("ViT-B-16"))
        model, preprocess, tokenizer = load_model(folder)
    encoder = Encoder(model, preprocess, tokenizer, batch_size=BATCH)
    encoder.images(cifar("test", BATCH)[0])
    for images in sizes:
        pictures, _ = cifar("test", images)
        pixels_N3HW = torch.stack([preprocess(Image.open(io.BytesIO(data))) for data in pictures])
        bare, bare_cpu = _spent(_forward, model, pixels_N3HW)
        ours, ours_cpu = _spent(encoder.images, pictures)
        table.add_row(
            f"{images} images",
            f"{images / bare:.2f}",
            f"{images / ours:.2f}",
            f"{bare / ours:.1%}",
            f"{bare_cpu / ours_cpu:.1%}",
        )
    return table


@torch.inference_mode()
def _forward(model: Any, pixels_N3HW: torch.Tensor) -> None:
    for chunk in pixels_N3HW.split(BATCH):
        model.encode_image(chunk, normalize=True)


def battery(sizes: Sequence[int], workers: Sequence[int]) -> Table:
    """Both commands from their start to their end, as a user runs them: nothing cached, then everything."""
    title = "Zero-shot and linear probe (ours: few-shot too): wall seconds, and CPU seconds"
    table = new_table(title, "ours", "ours again", *(f"theirs, {n} workers" for n in workers), "ratio")
    for test in sizes:
        train, val = 4 * test, test
        with tempfile.TemporaryDirectory() as scratch:
            root = Path(scratch)
            model = write_model(root / "model", SMALL)
            write_cifar_tars(root / "data" / "cifar", test=test, train=train, val=val)
            ours = [_spent(_ours, root, model) for _ in range(2)]
            theirs = [_spent(_theirs, root, model, n) for n in workers]
        ratios = " / ".join(f"{wall / ours[0][0]:.1f}x" for wall, _ in theirs)
        cells = [f"{wall:.1f}, {cpu:.1f}" for wall, cpu in (*ours, *theirs)]
        table.add_row(f"{test} test, {train + val} training images", *cells, ratios)
    return table


def _ours(root: Path, model: Path) -> None:
    where = ["--data", str(root / "data"), "--cache", str(root / "cache"), "--out", str(root / "out")]
    _run("-m", "synthclip", "eval", str(model), "--suite", "cifar", *where)


def _theirs(root: Path, model: Path, workers: int) -> None:
    script = str(Path(__file__).with_name("evaluation_clip_benchmark.py"))
    common = ["--model_type", "open_clip", "--model", f"local-dir:{model}", "--pretrained", "", "--no_amp"]
    common += ["--dataset", "wds/cifar", "--dataset_root", str(root / "data" / "cifar")]
    common += ["--num_workers", str(workers)]
    with tempfile.TemporaryDirectory() as features:
        for task in (["zeroshot_classification"], ["linear_probe", "--val_split", "val"]):
            out = ["--output", str(root / f"{task[0]}.json"), "--feature_root", features]
            _run(script, "eval", *common, "--task", *task, *out)


def _run(*arguments: str) -> None:
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)


def _spent(work: Callable[..., object], *arguments: object) -> tuple[float, float]:
    """Wall and CPU seconds, those of child processes included."""
    started, before = time.perf_counter(), _cpu_s()
    work(*arguments)
    return time.perf_counter() - started, _cpu_s() - before


def _cpu_s() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


if __name__ == "__main__":
    main()
