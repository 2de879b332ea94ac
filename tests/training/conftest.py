"""Fixtures of the training tests."""

from pathlib import Path

import pytest
from shape_runs import TINY, write_images

from synthclip.models import open_clip
from synthclip.recipe import Recipe, load_recipe
from synthclip.run.store import RunDirectory

assert open_clip, "imported here first, so that tests can import it and timm themselves"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where what is derived from data files is kept."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def tiny_recipe() -> Recipe:
    return load_recipe("demo", TINY)


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """A run with 96 images in two shards."""
    directory = RunDirectory(tmp_path / "run")
    write_images(directory, 96)
    return directory
