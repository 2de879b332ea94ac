"""Fixtures of ImageGen's tests."""

import json
from pathlib import Path
from typing import Any

import pytest
from image_runs import CAPTIONS, selected

from synthclip.run.store import RunDirectory


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return selected(tmp_path / "run", CAPTIONS[:6], CAPTIONS[6:])


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An open_clip folder with a tiny CLIP of random weights."""
    import torch
    from safetensors.torch import save_file

    from synthclip.models import open_clip

    values: dict[str, Any] = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "patch_size": 16, "head_width": 16},
        "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("clip")
    save_file(open_clip.CLIP(**values).state_dict(), folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": values, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3}})
    )
    return folder
