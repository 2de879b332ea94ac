"""A run's images as captions, seeds and models: a few GB where 30 million pictures are.

`imagegen/seeds.py` says what the files are, and paints them again.
"""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import yaml

from synthclip import schema
from synthclip.errors import SynthClipError
from synthclip.imagegen.seeds import BANK_FILE, FORMAT, PARTS, SEEDS_FILE, checksum, versions
from synthclip.interop.origins import IMPORTED, read_origins
from synthclip.keys import digest
from synthclip.recipe import RECIPE_FILE, Recipe, inspect_recipe
from synthclip.recipe.backends import backend_config
from synthclip.recipe.engine import EngineConfig
from synthclip.recipe.shareable import shareable
from synthclip.run.durable import Manifest, seal
from synthclip.run.engine import Shard, Tick
from synthclip.run.pipeline import STAGES, refuse_foreign, update
from synthclip.run.progress import Console
from synthclip.run.stage import Stage
from synthclip.run.store import Outcome, RunDirectory, ShardWriter
from synthclip.samples import images, metadata
from synthclip.samples.pictures import decode, perceptual_hash
from synthclip.textgen.concepts import read_bank

_PAINTS = ("synthclip", "numpy", "opencv-python-headless", "simplejpeg")
"""The packages that every picture goes through; those of its model are added."""
_JUDGING = ("filters", "retries", "vision")
"""Keys of `images` that decided which picture was kept: its seed says that already."""
_REVISION = re.compile(r"@([0-9a-f]{40})\b")


def export_seeds(path: Path, out: Path, console: Console | None = None) -> int:
    """Write the seeds of a run's images into `out`; returns of how many.

    Called again after a kill it goes on where it stopped, and after the run has changed it writes the parts
    that differ. Raises SynthClipError where the run holds no images, did not paint them, or is damaged.
    """
    source = RunDirectory(path)
    source.check_version()
    with source.cached_manifests():
        made, manifests = source.stage_values("images"), source.manifests("images")
        if not any(one.rows for one in manifests):
            raise SynthClipError(f"{path}: holds no images: run `synthclip images` first")
        if made["images"].get("imported"):
            raise SynthClipError(f"{path}: its images were imported, so no seed paints them again")
        if out.resolve() == path.resolve() or any((out / stage).exists() for stage in STAGES):
            raise SynthClipError(f"{out}: holds a run: choose another folder")
        recipe = inspect_recipe(path)
        # Of a name of its own, so that what is painted again is never taken for the run itself.
        recipe = recipe.model_copy(update={"name": f"{recipe.name[:90]}.seeds"})
        directory = RunDirectory(out)
        refuse_foreign(directory, recipe)
        engine = recipe.engine if recipe.engine.kind == "local" else EngineConfig()
        stage = _Export(recipe.model_copy(update={"engine": engine}), directory)
        stage.asked = list(_shards(source, manifests, made))
        origins = read_origins(source)
    with directory.lock(), directory.cached_manifests():
        (out / SEEDS_FILE).unlink(missing_ok=True)
        parts = update(stage, console or Console())
        bank = read_bank(source) if source.manifests("concepts") else None
        if bank is not None:
            directory.write_json(BANK_FILE, bank)
        painters = _painters(made, parts)
        types = {one.name: one.source_type for one in origins.generators}
        for one in (one for members in painters.values() for one in members):
            one["digital_source_type"] = types.get(one["name"])
        directory.write_text(RECIPE_FILE, _recipe(recipe, made, painters))
        inspect_recipe(out)
        header = {"captions_by": [*origins.llms, *[IMPORTED] * origins.captions_imported]}
        header |= _header(recipe.name, made, painters, parts)
        directory.write_text(SEEDS_FILE, seal(header))
    return sum(one.rows for one in parts)


class _Export(Stage):
    """A shard is a shard of images. What is made follows from their files alone."""

    name: ClassVar[str] = PARTS
    reads = ()
    sections: ClassVar[tuple[str, ...]] = ()
    asked: Sequence[Shard] = ()

    def shards(self) -> Sequence[Shard]:
        return self.asked

    def make(self, shard: Shard, writer: ShardWriter, tick: Tick) -> Outcome:
        sidecar, painters = Path(shard.payload["sidecar"]), shard.payload["painters"]
        about: dict[str, tuple[int, int]] = {}
        used: dict[str, list[str]] = {}
        for _, one in metadata(sidecar.with_suffix(".tar")):
            if one["text_to_image"] not in painters:
                raise SynthClipError(
                    f"{sidecar}: image {one['key']} was painted with other values of text_to_image than the "
                    "stage was made with: run `synthclip images` again"
                )
            painter = painters.index(one["text_to_image"])
            about[one["key"]] = one["attempt"], painter
            used[str(painter)] = [one["backend"], one["licence"]]
        rows: list[dict[str, Any]] = []
        for row in images([sidecar], ["text", "concept_ids", "variant", "seed", "sha256"]):
            row["attempt"], row["painter"] = about[row["key"]]
            row["perceptual_hash"] = int(perceptual_hash(decode(row["jpeg"])))
            row = {name: row[name] for name in schema.SEED.names if name != "crc32"}
            rows.append({**row, "crc32": checksum(row)})
            tick(1)
        writer.rows(f"{shard.name}.parquet", schema.SEED, rows)
        return Outcome(len(rows), notes={"painters": used})


def _shards(source: RunDirectory, manifests: Sequence[Manifest], made: dict[str, Any]) -> Iterator[Shard]:
    for one in manifests:
        if one.rows:
            painters = _members(_painted_by(made, one.split))
            inputs = {entry.path: entry.sha256 for entry in one.files}
            inputs["painters"] = digest(json.dumps(painters, sort_keys=True))
            sidecar = source.file("images", f"{one.shard}.parquet").resolve()
            yield Shard(one.shard, inputs, {"sidecar": str(sidecar), "painters": painters}, one.rows)


def _painted_by(made: dict[str, Any], split: str) -> dict[str, Any]:
    heldout = made["images"].get(schema.HELDOUT_PAINTER)
    painter: dict[str, Any] = (
        heldout if split == schema.HELDOUT_PAINTER and heldout else made["text_to_image"]
    )
    return painter


def _members(painter: dict[str, Any]) -> list[dict[str, Any]]:
    """The values of each model that a section's `results` name."""
    return list(painter["painters"]) if painter["backend"] == "several" else [painter]


def _painters(made: dict[str, Any], parts: Sequence[Manifest]) -> dict[str, list[dict[str, Any]]]:
    """`name`, `licence`, `values`, `inputs` and `libraries` of the models, under a split that they painted.

    A model of the hub is pinned to the revision that painted.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for split in ("train", schema.HELDOUT_PAINTER):
        if split == "train" or made["images"].get(split):
            own = [one for one in parts if (one.split == schema.HELDOUT_PAINTER) == (split != "train")]
            used = {at: said for one in own for at, said in one.notes["painters"].items()}
            found[split] = []
            for at, values in enumerate(_members(_painted_by(made, split))):
                name, licence = used.get(str(at), (None, None))
                revision = _REVISION.search(name or "")
                pinned = {"revision": revision[1]} if revision and "revision" in values else {}
                found[split].append(
                    {
                        "name": shareable(name),
                        "licence": licence,
                        "values": shareable({**values, **pinned}),
                        **_known(values),
                    }
                )
    return found


def _known(values: dict[str, Any]) -> dict[str, Any]:
    """Digests of a model's local files, and versions of the packages that run it; empty where they are not
    here any more."""
    try:
        config = backend_config("t2i", values, trust=False)
        return {"inputs": config.inputs(), "libraries": versions(config.needs)}
    except (SynthClipError, ValueError):
        return {"inputs": {}, "libraries": {}}


def _recipe(recipe: Recipe, made: dict[str, Any], painters: dict[str, list[dict[str, Any]]]) -> str:
    """A recipe that paints, trains and evaluates as the run does, and takes its captions from the seeds."""

    def section(split: str) -> Any:
        values = [one["values"] for one in painters[split]]
        weights = _painted_by(made, split).get("weights", [1.0])
        return [{**one, "weight": weight} for one, weight in zip(values, weights, strict=True)]

    painted = {key: value for key, value in made["images"].items() if key not in _JUDGING}
    painted |= {"filters": {"min_contrast": 0}, "retries": 0}
    if schema.HELDOUT_PAINTER in painters:
        painted[schema.HELDOUT_PAINTER] = section(schema.HELDOUT_PAINTER)
    training = recipe.training.model_dump(mode="json", exclude={"sources", "init", "eval"})
    values = {
        "name": recipe.name,
        "seed": made["seed"],
        "concepts": {"sources": [{"kind": "json", "path": BANK_FILE}], "max_chars": 10_000},
        "llm": {"backend": "llamacpp"},
        "captions": {"imported": PARTS, "templates": [{"name": "none", "text": "{{ concept }}"}]},
        "text_to_image": section("train"),
        "images": painted,
        "model": recipe.model.model_dump(mode="json"),
        "training": shareable(training),
        "evaluation": shareable(recipe.evaluation.model_dump(mode="json")),
    }
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=100)
    return f"# Paints the pictures of {SEEDS_FILE} again: synthclip materialize DIR --out RUN\n{text}"


def _header(
    name: str, made: dict[str, Any], painters: dict[str, list[dict[str, Any]]], parts: Sequence[Manifest]
) -> dict[str, Any]:
    libraries = versions(_PAINTS)
    for one in (one for members in painters.values() for one in members):
        libraries |= one.pop("libraries")
    return {
        "format": FORMAT,
        "name": name,
        "prompt": "the caption, as it is in `text`",
        "painters": painters,
        "seed": made["seed"],
        "encoder": {
            "format": "JPEG, chroma subsampled 4:2:0",
            "size_px": made["images"]["size_px"],
            "quality": made["images"]["jpeg_quality"],
        },
        "filters": shareable(made["images"]["filters"]),
        "libraries": libraries,
        "parts": [
            {
                "path": f"{PARTS}/{entry.path}",
                "rows": one.rows,
                "size_bytes": entry.size_bytes,
                "sha256": entry.sha256,
            }
            for one in parts
            for entry in one.files
        ],
    }
