"""What the tests of several rooms are given: a small model, a smooth picture."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

MODEL_CONFIG: dict[str, Any] = {
    "model_cfg": {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "patch_size": 16, "head_width": 16},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    },
    "preprocess_cfg": {
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    },
}
"""Arguments of `save_model`."""


def save_model(
    folder: Path, model_cfg: dict[str, Any], preprocess_cfg: dict[str, Any], seed: int = 0, noise: float = 0.0
) -> Path:
    """An open_clip folder with random weights, each moved by up to `noise`."""
    import torch
    from safetensors.torch import save_file

    from synthclip.models import open_clip

    torch.manual_seed(seed)
    weights = open_clip.CLIP(**model_cfg).state_dict()
    if noise:
        weights = {name: value + noise * torch.rand(value.shape) for name, value in weights.items()}
    folder.mkdir(parents=True, exist_ok=True)
    config = {"model_cfg": model_cfg, "preprocess_cfg": preprocess_cfg}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    contiguous = {name: value.contiguous() for name, value in weights.items()}
    save_file(contiguous, folder / "open_clip_model.safetensors")
    return folder


def smooth(height: int, width: int) -> NDArray[np.uint8]:
    """Waves in each colour, uint8 [H, W, 3]."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x / 9 + k) * np.cos(y / 11 - k) for k in range(3)]
    return (127 + 100 * np.stack(waves, axis=-1)).astype(np.uint8)
