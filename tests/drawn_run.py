"""A run of a few dozen drawn discs with everything that pages show, made without any stage."""

import hashlib
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import simplejpeg

from synthclip import keys, schema
from synthclip.run.store import Outcome, RunDirectory
from synthclip.samples.tars import Place, TarWriter

HOSTILE = "<script>alert('x')</script> a \x00 cat & a\x1b[31m dog \u202e\"quoted\""
NOUNS = ("cat", "dog", "<b>bold</b>", "tree", "lamp", "boat", "bee", "bell", "car", "key", "kite", "moon")
CLASSES = 30
CAPTIONS = 60


def textgen_run(path: Path) -> RunDirectory:
    """A run that stopped after its captions."""
    run = RunDirectory(path)
    with run.begin("concepts", "all", "f") as writer:
        rows = [{"concept_id": i, "text": noun, "source": "test"} for i, noun in enumerate(NOUNS)]
        writer.rows("00000.parquet", schema.CONCEPT, rows)
        writer.commit(Outcome(len(rows)))
    with run.begin("captions", "00000", "f") as writer:
        writer.rows("00000.parquet", schema.CAPTION, [_caption(i) for i in range(CAPTIONS)])
        writer.rows("rejected/00000.parquet", schema.REJECTED_CAPTION, [])
        writer.commit(Outcome(CAPTIONS, {"too_long": 7, "no_concept": 21, HOSTILE: 1}))
    return run


def finish(run: RunDirectory) -> RunDirectory:
    """A run with every stage but the report, from one that stopped after its captions."""
    _balance(run)
    _images(run)
    _train(run)
    _eval(run)
    run.log(event="shard", stage="captions", shard="00000", rows=CAPTIONS, rejected={}, seconds=12.5)
    run.log(event="shard", stage="captions", shard="00000", rows=CAPTIONS, rejected={}, seconds=30.0)
    run.log(event="shard", stage="train", shard="all", rows=300, rejected={}, seconds=120.0)
    run.log(event="stage", stage="train", shards=1, seconds=121.0)
    return run


def _text(i: int) -> str:
    return HOSTILE if i == 0 else f"A {NOUNS[i % 12]} number {i} beside a wall" + " of stone" * (i % 4)


def _caption(i: int) -> dict[str, object]:
    text = _text(i)
    return {
        "caption_id": keys.text_id(text),
        "concept_id": i % 12,
        "text": text,
        "template": "few-shot",
        "model": "tiny <llm>",
        "seed": i,
    }


def _balance(run: RunDirectory) -> None:
    rows = [
        {
            "caption_id": keys.text_id(_text(i)),
            "text": _text(i),
            "concept_ids": [i % 12],
            "keep_probability": 0.5,
        }
        for i in range(CAPTIONS - 12)
    ]
    rows.sort(key=lambda row: str(row["caption_id"]))
    counts = {
        "concept_id": pa.array(range(12), pa.int32()),
        "matched": pa.array([40, 30, 20, 10, 8, 5, 4, 3, 2, 1, 1, 0], pa.int64()),
        "selected": pa.array([10, 10, 10, 9, 8, 5, 4, 3, 2, 1, 1, 0], pa.int64()),
    }
    with run.begin("balance", "all", "f") as writer:
        writer.rows("train/00000.parquet", schema.SELECTED, rows[:40])
        writer.rows("heldout/00000.parquet", schema.SELECTED, rows[40:])
        table = pa.table(counts)
        with writer.table("counts.parquet", table.schema) as out:
            out.write_table(table)
        writer.commit(Outcome(48, {}, {"duplicates": 4, "unmatched": 6, "t": 10}))


def _images(run: RunDirectory) -> None:
    for split, captions in (("train", _selected(run, "train")), ("heldout", _selected(run, "heldout"))):
        with run.begin("images", f"{split}/00000", "f", schema.REJECTED_IMAGE) as writer:
            rows = []
            with TarWriter(writer.path(f"{split}/00000.tar")) as tar:
                for caption in captions:
                    caption_id = int(str(caption["caption_id"]))
                    for variant in range(3):
                        key = keys.image_key(caption_id, variant)
                        jpeg = _jpeg(caption_id, variant)
                        made = {"licence": "CC-BY-SA-4.0", "attempt": 0}
                        place = tar.add(key, jpeg, str(caption["text"]), made)
                        rows.append(_sidecar(key, caption, variant, f"{split}/00000.tar", place, jpeg))
            writer.rows(f"{split}/00000.parquet", schema.IMAGE, rows)
            writer.reject({**rows[0], "attempt": 1, "seed": 7}, "blank")
            notes = {"backend": "compositor/openmoji", "licence": "CC-BY-SA-4.0"}
            writer.commit(Outcome(len(rows), {}, notes))


def _selected(run: RunDirectory, split: str) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = pq.read_table(run.file("balance", f"{split}/00000.parquet")).to_pylist()
    return rows


def _sidecar(
    key: str, caption: dict[str, object], variant: int, shard: str, place: Place, jpeg: bytes
) -> dict[str, object]:
    return {
        "key": key,
        **{name: caption[name] for name in ("caption_id", "text", "concept_ids")},
        "variant": variant,
        "seed": 0,
        "backend": "compositor/openmoji",
        "sha256": hashlib.sha256(jpeg).hexdigest(),
        "width_px": 96,
        "height_px": 96,
        "scores": [("contrast", float(place.offset))],
        "shard": shard,
        **place._asdict(),
    }


def _jpeg(caption_id: int, variant: int) -> bytes:
    """A disc on a ground, both coloured by the caption."""
    random = np.random.default_rng([caption_id, variant])
    image = np.full((96, 96, 3), random.integers(120, 255, 3), dtype=np.uint8)
    centre = [int(value) for value in random.integers(30, 66, 2)]
    cv2.circle(image, centre, 22, [int(value) for value in random.integers(0, 200, 3)], -1, cv2.LINE_AA)
    encoded: bytes = simplejpeg.encode_jpeg(image, quality=90)
    return encoded


def _train(run: RunDirectory) -> None:
    steps = np.arange(1, 601)
    noise = np.random.default_rng(0).normal(0, 0.12, steps.size)
    curve = pa.table(
        {
            "step": steps,
            "samples_seen": steps * 128,
            "loss": 1.4 + 3.4 * np.exp(-steps / 150) + noise,
            "lr": 5e-4 * np.ones(600),
            "samples_per_s": 900.0 * np.ones(600),
            "data_wait": np.zeros(600),
        }
    )
    with run.begin("train", "all", "f") as writer:
        with writer.table("curve.parquet", curve.schema) as out:
            out.write_table(curve)
        writer.commit(Outcome(600))


def _eval(run: RunDirectory) -> None:
    def row(task: str, metric: str, value: float, chance: float | None) -> dict[str, object]:
        return {
            "dataset": "heldout",
            "task": task,
            "metric": metric,
            "value": value,
            "ci95_low": None if chance is None else value - 0.03,
            "ci95_high": None if chance is None else value + 0.03,
            "chance": chance,
            "n": 812,
            "checkpoint": "train/model",
        }

    rows = [
        row("zero_shot", "top1", 0.463, 0.0047),
        row("zero_shot", "top5", 0.731, 0.0234),
        row("image_retrieval", "R@1", 0.214, 0.0012),
        row("image_retrieval", "R@5", 0.47, 0.006),
        row("text_retrieval", "R@1", 0.208, 0.0012),
        row("embedding", "uniformity", -2.5, None),
    ]
    per_class = [
        {
            "dataset": "heldout",
            "class_id": i,
            "name": f"class <{i}>",
            "n": i + 1,
            "top1": i / CLASSES,
            "top5": 1.0,
            "confused_with": f"class <{i + 1}>",
            "confused_n": 1,
        }
        for i in range(CLASSES)
    ]
    keys_ = pq.read_table(run.file("images", "heldout/00000.parquet"))["key"].to_pylist()
    nearest = [
        {"text": text, "rank": rank + 1, "key": key, "score": 0.5, "right": rank == 1}
        for text in (HOSTILE, "A red boat on the sea")
        for rank, key in enumerate(keys_[:5])
    ]
    with run.begin("eval", "all", "f") as writer:
        writer.rows("results.parquet", schema.EVAL_RESULT, rows)
        writer.rows("per_class.parquet", schema.EVAL_CLASS, per_class)
        writer.rows("nearest.parquet", schema.EVAL_NEAREST, nearest)
        writer.commit(Outcome(len(rows)))


def judge(run: RunDirectory) -> None:
    """Add an evaluation on two public data sets and a retrieval set."""

    def row(dataset: str, task: str, metric: str, value: float) -> dict[str, object]:
        ends = {"ci95_low": value - 0.02, "ci95_high": value + 0.02}
        cell = {"dataset": dataset, "task": task, "metric": metric, "value": value, "chance": 0.01, "n": 1880}
        return {**cell, **ends, "checkpoint": "0123456789abcdef"}

    results = [
        row("dtd", "zero_shot", "top1", 0.213),
        row("dtd", "linear_probe", "top1", 0.612),
        row("dtd", "few_shot", "top1", 0.7),
        row("pets", "linear_probe", "top1", 0.55),
        row("flickr8k", "image_retrieval", "R@5", 0.31),
        row("flickr8k", "text_retrieval", "R@5", 0.36),
    ]
    classes = [
        {
            "dataset": "dtd",
            "class_id": i,
            "name": f"texture <{i}>",
            "n": 40,
            "top1": i / 46,
            "top5": 1.0,
            "confused_with": "banded",
            "confused_n": 40 - i * 40 // 46,
        }
        for i in range(47)
    ]
    with run.begin("suites", "quick", "f") as writer:
        writer.rows("quick/results.parquet", schema.EVAL_RESULT, results)
        writer.rows("quick/per_class.parquet", schema.EVAL_CLASS, classes)
        writer.commit(Outcome(len(results)))
