"""Models and data that the benchmarks of evaluation share: random weights of a fixed seed, and CIFAR-10."""

import gzip
import io
import json
import os
import sys
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from rich.table import Table
from safetensors.torch import save_file

from synthclip.models import open_clip

SHARED = Path(os.environ.get("SYNTHCLIP_SHARED", Path(__file__).parents[2] / "shared")) / "data"
"""Holds `cifar10/{train,test}.parquet` and `captions/flickr8k-captions.txt.gz`."""

SMALL = {
    "embed_dim": 384,
    "vision_cfg": {"image_size": 64, "layers": 12, "width": 384, "head_width": 64, "patch_size": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 256, "heads": 4, "layers": 3},
}
"""The image tower of open_clip's ViT-S-32 at 64 px and three layers of text, so that thousands of images take
seconds and not minutes on one core."""

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_SHARDS = 4


def write_model(folder: Path, config: dict[str, Any]) -> Path:
    """An open_clip folder with random weights of a fixed seed."""
    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    model = open_clip.CLIP(**config)
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors")
    preprocess = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": config, "preprocess_cfg": preprocess})
    )
    return folder


def cifar(split: str, images: int, start: int = 0) -> tuple[list[bytes], np.ndarray]:
    """PNG bytes and labels."""
    path = SHARED / "cifar10" / f"{split}.parquet"
    if not path.is_file():
        sys.exit(f"{path} is not there: set SYNTHCLIP_SHARED")
    table = pq.read_table(path).slice(start, images)
    return [row["bytes"] for row in table["image"].to_pylist()], table["label"].to_numpy().astype(np.int64)


def write_cifar_tars(folder: Path, *, test: int, train: int = 0, val: int = 0) -> None:
    """CLIP_benchmark's layout, each split in four tars; `val` is taken from the training images."""
    folder.mkdir(parents=True)
    (folder / "classnames.txt").write_text("\n".join(CLASSES))
    (folder / "zeroshot_classification_templates.txt").write_text("a photo of a {c}.\na bad photo of a {c}.")
    parts = {"test": cifar("test", test), "train": cifar("train", train), "val": cifar("train", val, train)}
    for split, (pictures, labels) in parts.items():
        if pictures:
            samples = [
                {f"{row:05d}.cls": str(label).encode(), f"{row:05d}.png": data}
                for row, (data, label) in enumerate(zip(pictures, labels, strict=True))
            ]
            _write_split(folder / split, samples)


def write_retrieval_tars(folder: Path, images: int) -> None:
    """CIFAR-10 images with five real captions each, which have nothing to do with them."""
    with gzip.open(SHARED / "captions" / "flickr8k-captions.txt.gz", "rt", encoding="utf-8") as handle:
        lines = handle.read().splitlines()[: 5 * images]
    samples = [
        {f"{row:05d}.png": data, f"{row:05d}.txt": "\n".join(lines[5 * row : 5 * row + 5]).encode()}
        for row, data in enumerate(cifar("test", images)[0])
    ]
    _write_split(folder / "test", samples)
    (folder / "dataset_type.txt").write_text("retrieval")


def new_table(title: str, *columns: str) -> Table:
    table = Table("", title=title, title_justify="left", box=None)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _write_split(folder: Path, samples: Sequence[Mapping[str, bytes]]) -> None:
    folder.mkdir(parents=True)
    (folder / "nshards.txt").write_text(str(_SHARDS))
    for shard in range(_SHARDS):
        with tarfile.open(folder / f"{shard}.tar", "w") as tar:
            for sample in samples[shard * len(samples) // _SHARDS : (shard + 1) * len(samples) // _SHARDS]:
                for name, data in sample.items():
                    info = tarfile.TarInfo(name)
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
