"""Progressive resolution: the first steps see smaller pictures than the last ones."""

from typing import Any

import torch

from synthclip.errors import SynthClipError
from synthclip.models.build import build_model
from synthclip.recipe.training import ModelConfig, TrainingConfig


def image_size(step: int, steps: int, config: TrainingConfig, own: int) -> int:
    """The edge in pixels of the pictures of iteration `step` of `steps`, counted from 0; `own` is the
    model's."""
    share = 0.0
    for stage in config.resolutions:
        share += stage.share
        if step < round(share * steps):
            return stage.image_size_px
    return own


def check_tower(model: ModelConfig, config: TrainingConfig) -> None:
    """Raises SynthClipError where the image tower cannot take one of the recipe's sizes: among timm's, those
    with position embeddings of one size."""
    if not config.resolutions:
        return
    with torch.device("meta"), torch.no_grad():
        tower: Any = build_model(model).eval()
        for size in (stage.image_size_px for stage in config.resolutions):
            try:
                tower.encode_image(torch.empty(1, 3, size, size))
            except (AssertionError, RuntimeError) as error:
                raise SynthClipError(
                    f"training.resolutions: the image tower takes no pictures of {size} px "
                    f"({str(error).splitlines()[0]}): leave resolutions out, or choose another tower"
                ) from None
