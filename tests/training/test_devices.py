"""Training chooses its device, and refuses sizes of images and batches before the first step."""

import pytest
import torch
import torch.distributed as dist
from shape_runs import train, with_training

from synthclip.errors import SynthClipError
from synthclip.models import default_device
from synthclip.recipe import Recipe
from synthclip.recipe.training import VisionConfig
from synthclip.run.store import RunDirectory
from synthclip.training.parallel import join


def test_an_apple_gpu_is_taken_by_one_process_and_left_by_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert default_device().type == "mps"
    assert join()[1].type == "mps"
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **_: None)
    monkeypatch.setattr(dist, "get_rank", lambda: 0)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    assert join()[1].type == "cpu"


def model(recipe: Recipe, vision: VisionConfig) -> Recipe:
    return recipe.model_copy(update={"model": recipe.model.model_copy(update={"vision": vision})})


def test_a_timm_tower_takes_the_size_of_the_recipe_or_is_refused(
    run: RunDirectory, tiny_recipe: Recipe
) -> None:
    small = model(tiny_recipe, VisionConfig(timm="vit_tiny_patch16_224", image_size_px=32))
    train(with_training(small, epochs=0.2), run)
    fixed = model(tiny_recipe, VisionConfig(timm="mixer_s32_224", image_size_px=32))
    with pytest.raises(SynthClipError, match=r"image_size_px: the image tower takes no pictures"):
        train(fixed, run)


def test_a_batch_larger_than_the_pairs_is_refused(run: RunDirectory, tiny_recipe: Recipe) -> None:
    with pytest.raises(SynthClipError, match="holds 96 samples, fewer than the 128 of each batch: lower"):
        train(with_training(tiny_recipe, batch_size=128), run)
