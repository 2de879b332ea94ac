"""Fixtures of ImageGen's tests."""

from pathlib import Path

import pytest
from image_runs import CAPTIONS, selected

from synthclip.store import RunDirectory


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return selected(tmp_path / "run", CAPTIONS[:6], CAPTIONS[6:])
