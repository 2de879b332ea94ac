"""What a report shows, read from a run directory. Whatever is not there yet is None or empty."""

import json
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from synthclip.report.pictures import Finding, Picture, files, findings, gallery
from synthclip.report.suites import Suites, read_suites
from synthclip.run.store import RunDirectory


@dataclass(frozen=True)
class Step:
    """One step of the funnel. `share` is of the captions written; None for what is no caption."""

    label: str
    count: int
    share: float | None = None
    note: str = ""


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
    findings: tuple[Finding, ...]
    curve: pa.Table | None
    figures: pa.Table | None
    """Those taken while the model was trained."""
    results: tuple[Mapping[str, Any], ...]
    per_class: pa.Table | None
    suites: Suites | None


def read_contents(run: RunDirectory) -> Contents:
    """Read what is there. Tables of captions and images are streamed column by column."""
    return Contents(
        funnel=tuple(_funnel(run)),
        refused_captions=_refused(run, "captions"),
        refused_images=_refused(run, "images"),
        makers=_makers(run),
        caption_words=_caption_words(run),
        counts=_counts(run),
        gallery=gallery(run),
        findings=findings(run),
        curve=_table(run, "train", "curve.parquet"),
        figures=_table(run, "train", "figures.parquet"),
        results=tuple(_rows(_table(run, "eval", "results.parquet"))),
        per_class=_table(run, "eval", "per_class.parquet"),
        suites=read_suites(run),
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
            count = sum(pq.read_metadata(path).num_rows for path in files(run, "balance", f"{split}/"))
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
    for path in files(run, "images", "", ".tar"):
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


def _caption_files(run: RunDirectory) -> list[Path]:
    return [path for path in files(run, "captions", "") if path.parent.name != "rejected"]


def _table(run: RunDirectory, stage: str, path: str) -> pa.Table | None:
    found = files(run, stage, path, "")
    return pq.read_table(found[0]) if found else None


def _rows(table: pa.Table | None) -> list[dict[str, Any]]:
    return [] if table is None else table.to_pylist()
