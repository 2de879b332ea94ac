"""What a report shows, read from a run directory. Whatever is not there yet is None or empty."""

import base64
import json
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from synthclip import keys
from synthclip.store import RunDirectory

GALLERY_CAPTIONS = 12
GALLERY_VARIANTS = 2


@dataclass(frozen=True)
class Step:
    """One step of the funnel. `share` is of the captions written; None for what is no caption."""

    label: str
    count: int
    share: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Picture:
    """One caption of the gallery and its images as JPEG in base64."""

    caption: str
    concepts: tuple[str, ...]
    jpegs: tuple[str, ...]


@dataclass(frozen=True)
class Makers:
    """The models that wrote and painted, and what the pictures are licensed under."""

    llm: str | None
    painter: str | None
    licence: str | None

    @property
    def stand_in(self) -> bool:
        """Whether glyphs were composed where a diffusion model would have painted."""
        return self.painter is not None and "compositor" in self.painter


@dataclass(frozen=True)
class ConceptCounts:
    """Captions of each concept before and after balancing, int64 [N]."""

    matched: NDArray[np.int64]
    selected: NDArray[np.int64]


@dataclass(frozen=True)
class Contents:
    funnel: tuple[Step, ...]
    refused_captions: Mapping[str, int]
    refused_images: Mapping[str, int]
    makers: Makers
    caption_words: Mapping[int, int]
    """How many captions have how many words."""
    counts: ConceptCounts | None
    gallery: tuple[Picture, ...]
    curve: pa.Table | None
    results: tuple[Mapping[str, Any], ...]
    per_class: pa.Table | None


def read_contents(run: RunDirectory) -> Contents:
    """Read what is there. Tables of captions and images are streamed column by column."""
    gallery = _gallery(run)
    return Contents(
        funnel=tuple(_funnel(run)),
        refused_captions=_refused(run, "captions"),
        refused_images=_refused(run, "images"),
        makers=_makers(run),
        caption_words=_caption_words(run),
        counts=_counts(run),
        gallery=gallery,
        curve=_table(run, "train", "curve.parquet"),
        results=tuple(_rows(_table(run, "eval", "results.parquet"))),
        per_class=_table(run, "eval", "per_class.parquet"),
    )


def _funnel(run: RunDirectory) -> Iterable[Step]:
    concepts = sum(manifest.rows for manifest in run.manifests("concepts"))
    if concepts:
        yield Step("Concepts in the bank", concepts)
    kept = sum(manifest.rows for manifest in run.manifests("captions"))
    written = kept + sum(_refused(run, "captions").values())
    if not written:
        return
    yield Step("Captions written", written, 1.0)
    yield Step("Passed cleaning", kept, kept / written)
    for manifest in run.manifests("balance"):
        distinct = kept - int(manifest.notes.get("duplicates", 0))
        matched = distinct - int(manifest.notes.get("unmatched", 0))
        yield Step("Distinct", distinct, distinct / written)
        yield Step("Name a concept of the bank", matched, matched / written)
        for split, label in (("train", "Selected for training"), ("heldout", "Held out for evaluation")):
            count = sum(pq.read_metadata(path).num_rows for path in _files(run, "balance", f"{split}/"))
            yield Step(label, count, count / written)
    for split, label in (("train", "Images to train on"), ("heldout", "Images to evaluate on")):
        shards = [one for one in run.manifests("images") if one.shard.startswith(f"{split}/")]
        if shards:
            images = sum(manifest.rows for manifest in shards)
            yield Step(label, images, note=f"{len(shards)} shard{'s' if len(shards) > 1 else ''}")


def _refused(run: RunDirectory, stage: str) -> dict[str, int]:
    """Rows refused by reason, the most frequent first."""
    total: dict[str, int] = {}
    for manifest in run.manifests(stage):
        for reason, count in manifest.rejected.items():
            total[reason] = total.get(reason, 0) + count
    return dict(sorted(total.items(), key=lambda item: (-item[1], item[0])))


def _makers(run: RunDirectory) -> Makers:
    """Read off the first caption and the first image: one recipe has one model of each."""
    llm = None
    for path in _caption_files(run):
        if models := pq.read_table(path, columns=["model"])["model"].unique().to_pylist():
            llm = str(models[0])
            break
    for path in _files(run, "images", "", ".tar"):
        with tarfile.open(path) as tar:
            for member in tar:
                handle = tar.extractfile(member) if member.name.endswith(".json") else None
                if handle is not None:
                    made = json.load(handle)
                    return Makers(llm, str(made.get("backend", "")), str(made.get("licence", "")))
    return Makers(llm, None, None)


def _caption_words(run: RunDirectory) -> dict[int, int]:
    words: dict[int, int] = {}
    for path in _caption_files(run):
        for batch in pq.ParquetFile(path).iter_batches(columns=["text"]):
            lengths = pc.list_value_length(pc.utf8_split_whitespace(pc.utf8_trim_whitespace(batch["text"])))
            for entry in pc.value_counts(lengths).to_pylist():
                length = int(entry["values"])
                words[length] = words.get(length, 0) + int(entry["counts"])
    return words


def _counts(run: RunDirectory) -> ConceptCounts | None:
    table = _table(run, "balance", "counts.parquet")
    if table is None:
        return None
    return ConceptCounts(table["matched"].to_numpy(), table["selected"].to_numpy())


def _gallery(run: RunDirectory) -> tuple[Picture, ...]:
    """Captions chosen by their content, so that the same run shows the same ones, with their first images."""
    sidecars = _files(run, "images", "train/", ".parquet")
    chosen = _chosen_captions(sidecars)
    if not chosen:
        return ()
    wanted = pa.array(chosen, pa.uint64())
    jpegs: dict[int, list[tuple[int, str]]] = {caption: [] for caption in chosen}
    for path in sidecars:
        columns = ["caption_id", "variant", "offset", "length"]
        found = pq.read_table(path, columns=columns, filters=pc.field("caption_id").isin(wanted)).to_pylist()
        if not found:
            continue
        with path.with_suffix(".tar").open("rb") as tar:
            for row in found:
                tar.seek(row["offset"])
                jpeg = base64.b64encode(tar.read(row["length"])).decode()
                jpegs[row["caption_id"]].append((row["variant"], jpeg))
    rows = _where(_files(run, "balance", "train/"), "caption_id", wanted)
    texts = {row["caption_id"]: row for row in rows}
    ids = sorted({one for row in rows for one in row["concept_ids"]})
    names = {
        row["concept_id"]: row["text"]
        for row in _where(_files(run, "concepts", ""), "concept_id", pa.array(ids, pa.int32()))
    }
    return tuple(
        Picture(
            texts[caption]["text"],
            tuple(names[one] for one in texts[caption]["concept_ids"] if one in names),
            tuple(jpeg for _, jpeg in sorted(jpegs[caption])[:GALLERY_VARIANTS]),
        )
        for caption in chosen
        if caption in texts
    )


def _chosen_captions(sidecars: Sequence[Path]) -> list[int]:
    best = np.empty(0, dtype=np.uint64)
    for path in sidecars:
        ids = pq.read_table(path, columns=["caption_id"])["caption_id"].to_numpy()
        best = np.unique(np.concatenate([best, ids]))
        order = np.argsort(keys.seeds(best, stream="report.gallery", seed=0))
        best = best[order[:GALLERY_CAPTIONS]]
    return [int(caption) for caption in best]


def _where(paths: Sequence[Path], column: str, values: pa.Array) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for path in paths:
        rows += pq.read_table(path, filters=pc.field(column).isin(values)).to_pylist()
    return rows


def _caption_files(run: RunDirectory) -> list[Path]:
    return [path for path in _files(run, "captions", "") if path.parent.name != "rejected"]


def _files(run: RunDirectory, stage: str, prefix: str, suffix: str = ".parquet") -> list[Path]:
    """The files of whole shards, in order."""
    found = {
        entry.path
        for manifest in run.manifests(stage)
        for entry in manifest.files
        if entry.path.startswith(prefix) and entry.path.endswith(suffix)
    }
    return [run.file(stage, path) for path in sorted(found)]


def _table(run: RunDirectory, stage: str, path: str) -> pa.Table | None:
    found = _files(run, stage, path, "")
    return pq.read_table(found[0]) if found else None


def _rows(table: pa.Table | None) -> list[dict[str, Any]]:
    return [] if table is None else table.to_pylist()
