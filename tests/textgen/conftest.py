"""Runs of the text stages on a model that answers at once."""

from pathlib import Path

import pytest
from text_runs import RECIPE, TEXT_STAGES, RunText

from synthclip.recipe import load_recipe
from synthclip.run.pipeline import run
from synthclip.run.progress import Console
from synthclip.run.store import RunDirectory


@pytest.fixture
def run_text(tmp_path: Path) -> RunText:
    """Run the text stages with overrides, into a folder named `out`."""
    recipe = tmp_path / "words.yaml"
    recipe.write_text(RECIPE)

    def start(*overrides: str, out: str = "run", stages: tuple[str, ...] = TEXT_STAGES) -> RunDirectory:
        with (tmp_path / "log").open("a") as log:
            loaded = load_recipe(recipe, overrides, trust=True)
            return run(loaded, tmp_path / out, stages=stages, console=Console(log))

    return start
