"""A run that stands where stage images begins, and a way to run that stage."""

from collections.abc import Sequence
from pathlib import Path

from synthclip import schema
from synthclip.imagegen import Images
from synthclip.keys import text_id
from synthclip.recipe import RECIPE_FILE, Recipe, load_recipe
from synthclip.recipe.engine import EngineConfig
from synthclip.run.engine import build_engine
from synthclip.run.stage import StageLoad
from synthclip.run.store import Outcome, RunDirectory

CAPTIONS = [
    "A dog sits on a sofa.",
    "Two cats under a table.",
    "A red bicycle on the beach at sunset.",
    "An elephant next to a palm tree.",
    "A rocket above a castle at night.",
    "Nothing that could be drawn.",
    "Several penguins on the snow.",
    "A violin and a piano in a room.",
]


def selected(path: Path, train: Sequence[str], heldout: Sequence[str] = ()) -> RunDirectory:
    """A run whose stage balance is there, one file a split."""
    run = RunDirectory(path)
    with run.begin("balance", "all", "fingerprint") as writer:
        for split, captions in (("train", train), ("heldout", heldout)):
            rows = [
                {"caption_id": text_id(text), "text": text, "concept_ids": [at], "keep_probability": 1.0}
                for at, text in enumerate(captions)
            ]
            rows.sort(key=lambda row: int(str(row["caption_id"])))
            writer.rows(f"{split}/00000.parquet", schema.SELECTED, rows)
        writer.commit(Outcome(len(train) + len(heldout)))
    return run


def recipe_of(*overrides: str) -> Recipe:
    return load_recipe(
        "demo",
        [
            "text_to_image={backend: compositor, size_px: 64}",
            "images={size_px: 48, per_caption: 2}",
            *overrides,
        ],
    )


def make_images(run: RunDirectory, recipe: Recipe, workers: int = 0) -> Images:
    """Run stage images over all its shards."""
    run.write_text(RECIPE_FILE, recipe.to_yaml())
    stage = Images(recipe, run)
    engine = build_engine(EngineConfig(workers=workers))
    for _ in engine.map(StageLoad(Images, recipe, run.path), stage.shards(), stage.resources()):
        pass
    stage.finish(run.manifests("images"))
    return stage
