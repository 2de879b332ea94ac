"""Smaller pictures for the first steps: which step sees which, what a tower makes of them, and a resume."""

from pathlib import Path

import open_clip
import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from shape_runs import losses, train, weights, with_training, write_images
from torch import Tensor
from torch.nn.functional import interpolate

from synthclip.errors import SynthClipError
from synthclip.models.build import build_model, open_clip_config
from synthclip.recipe import Recipe, load_recipe
from synthclip.recipe.training import ModelConfig, TextConfig, TrainingConfig, VisionConfig
from synthclip.run.store import RunDirectory
from synthclip.training import Train
from synthclip.training.flops import training_pair
from synthclip.training.job import build_trainer
from synthclip.training.loader import image_size

pytestmark = pytest.mark.slow

TEXT = TextConfig(context_length=16, width=32, heads=2, layers=1)
VIT = VisionConfig(image_size_px=64, layers=2, width=32, head_width=16, patch_size_px=8)
RESNET = VisionConfig(image_size_px=96, layers=(1, 1, 1, 1), width=8, patch_size_px=None)
HALF = [{"image_size_px": 32, "share": 0.5}]


def model(vision: VisionConfig) -> ModelConfig:
    return ModelConfig(embed_dim=16, vision=vision, text=TEXT)


@given(
    shares=st.lists(st.integers(1, 20).map(lambda n: n / 100), max_size=4),
    steps=st.integers(1, 500),
)
def test_sizes_rise_to_the_models_own_and_take_their_shares_of_the_steps(
    shares: list[float], steps: int
) -> None:
    stages = [{"image_size_px": 32 + 16 * n, "share": share} for n, share in enumerate(shares)]
    config = TrainingConfig.model_validate({"resolutions": stages})
    sizes = [image_size(step, steps, config, 224) for step in range(steps)]
    assert sizes == sorted(sizes)
    for stage in config.resolutions:
        assert abs(sizes.count(stage.image_size_px) - stage.share * steps) <= 1
    assert sizes[-1] == 224 or round(sum(shares) * steps) == steps


def test_each_steps_batch_has_its_size(run: RunDirectory, tiny_recipe: Recipe) -> None:
    recipe = with_training(
        tiny_recipe.model_copy(update={"model": model(VIT)}),
        resolutions=[{"image_size_px": 32, "share": 0.25}, {"image_size_px": 48, "share": 0.25}],
    )
    stage = Train(recipe, run)
    loader = build_trainer(stage, stage.shards()[0], lambda rows, figures: None, lambda: False).loader
    shapes = [tuple(batch.images.shape) for batch in loader.batches(0, 12)]
    assert shapes == [(16, size, size, 3) for size in (32, 48, 64) for _ in range(6 if size == 64 else 3)]


@pytest.mark.parametrize("vision", [VIT, RESNET], ids=["ViT", "ResNet"])
def test_a_training_stopped_before_the_switch_goes_on_to_the_same_weights(
    run: RunDirectory, tmp_path: Path, tiny_recipe: Recipe, vision: VisionConfig
) -> None:
    recipe = tiny_recipe.model_copy(update={"model": model(vision)})
    recipe = with_training(recipe, epochs=4, resolutions=HALF, ema_decay=0.9)
    train(recipe, run)
    undisturbed, curve = weights(run), losses(run)
    kept = load_file(run.file("train", "model/open_clip_model.safetensors"))
    own = build_model(recipe.model).state_dict()
    assert {name: tensor.shape for name, tensor in kept.items()} == {n: t.shape for n, t in own.items()}

    resumed = RunDirectory(tmp_path / "resumed")
    write_images(resumed, 96)
    stage = Train(recipe, resumed)
    stopped = build_trainer(stage, stage.shards()[0], lambda rows, figures: None, lambda: True)
    assert not stopped.fit()
    assert len(stopped.curve) == 10
    train(recipe, resumed)
    assert weights(resumed) == undisturbed
    assert losses(resumed) == curve


def resampled(own_LD: Tensor, side: int) -> Tensor:
    """The patches' positions by torch's own interpolation; the class token's as it is."""
    old = round((len(own_LD) - 1) ** 0.5)
    grid = own_LD[1:].T.reshape(1, -1, old, old)
    smaller = interpolate(grid, (side, side), mode="bicubic", antialias=True, align_corners=False)
    return torch.cat([own_LD[:1], smaller[0].flatten(1).T])


@pytest.mark.parametrize("size", [32, 40])
def test_a_vit_on_smaller_pictures_is_open_clips_of_that_size(size: int) -> None:
    ours = build_model(model(VIT))
    small = VIT.model_copy(update={"image_size_px": size})
    theirs = open_clip.CLIP(**open_clip_config(model(small))["model_cfg"])
    state = dict(ours.state_dict())
    state["visual.positional_embedding"] = resampled(state["visual.positional_embedding"], size // 8)
    theirs.load_state_dict(state)
    images = torch.randn(3, 3, size, size)
    torch.testing.assert_close(ours.encode_image(images), theirs.encode_image(images))


def test_the_arithmetic_of_a_resnet_is_counted_at_every_size() -> None:
    at_own = training_pair(model(RESNET), TrainingConfig(), 16, 96)
    at_32 = training_pair(model(RESNET), TrainingConfig(), 16, 32)  # where one position is left at the end
    assert 0 < at_32 < at_own / 4


@pytest.mark.parametrize("size", [32, 48, 64, 80])
def test_a_resnet_on_smaller_pictures_is_open_clips_of_that_size(size: int) -> None:
    ours = build_model(model(RESNET)).eval()
    small = RESNET.model_copy(update={"image_size_px": size})
    theirs = open_clip.CLIP(**open_clip_config(model(small))["model_cfg"]).eval()
    state, name = dict(ours.state_dict()), "visual.attnpool.positional_embedding"
    state[name] = resampled(state[name], size // 32)
    theirs.load_state_dict(state)
    images = torch.randn(3, 3, size, size)
    torch.testing.assert_close(ours.encode_image(images), theirs.encode_image(images))


def test_the_papers_network_takes_smaller_pictures_as_timms_of_that_size_does() -> None:
    ours = build_model(ModelConfig(name="synthclip-vitb16")).eval()
    tower = timm.create_model("vit_base_patch16_224", img_size=48, num_classes=0).eval()
    state = {
        name.removeprefix("visual.trunk."): value
        for name, value in ours.state_dict().items()
        if name.startswith("visual.trunk.")
    }
    state["pos_embed"] = resampled(state["pos_embed"][0], 3)[None]
    tower.load_state_dict(state)
    images = torch.randn(2, 3, 48, 48)
    with torch.no_grad():
        expected = tower(images) @ ours.visual.head.proj.weight.T
        torch.testing.assert_close(ours.encode_image(images), expected)


def test_positions_learn_at_another_size() -> None:
    ours = build_model(model(VIT))
    ours.encode_image(torch.randn(2, 3, 32, 32)).square().sum().backward()
    gradient_LD = dict(ours.named_parameters())["visual.positional_embedding"].grad
    assert gradient_LD is not None
    assert (gradient_LD.abs().sum(dim=1) > 0).all()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.resolutions=[{image_size_px: 48, share: 0.5}]", "48 is no multiple of .*patch_size_px=32"),
        ("training.resolutions=[{image_size_px: 256, share: 0.5}]", "256 is not below the model's 64"),
        (
            "training.resolutions=[{image_size_px: 32, share: 0.4}, {image_size_px: 32, share: 0.4}]",
            r"sizes \[32, 32\] must ascend",
        ),
        (
            "training.resolutions=[{image_size_px: 16, share: 0.5}, {image_size_px: 32, share: 0.5}]",
            "below 1 in sum",
        ),
    ],
)
def test_a_schedule_that_cannot_be_is_refused(override: str, message: str) -> None:
    vision = "model.vision={image_size_px: 64, layers: 1, width: 32, head_width: 16, patch_size_px: 32}"
    with pytest.raises(SynthClipError, match=message):
        load_recipe("demo", [vision, override])


def test_a_resnets_smallest_size_is_named() -> None:
    with pytest.raises(SynthClipError, match="image_size_px=16 is odd or below 32"):
        load_recipe("demo", ["training.resolutions=[{image_size_px: 16, share: 0.5}]"])


def test_a_timm_tower_of_one_size_is_refused(run: RunDirectory, tiny_recipe: Recipe) -> None:
    fixed = VisionConfig(image_size_px=224, timm="mixer_s32_224")
    recipe = with_training(tiny_recipe.model_copy(update={"model": model(fixed)}), resolutions=HALF)
    stage = Train(recipe, run)
    with pytest.raises(SynthClipError, match="takes no pictures of 32 px"):
        build_trainer(stage, stage.shards()[0], lambda rows, figures: None, lambda: False)
