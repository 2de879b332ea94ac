"""Fixtures of the backends' tests."""

from pathlib import Path

import pytest
from tiny_pipeline import save_tiny_pipeline


@pytest.fixture(scope="session")
def tiny_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_pipeline(tmp_path_factory.mktemp("models") / "tiny")
