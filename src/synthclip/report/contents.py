"""What a report shows, read from a run directory. Whatever is not there yet is None or empty."""

import base64
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from synthclip import keys, schema
from synthclip.evaluation import UNTRAINED
from synthclip.evaluation.results import key_of
from synthclip.interop.origins import Origins, read_origins
from synthclip.recipe.training import HELDOUT
from synthclip.report.reader import Reader
from synthclip.report.suites import Classes, Suites, classes_of, read_suites
from synthclip.run.store import Manifest, RunDirectory
from synthclip.samples import images
from synthclip.textgen.concepts import read_bank

GALLERY_CAPTIONS = 12
GALLERY_VARIANTS = 2
FINDINGS = 6


@dataclass(frozen=True)
class Step:
    """One step of the funnel. `share` is of the captions written; None for what is no caption."""

    label: str
    count: int
    share: float | None = None
    note: str = ""


@dataclass(frozen=True)
class ConceptCounts:
    """Captions of each concept before and after balancing, int64 [N]."""

    matched: NDArray[np.int64]
    selected: NDArray[np.int64]


@dataclass(frozen=True)
class Picture:
    """One caption, the concepts in it, and its images: their keys, and JPEG in base64."""

    caption: str
    concepts: tuple[str, ...]
    images: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Finding:
    """A held-out caption and its nearest images: key, JPEG in base64, and whether it was made for it."""

    caption: str
    images: tuple[tuple[str, str, bool], ...]


@dataclass(frozen=True)
class Contents:
    funnel: tuple[Step, ...]
    refused_captions: Mapping[str, int]
    refused_images: Mapping[str, int]
    captions_refused: Mapping[str, tuple[str, ...]]
    """Some of the texts refused, by reason."""
    images_refused: Mapping[str, tuple[str, ...]]
    """Some of the captions whose images were refused, by reason."""
    origins: Origins
    caption_words: Mapping[int, int]
    """How many captions have how many words."""
    counts: ConceptCounts | None
    gallery: tuple[Picture, ...]
    findings: tuple[Finding, ...]
    curve: pa.Table | None
    figures: pa.Table | None
    """Those taken while the model was trained."""
    parameters: int | None
    """Numbers in the weights of the model."""
    results: tuple[Mapping[str, Any], ...]
    """Rows of `schema.EVAL_RESULT`, each with what the architecture reaches `untrained`."""
    classes: Classes | None
    """Zero-shot by class on the held-out images."""
    suites: Suites | None


def read_contents(run: RunDirectory) -> Contents:
    """Read what is there. Tables of captions and images are streamed column by column."""
    with run.cached_manifests():
        reader = Reader(run)
        counts = reader.table("balance", "counts.parquet")
        per_class = reader.table("eval", "per_class.parquet")
        heldout = [row for row in per_class.to_pylist() if row["dataset"] == HELDOUT] if per_class else []
        return Contents(
            funnel=tuple(_funnel(reader)),
            refused_captions=reader.refused("captions"),
            refused_images=reader.refused("images"),
            captions_refused=reader.examples("captions"),
            images_refused=reader.examples("images"),
            origins=read_origins(run),
            caption_words=_caption_words(reader),
            counts=ConceptCounts(counts["matched"].to_numpy(), counts["selected"].to_numpy())
            if counts
            else None,
            gallery=_gallery(reader),
            findings=_findings(reader),
            curve=reader.table("train", "curve.parquet"),
            figures=reader.table("train", "figures.parquet"),
            parameters=_parameters(reader),
            results=read_own_results(run),
            classes=classes_of(HELDOUT, heldout, reader.rows("concepts")) if heldout else None,
            suites=read_suites(run),
        )


def read_own_results(run: RunDirectory) -> tuple[Mapping[str, Any], ...]:
    """Rows of `schema.EVAL_RESULT` on the run's own held-out data, each with the value that random weights
    reach as `untrained`, where that was taken."""
    reader = Reader(run)
    results, untrained = (reader.table("eval", name) for name in ("results.parquet", UNTRAINED))
    values = {key_of(row): row["value"] for row in (untrained.to_pylist() if untrained else ())}
    rows = results.to_pylist() if results else []
    return tuple({**row, "untrained": values.get(key_of(row))} for row in rows)


def _funnel(reader: Reader) -> Iterator[Step]:
    if concepts := reader.rows("concepts"):
        yield Step("Concepts in the bank", concepts)
    kept = reader.rows("captions")
    written = kept + sum(reader.refused("captions").values())
    if not written:
        return
    yield Step("Captions written", written, 1.0)
    yield Step("Passed cleaning", kept, kept / written)
    for manifest in reader.run.manifests("balance"):
        distinct = kept - int(manifest.notes.get("duplicates", 0))
        matched = distinct - int(manifest.notes.get("unmatched", 0))
        yield Step("Distinct", distinct, distinct / written)
        yield Step("Name a concept of the bank", matched, matched / written)
        for split, label in (("train", "Selected for training"), ("heldout", "Held out for evaluation")):
            count = sum(pq.read_metadata(path).num_rows for path in reader.files("balance", f"{split}/"))
            yield Step(label, count, count / written)
    for split, label in (
        ("train", "Images to train on"),
        ("heldout", "Images to evaluate on"),
        (schema.HELDOUT_PAINTER, "Images of a painter kept from training"),
        (schema.EXCHANGED, "Images of captions of exchanged words, to train on"),
        (schema.COMPOSITION, "Images of such captions, to evaluate on"),
    ):
        if shards := reader.shards(split):
            count = sum(manifest.rows for manifest in shards)
            notes = [f"{len(shards)} shard{'s' if len(shards) > 1 else ''}", *_looked_at(shards)]
            yield Step(label, count, note="; ".join(notes))


def _looked_at(shards: Sequence[Manifest]) -> Iterator[str]:
    """What a vision model found in images, over all shards."""
    found = [notes for one in shards if (notes := one.notes.get("vision"))]
    if judged := sum(one.get("judged", 0) for one in found):
        scores = (one["judge_score"] * one["judged"] for one in found if one.get("judged"))
        yield f"{sum(scores) / judged:.0%} of what the captions of {judged:,} say is shown"
    if captioned := sum(one.get("recaptioned", 0) for one in found):
        yield f"{captioned:,} have a second caption"
    if unusable := sum(sum(one["unusable"].values()) for one in found):
        yield f"{unusable:,} answers of the vision model could not be used"


def _caption_words(reader: Reader) -> dict[int, int]:
    words: Counter[int] = Counter()
    for path in reader.files("captions"):
        for batch in schema.read_batches(path, ["text"]):
            lengths = pc.list_value_length(pc.utf8_split_whitespace(pc.utf8_trim_whitespace(batch["text"])))
            for entry in pc.value_counts(lengths).to_pylist():
                words[int(entry["values"])] += int(entry["counts"])
    return dict(words)


def _parameters(reader: Reader) -> int | None:
    found = reader.files("train", "model/", ".safetensors")
    if not found:
        return None
    with found[0].open("rb") as weights:  # 8 bytes for the length of the header, which is JSON
        header = json.loads(weights.read(int.from_bytes(weights.read(8), "little")))
    shapes = [one["shape"] for name, one in header.items() if name != "__metadata__"]
    return int(sum(math.prod(shape) for shape in shapes))


def _gallery(reader: Reader) -> tuple[Picture, ...]:
    """Captions drawn by their content, so that the same run shows the same ones, with their first images."""
    sidecars = reader.files("images", "train/")
    drawn = np.empty(0, dtype=np.uint64)
    for path in sidecars:
        ids = schema.read_table(path, columns=["caption_id"])["caption_id"].to_numpy()
        drawn = np.unique(np.concatenate([drawn, ids]))
        drawn = drawn[np.argsort(keys.seeds(drawn, stream="report.gallery", seed=0))[:GALLERY_CAPTIONS]]
    chosen = pa.array(drawn, pa.uint64())
    painted: dict[int, list[dict[str, Any]]] = {caption: [] for caption in chosen.to_pylist()}
    for row in sorted(_jpegs(sidecars, "caption_id", chosen), key=lambda row: str(row["key"])):
        painted[row["caption_id"]].append(row)
    names = dict(enumerate(read_bank(reader.run))) if reader.run.manifests("concepts") else {}
    return tuple(
        Picture(
            rows[0]["text"],
            tuple(names[one] for one in rows[0]["concept_ids"] if one in names),
            tuple((row["key"], row["jpeg"]) for row in rows[:GALLERY_VARIANTS]),
        )
        for rows in painted.values()
    )


def _findings(reader: Reader) -> tuple[Finding, ...]:
    """The images that the trained model holds nearest to a few held-out captions."""
    nearest = reader.table("eval", "nearest.parquet")
    rows = nearest.to_pylist() if nearest else []
    wanted = pa.array(sorted({row["key"] for row in rows}), pa.string())
    jpegs = {row["key"]: row["jpeg"] for row in _jpegs(reader.files("images", "heldout/"), "key", wanted)}
    by_text: dict[str, list[tuple[str, str, bool]]] = {}
    for row in rows:
        if row["key"] in jpegs:
            by_text.setdefault(row["text"], []).append((row["key"], jpegs[row["key"]], row["right"]))
    return tuple(Finding(text, tuple(found)) for text, found in list(by_text.items())[:FINDINGS])


def _jpegs(sidecars: Sequence[Path], column: str, values: pa.Array) -> Iterator[dict[str, Any]]:
    """The images whose `column` is among the values: caption, concepts, key, and jpeg in base64."""
    for row in images(sidecars, ("caption_id", "text", "concept_ids"), pc.field(column).isin(values)):
        yield {**row, "jpeg": base64.b64encode(row["jpeg"]).decode()}
