"""Fixtures of the backends' tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from images_server import ImagesServer
from tiny_pipeline import save_tiny_pipeline


@pytest.fixture(scope="session")
def tiny_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_pipeline(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def images_url() -> Iterator[str]:
    with ImagesServer() as server:
        yield server.url
