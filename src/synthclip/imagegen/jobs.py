"""Which images a run paints: the shards of its selected captions and of its pairs of exchanged words, and the
jobs of each."""

from collections.abc import Iterator, Sequence

import pyarrow.parquet as pq

from synthclip import schema
from synthclip.imagegen.painting import Job, chosen_painter
from synthclip.keys import text_id
from synthclip.recipe import Recipe
from synthclip.recipe.backends import BackendConfig
from synthclip.run.durable import FileEntry
from synthclip.run.engine import Shard
from synthclip.run.store import Manifest, RunDirectory
from synthclip.textgen.composition import Pair, exchanged_pairs
from synthclip.textgen.concepts import read_bank


def split_of(shard: Shard) -> str:
    """One of `schema.IMAGE_SPLITS`."""
    return shard.name.partition("/")[0]


def painter_of(recipe: Recipe, split: str) -> BackendConfig:
    heldout = recipe.images.heldout_painter
    return heldout if split == schema.HELDOUT_PAINTER and heldout else recipe.text_to_image


def caption_shards(recipe: Recipe, run: RunDirectory, balance: Manifest) -> Iterator[Shard]:
    """Those of the selected captions, split by split."""
    images = recipe.images
    for split in (*schema.SPLITS, schema.HELDOUT_PAINTER):
        if split == schema.HELDOUT_PAINTER and images.heldout_painter is None:
            continue
        inputs = painter_of(recipe, split).inputs() | images.inputs()
        variants = images.per_caption if split == "train" else images.heldout_per_caption
        most = images.shard_captions(variants)
        number = 0
        for entry, rows in _files(recipe, run, balance, "train" if split == "train" else "heldout"):
            # Tars of one file are of even size, unless the recipe says how many captions each has.
            step = most if images.captions_per_shard else -(-rows // max(1, -(-rows // most)))
            for start in range(0, rows, step or 1):
                stop = min(start + step, rows)
                yield Shard(
                    f"{split}/{number:05d}",
                    inputs={entry.path: entry.sha256, "rows": f"{start}:{stop}", **inputs},
                    payload={"path": entry.path, "start": start, "stop": stop, "variants": variants},
                    size=(stop - start) * variants,
                )
                number += 1


def _files(
    recipe: Recipe, run: RunDirectory, balance: Manifest, split: str
) -> Iterator[tuple[FileEntry, int]]:
    """The files of the selected captions, and how many each holds: all but the last one are full."""
    files = [
        entry
        for entry in balance.files
        if entry.path.startswith(f"{split}/") and entry.path.endswith(".parquet")
    ]
    total, full = balance.notes.get(split), recipe.balance.captions_per_shard
    for number, entry in enumerate(files):
        if total is not None and len(files) == -(-total // full):
            yield entry, min(full, total - number * full)
        else:  # written by other means
            yield entry, pq.read_metadata(run.file("balance", entry.path)).num_rows


def exchanged_shards(recipe: Recipe, concepts: Sequence[Manifest]) -> Iterator[Shard]:
    """Those of the pairs of exchanged words, to evaluate on in one, and to train on."""
    images = recipe.images
    bank = {f"concepts/{entry.path}": entry.sha256 for manifest in concepts for entry in manifest.files}
    inputs = bank | recipe.text_to_image.inputs() | images.inputs()
    if images.composition:
        payload = {"start": 0, "stop": images.composition, "variants": 1}
        yield Shard(f"{schema.COMPOSITION}/00000", inputs, payload, size=2 * images.composition)
    step = max(1, images.shard_captions(images.per_caption) // 2)
    for number, start in enumerate(range(0, images.exchanged, step)):
        stop = min(start + step, images.exchanged)
        payload = {"start": start, "stop": stop, "variants": images.per_caption}
        yield Shard(
            f"{schema.EXCHANGED}/{number:05d}",
            inputs | {"pairs": f"{start}:{stop}"},
            payload,
            size=2 * (stop - start) * images.per_caption,
        )


def jobs_of(recipe: Recipe, run: RunDirectory, shard: Shard) -> tuple[list[Job], list[Job]]:
    """The images of a shard: those to paint, and those that the held-out painter is known not to draw."""
    if split_of(shard) in (schema.COMPOSITION, schema.EXCHANGED):
        return _exchanged_jobs(recipe, run, shard), []
    return _caption_jobs(recipe, run, shard)


def _caption_jobs(recipe: Recipe, run: RunDirectory, shard: Shard) -> tuple[list[Job], list[Job]]:
    table = schema.read_table(run.file("balance", shard.payload["path"]))
    part = table.slice(shard.payload["start"], shard.payload["stop"] - shard.payload["start"])
    jobs: list[Job] = []
    undrawable: list[Job] = []
    split = split_of(shard)
    painter, unseen = painter_of(recipe, split), split == schema.HELDOUT_PAINTER
    # Numbered after the others, so that no two images of a run share a key.
    first = recipe.images.heldout_per_caption if unseen else 0
    for row in part.to_pylist():
        able = [at for at, one in enumerate(painter.members) if not one.undrawable([row["text"]])]
        for variant in range(first, first + shard.payload["variants"]):
            by = chosen_painter(row["caption_id"], variant, painter.shares, able, recipe.seed)
            concept_ids = tuple(row["concept_ids"])
            job = Job(row["caption_id"], row["text"], concept_ids, variant, recipe.seed, painter=by)
            (undrawable if unseen and not able else jobs).append(job)
    return jobs, undrawable


def _exchanged_jobs(recipe: Recipe, run: RunDirectory, shard: Shard) -> list[Job]:
    """Both images of every pair of captions: from one seed, by one painter."""
    painter, names = recipe.text_to_image, read_bank(run)
    number = {name: at for at, name in enumerate(names)}
    to_evaluate = split_of(shard) == schema.COMPOSITION
    pairs = composition_pairs(recipe, names) if to_evaluate else training_pairs(recipe, names)
    jobs: dict[str, Job] = {}
    for pair in pairs[shard.payload["start"] : shard.payload["stop"]]:
        said, first = (pair.caption, pair.exchanged), text_id(pair.caption)
        able = [at for at, one in enumerate(painter.members) if not one.undrawable(said)]
        # Without concepts, no pair is masked or given a prompt in training: only its words differ.
        concept_ids = tuple(sorted(number[name] for name in pair.things)) if to_evaluate else ()
        for variant in range(shard.payload["variants"]):
            by = chosen_painter(first, variant, painter.shares, able, recipe.seed)
            for text in said:
                one = Job(text_id(text), text, concept_ids, variant, recipe.seed, 0, by, seed_id=first)
                jobs.setdefault(one.key, one)
    return list(jobs.values())


def composition_pairs(recipe: Recipe, names: Sequence[str]) -> list[Pair]:
    """The pairs of captions of `images.composition`, over the concepts that the painters draw."""
    return exchanged_pairs(_drawable(recipe, names), recipe.images.composition, recipe.seed)


def training_pairs(recipe: Recipe, names: Sequence[str]) -> list[Pair]:
    """The pairs of captions of `images.exchanged`, as many as are in no pair of `images.composition`."""
    able = _drawable(recipe, names)
    evaluated = {text for pair in composition_pairs(recipe, names) for text in (pair.caption, pair.exchanged)}
    pairs = exchanged_pairs(able, recipe.images.exchanged, recipe.seed, schema.EXCHANGED)
    return [pair for pair in pairs if evaluated.isdisjoint((pair.caption, pair.exchanged))]


def _drawable(recipe: Recipe, names: Sequence[str]) -> list[str]:
    undrawable = set(recipe.text_to_image.undrawable(names))
    return [name for name in names if name not in undrawable]
