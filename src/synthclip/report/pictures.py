"""The pictures of a report: what the model was trained on, and what it finds."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from synthclip import keys
from synthclip.run.store import RunDirectory
from synthclip.textgen.concepts import read_bank

GALLERY_CAPTIONS = 12
GALLERY_VARIANTS = 2
FINDINGS = 6


@dataclass(frozen=True)
class Picture:
    """One caption, the concepts in it, and its images as JPEG in base64."""

    caption: str
    concepts: tuple[str, ...]
    jpegs: tuple[str, ...]


@dataclass(frozen=True)
class Finding:
    """A held-out caption and the images nearest to it: JPEG in base64, and whether it was painted from it."""

    caption: str
    images: tuple[tuple[str, bool], ...]


def gallery(run: RunDirectory) -> tuple[Picture, ...]:
    """Captions drawn by their content, so that the same run shows the same ones, with their first images."""
    sidecars = files(run, "images", "train/")
    chosen = _draw_captions(sidecars)
    if not chosen:
        return ()
    jpegs: dict[int, list[str]] = {caption: [] for caption in chosen}
    for row in sorted(_jpegs(sidecars, "caption_id", pa.array(chosen, pa.uint64())), key=_key):
        jpegs[row["caption_id"]].append(row["jpeg"])
    selected = _where(files(run, "balance", "train/"), "caption_id", pa.array(chosen, pa.uint64()))
    captions = {row["caption_id"]: row for row in selected}
    names = dict(enumerate(read_bank(run))) if run.manifests("concepts") else {}
    return tuple(
        Picture(
            captions[caption]["text"],
            tuple(names[one] for one in captions[caption]["concept_ids"] if one in names),
            tuple(jpegs[caption][:GALLERY_VARIANTS]),
        )
        for caption in chosen
        if caption in captions
    )


def findings(run: RunDirectory) -> tuple[Finding, ...]:
    """The images that the trained model holds nearest to a few held-out captions."""
    rows = [row for path in files(run, "eval", "nearest.parquet") for row in pq.read_table(path).to_pylist()]
    wanted = pa.array(sorted({row["key"] for row in rows}), pa.string())
    jpegs = {row["key"]: row["jpeg"] for row in _jpegs(files(run, "images", "heldout/"), "key", wanted)}
    by_text: dict[str, list[tuple[str, bool]]] = {}
    for row in rows:
        if row["key"] in jpegs:
            by_text.setdefault(row["text"], []).append((jpegs[row["key"]], row["right"]))
    return tuple(Finding(text, tuple(images)) for text, images in list(by_text.items())[:FINDINGS])


def files(run: RunDirectory, stage: str, prefix: str, suffix: str = ".parquet") -> list[Path]:
    """The files of whole shards whose path in the stage begins and ends so, in order."""
    found = {
        entry.path
        for manifest in run.manifests(stage)
        for entry in manifest.files
        if entry.path.startswith(prefix) and entry.path.endswith(suffix)
    }
    return [run.file(stage, path) for path in sorted(found)]


def _draw_captions(sidecars: Sequence[Path]) -> list[int]:
    drawn = np.empty(0, dtype=np.uint64)
    for path in sidecars:
        ids = pq.read_table(path, columns=["caption_id"])["caption_id"].to_numpy()
        drawn = np.unique(np.concatenate([drawn, ids]))
        order = np.argsort(keys.seeds(drawn, stream="report.gallery", seed=0))
        drawn = drawn[order[:GALLERY_CAPTIONS]]
    return [int(caption) for caption in drawn]


def _jpegs(sidecars: Sequence[Path], column: str, values: pa.Array) -> list[dict[str, Any]]:
    """The images whose `column` is among the values: caption_id, key, and jpeg in base64."""
    columns = ["caption_id", "key", "offset", "length"]
    rows: list[dict[str, Any]] = []
    for path in sidecars:
        if found := _where([path], column, values, columns):
            with path.with_suffix(".tar").open("rb") as tar:
                for row in found:
                    tar.seek(row["offset"])
                    row["jpeg"] = base64.b64encode(tar.read(row["length"])).decode()
            rows += found
    return rows


def _where(
    paths: Sequence[Path], column: str, values: pa.Array, columns: list[str] | None = None
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for path in paths:
        rows += pq.read_table(path, columns=columns, filters=pc.field(column).isin(values)).to_pylist()
    return rows


def _key(row: Mapping[str, Any]) -> str:
    return str(row["key"])
