"""Fixtures of ImageGen's tests."""

from pathlib import Path

import pytest
from image_runs import CAPTIONS, selected

from small_inputs import save_model
from synthclip.run.store import RunDirectory


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return selected(tmp_path / "run", CAPTIONS[:6], CAPTIONS[6:])


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An open_clip folder with a tiny CLIP of random weights."""
    values = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "patch_size": 16, "head_width": 16},
        "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }
    return save_model(tmp_path_factory.mktemp("clip"), values, {"mean": [0.5] * 3, "std": [0.25] * 3})
