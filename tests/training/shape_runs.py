"""Makes runs whose images stage is there: pictures of one coloured shape each, with captions that say so."""

import hashlib
import multiprocessing
import os
import socket
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import simplejpeg
import torch
import torch._dynamo  # which DDP and FSDP import: once here, not in each fork of `in_processes`
import torch.distributed as dist
from numpy.typing import NDArray

from synthclip.keys import image_key, sha256_of, text_id
from synthclip.recipe import Recipe
from synthclip.recipe.training import TrainingConfig
from synthclip.run.stage import StageLoad
from synthclip.run.store import Outcome, RunDirectory, ShardWriter
from synthclip.samples.tars import TarWriter
from synthclip.schema import CONCEPT, IMAGE, SELECTED
from synthclip.training import Train

COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 200, 60),
    "blue": (50, 70, 230),
    "yellow": (235, 220, 40),
    "white": (245, 245, 245),
    "black": (15, 15, 15),
}
SHAPES = ("circle", "square", "stripe")

TINY = (
    "model.embed_dim=16",
    "model.vision={image_size_px: 32, layers: 1, width: 32, head_width: 16, patch_size_px: 16}",
    "model.text={context_length: 16, width: 32, heads: 2, layers: 1}",
    "training={epochs: 2, batch_size: 16, lr: 0.001, warmup_epochs: 0.5, data_threads: 2, loggers: []}",
    "engine.workers=0",
)
"""A model and a training of a second."""


def picture(colour: str, shape: str, rng: np.random.Generator, size: int = 48) -> NDArray[np.uint8]:
    """A coloured shape on grey noise, uint8 [size, size, 3]."""
    image = rng.integers(90, 140, (size, size, 3), dtype=np.uint8)
    x, y = (int(v) for v in rng.integers(size // 3, size * 2 // 3, 2))
    radius = int(rng.integers(size // 6, size // 3))
    if shape == "circle":
        cv2.circle(image, (x, y), radius, COLOURS[colour], -1)
    elif shape == "square":
        cv2.rectangle(image, (x - radius, y - radius), (x + radius, y + radius), COLOURS[colour], -1)
    else:
        cv2.rectangle(image, (0, y - radius // 3), (size, y + radius // 3), COLOURS[colour], -1)
    return image


Damage = Callable[[int], bool]
"""Whether the picture of a row is to be cut short."""


def caption(row: int) -> str:
    colour, shape = list(COLOURS)[row % len(COLOURS)], SHAPES[row // len(COLOURS) % len(SHAPES)]
    return f"A {colour} {shape} on a grey wall, picture {row}."


def write_images(run: RunDirectory, rows: int, shards: int = 2, damage: Damage | None = None) -> None:
    """The images stage of a run, whole, as ImageGen writes it."""
    _write_split(run, "train", range(rows), shards, damage)


def twin_runs(folder: Path, shards: int = 2) -> tuple[RunDirectory, RunDirectory]:
    """Two runs with the same images: one to disturb, and one to compare it with."""
    twins = RunDirectory(folder / "a"), RunDirectory(folder / "b")
    for run in twins:
        write_images(run, 96, shards)
    return twins


def write_exchanged(run: RunDirectory, rows: int) -> None:
    """Pairs of pictures of one seed each, as of captions of exchanged words."""
    _write_split(run, "exchanged", range(2000, 2000 + rows), 1, None)


def write_heldout(run: RunDirectory, rows: int) -> None:
    """What the run keeps from training: the concepts, and pictures that no training picture equals, each with
    a caption that names a colour and a shape; only the colours are in the bank."""
    with run.begin("concepts", "00000", "test") as writer:
        bank = [{"concept_id": n, "text": text, "source": "test"} for n, text in enumerate(COLOURS)]
        writer.rows("00000.parquet", CONCEPT, bank)
        writer.commit(Outcome(rows=len(bank)))
    numbers = range(1000, 1000 + rows)
    with run.begin("balance", "all", "test") as writer:
        captions = [
            {
                "caption_id": text_id(caption(row)),
                "text": caption(row),
                "concept_ids": [row % len(COLOURS)],
                "keep_probability": 1.0,
            }
            for row in numbers
        ]
        writer.rows("heldout/00000.parquet", SELECTED, sorted(captions, key=lambda row: row["caption_id"]))
        writer.commit(Outcome(rows=rows))
    _write_split(run, "heldout", numbers, 1, None)


def _write_split(run: RunDirectory, split: str, rows: range, shards: int, damage: Damage | None) -> None:
    rng = np.random.default_rng(rows.start)
    each = len(rows) // shards
    for number in range(shards):
        name = f"{split}/{number:05d}"
        with run.begin("images", name, "test") as writer:
            table = _write_tar(writer, name, rows[number * each : (number + 1) * each], rng, damage)
            pq.write_table(pa.Table.from_pylist(table, schema=IMAGE), writer.path(f"{name}.parquet"))
            writer.commit(Outcome(rows=each))


def _write_tar(
    writer: ShardWriter,
    name: str,
    rows: range,
    rng: np.random.Generator,
    damage: Damage | None,
) -> list[dict[str, object]]:
    table: list[dict[str, object]] = []
    with TarWriter(writer.path(f"{name}.tar")) as tar:
        for row in rows:
            colour, shape = list(COLOURS)[row % len(COLOURS)], SHAPES[row // len(COLOURS) % len(SHAPES)]
            text = caption(row)
            jpeg = simplejpeg.encode_jpeg(picture(colour, shape, rng), quality=90)
            if damage and damage(row):
                jpeg = jpeg[: len(jpeg) // 2]
            key = image_key(text_id(text), 0)
            concepts = [row % len(COLOURS), len(COLOURS) + row // len(COLOURS) % len(SHAPES)]
            if name.startswith("heldout/"):
                concepts = concepts[:1]  # only the colours are in its bank
            place = tar.add(key, jpeg, text, {"caption_id": text_id(text), "concept_ids": concepts})
            table.append(
                {
                    "key": key,
                    "caption_id": text_id(text),
                    "text": text,
                    "concept_ids": concepts,
                    "variant": 0,
                    "seed": row // 2 if name.startswith("exchanged/") else row,
                    "backend": "test",
                    "sha256": hashlib.sha256(jpeg).hexdigest(),
                    "width_px": 48,
                    "height_px": 48,
                    "scores": [],
                    "shard": f"{name}.tar",
                    "offset": place.offset,
                    "length": place.length,
                }
            )
    return table


def train(recipe: Recipe, run: RunDirectory) -> Outcome:
    """Run the train stage in this process."""
    shard = Train(recipe, run).shards()[0]
    return StageLoad(Train, recipe, run.path)()(shard, lambda rows, **figures: None)


def in_processes(processes: int, work: Callable[[int], object]) -> None:
    """Call `work` with its rank in each of several forks that see what torchrun would tell them."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]

    def member(rank: int) -> None:
        torch.set_num_threads(1)
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(processes))
        os.environ.update(MASTER_ADDR="localhost", MASTER_PORT=str(port))
        work(rank)
        dist.destroy_process_group()

    context = multiprocessing.get_context("fork")
    members = [context.Process(target=member, args=(rank,)) for rank in range(processes)]
    for process in members:
        process.start()
    for process in members:
        process.join()
        assert process.exitcode == 0


def weights(run: RunDirectory) -> str:
    """The digest of the trained model's file."""
    return sha256_of(run.file("train", "model/open_clip_model.safetensors"))


def losses(run: RunDirectory) -> list[float]:
    """The loss of every step."""
    table = pq.read_table(run.file("train", "curve.parquet"), columns=["loss"])
    return [float(loss) for loss in table["loss"].to_pylist()]


def with_training(recipe: Recipe, **values: object) -> Recipe:
    """The recipe with other values in its training section."""
    training = TrainingConfig.model_validate({**recipe.training.model_dump(), **values})
    return recipe.model_copy(update={"training": training})
