"""What a report shows, read from a run directory. Whatever is not there yet is None or empty."""

import base64
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
from synthclip.evaluation.paper import METRICS, delta_mtl, paper_rows, row_of
from synthclip.evaluation.results import ON_PUBLIC_DATA, key_of
from synthclip.interop.origins import Origins, read_origins
from synthclip.recipe.shareable import shareable
from synthclip.recipe.training import HELDOUT
from synthclip.run.durable import rejected_by_reason
from synthclip.run.store import Manifest, RunDirectory
from synthclip.samples import images
from synthclip.textgen.concepts import read_bank

GALLERY_CAPTIONS = 12
GALLERY_VARIANTS = 2
FINDINGS = 6
EXAMPLES = 2
"""Texts shown of each reason for a refusal."""
EXAMPLE_SHARDS = 20
"""Shards that these are looked for in."""
OURS = "this model"
CLASSES_SHOWN = 10
MIN_CLASS_IMAGES = 5
"""Below it a class is not ranked among the best or worst."""


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
class Bars:
    """One of the paper's tasks: each model's mean in percent over the data sets at hand, highest first."""

    task: str
    datasets: tuple[str, ...]
    models: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Classes:
    """Zero-shot by class on one data set."""

    dataset: str
    accuracy: tuple[float, ...]
    """Top-1 of every class that was tested, highest first."""
    best: tuple[Mapping[str, Any], ...]
    """Rows of `schema.EVAL_CLASS` of classes with MIN_CLASS_IMAGES or more, highest first; may be empty."""
    worst: tuple[Mapping[str, Any], ...]
    """The same from the other end, lowest first."""
    ranked: int
    """How many classes have MIN_CLASS_IMAGES images or more."""
    untested: int | None = None
    """How many have none; None where that is not known."""


@dataclass(frozen=True)
class Suites:
    """What `synthclip eval RUN --suite …` found, beside the same figures of the paper's models.

    Images of public data sets stay out: a report is made to be passed on, and they are not ours to pass on.
    """

    results: tuple[Mapping[str, Any], ...]
    """Rows of `schema.EVAL_RESULT`."""
    bars: tuple[Bars, ...]
    classes: tuple[Classes, ...]
    delta_mtl: tuple[tuple[str, float, bool], ...]
    """The paper's model it is taken against, its value in percent, and whether every cell is there."""
    warnings: tuple[str, ...]
    """What the evaluations warned of: why a figure is not comparable with published ones, say."""


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
        reader = _Reader(run)
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
            classes=_classes(HELDOUT, heldout, reader.rows("concepts")) if heldout else None,
            suites=read_suites(run),
        )


def read_own_results(run: RunDirectory) -> tuple[Mapping[str, Any], ...]:
    """Rows of `schema.EVAL_RESULT` on the run's own held-out data, each with the value that random weights
    reach as `untrained`, where that was taken."""
    reader = _Reader(run)
    results, untrained = (reader.table("eval", name) for name in ("results.parquet", UNTRAINED))
    values = {key_of(row): row["value"] for row in (untrained.to_pylist() if untrained else ())}
    rows = results.to_pylist() if results else []
    return tuple({**row, "untrained": values.get(key_of(row))} for row in rows)


class _Reader:
    """The files of finished shards."""

    def __init__(self, run: RunDirectory) -> None:
        self.run = run

    def rows(self, stage: str) -> int:
        return sum(manifest.rows for manifest in self.run.manifests(stage))

    def refused(self, stage: str) -> Mapping[str, int]:
        """Rows refused by reason, the most frequent first."""
        return rejected_by_reason(self.run.manifests(stage))

    def examples(self, stage: str) -> dict[str, tuple[str, ...]]:
        """The first texts refused for each reason, each once, from the first shards that refused any."""
        found: dict[str, dict[str, None]] = {reason: {} for reason in self.refused(stage)}
        refusing = [one.shard for one in self.run.manifests(stage) if one.rejected][:EXAMPLE_SHARDS]
        for path in (self.run.file(stage, f"rejected/{shard}.parquet") for shard in refusing):
            for row in (
                schema.read_table(path, columns=["text", "reason"]).to_pylist() if path.is_file() else ()
            ):
                texts = found.setdefault(row["reason"], {})
                if row["text"] and len(texts) < EXAMPLES:
                    texts[row["text"]] = None
        return {reason: tuple(texts) for reason, texts in found.items()}

    def files(self, stage: str, prefix: str = "", suffix: str = ".parquet") -> list[Path]:
        """Files by the beginning and end of their path in the stage, in order; rejects are left out."""
        paths = {entry.path for manifest in self.run.manifests(stage) for entry in manifest.files}
        return [
            self.run.file(stage, path)
            for path in sorted(paths)
            if path.startswith(prefix) and path.endswith(suffix) and not path.startswith("rejected/")
        ]

    def table(self, stage: str, path: str) -> pa.Table | None:
        found = self.files(stage, path)
        return schema.read_table(found[0]) if found else None

    def shards(self, split: str) -> list[Manifest]:
        """The manifests of a split's images."""
        return [manifest for manifest in self.run.manifests("images") if manifest.split == split]


def _funnel(reader: _Reader) -> Iterator[Step]:
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


def _caption_words(reader: _Reader) -> dict[int, int]:
    words: Counter[int] = Counter()
    for path in reader.files("captions"):
        for batch in schema.read_batches(path, ["text"]):
            lengths = pc.list_value_length(pc.utf8_split_whitespace(pc.utf8_trim_whitespace(batch["text"])))
            for entry in pc.value_counts(lengths).to_pylist():
                words[int(entry["values"])] += int(entry["counts"])
    return dict(words)


def _parameters(reader: _Reader) -> int | None:
    found = reader.files("train", "model/", ".safetensors")
    if not found:
        return None
    with found[0].open("rb") as weights:  # 8 bytes for the length of the header, which is JSON
        header = json.loads(weights.read(int.from_bytes(weights.read(8), "little")))
    shapes = [one["shape"] for name, one in header.items() if name != "__metadata__"]
    return int(sum(math.prod(shape) for shape in shapes))


def _gallery(reader: _Reader) -> tuple[Picture, ...]:
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


def _findings(reader: _Reader) -> tuple[Finding, ...]:
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


def read_suites(run: RunDirectory) -> Suites | None:
    """The evaluations of a run on public data sets; None where there is none.

    A figure that several suites have is shown once, as the last of them by name has it.
    """
    reader = _Reader(run)

    def rows(name: str) -> Iterable[dict[str, Any]]:
        for path in reader.files(ON_PUBLIC_DATA, suffix=f"/{name}"):
            yield from schema.read_table(path).to_pylist()

    results = {(row["dataset"], row["task"], row["metric"]): row for row in rows("results.parquet")}
    if not results:
        return None
    classes: dict[str, dict[int, Mapping[str, Any]]] = {}
    for row in rows("per_class.parquet"):
        classes.setdefault(row["dataset"], {})[row["class_id"]] = row
    ours = row_of(OURS, list(results.values()))
    deltas = ((name, delta_mtl(ours, row)) for name, row in paper_rows().items())
    return Suites(
        tuple(results.values()),
        tuple(_bars(ours.scores)),
        tuple(_classes(dataset, list(by_id.values())) for dataset, by_id in classes.items()),
        tuple((name, delta.value, delta.complete) for name, delta in deltas if delta is not None),
        tuple(
            str(shareable(warning))
            for manifest in reader.run.manifests(ON_PUBLIC_DATA)
            for warning in manifest.notes.get("warnings", ())
        ),
    )


def _bars(ours: Mapping[tuple[str, str], float]) -> Iterator[Bars]:
    models = {OURS: ours} | {name: row.scores for name, row in paper_rows().items()}
    for task in METRICS:
        if cells := [cell for cell in ours if cell[0] == task]:
            means = {
                name: sum(scores[cell] for cell in cells) / len(cells) for name, scores in models.items()
            }
            ranked = sorted(means.items(), key=lambda mean: -mean[1])
            yield Bars(task, tuple(dataset for _, dataset in cells), tuple(ranked))


def _classes(dataset: str, rows: Sequence[Mapping[str, Any]], total: int | None = None) -> Classes:
    """Classes of few images are not ranked: their accuracy says little. Ties go by the number of images, then
    by a hash of the name."""

    def order(row: Mapping[str, Any]) -> tuple[int, int]:
        return -row["n"], keys.seed_of(row["name"], stream="report.classes", seed=0)

    known = sorted((row for row in rows if row["n"] >= MIN_CLASS_IMAGES), key=order)
    worst = [row for row in sorted(known, key=lambda row: row["top1"])[:CLASSES_SHOWN] if row["top1"] < 1]
    best = sorted(known, key=lambda row: -row["top1"])[:CLASSES_SHOWN]
    return Classes(
        dataset,
        tuple(sorted((row["top1"] for row in rows), reverse=True)),
        tuple(best) if len(known) >= 2 * CLASSES_SHOWN else (),
        tuple(worst),
        len(known),
        None if total is None else total - len(rows),
    )
