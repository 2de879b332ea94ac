from pathlib import Path

import pytest

import drawn_run
from synthclip.recipe import Recipe, load_recipe
from synthclip.run.store import RunDirectory


@pytest.fixture
def recipe() -> Recipe:
    return load_recipe("demo", ["images.per_caption=4"])


@pytest.fixture
def textgen_run(tmp_path: Path) -> RunDirectory:
    return drawn_run.textgen_run(tmp_path / "run")


@pytest.fixture
def whole_run(textgen_run: RunDirectory) -> RunDirectory:
    return drawn_run.finish(textgen_run)


@pytest.fixture
def judged_run(whole_run: RunDirectory) -> RunDirectory:
    drawn_run.judge(whole_run)
    return whole_run
