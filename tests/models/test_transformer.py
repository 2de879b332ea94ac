"""Leaving out what a CLIP throws away changes neither its features nor its gradients."""

import copy
from types import SimpleNamespace
from typing import Any

import open_clip
import pytest
import timm
import torch
from torch import Tensor, nn

from synthclip.models.build import LeanCLIP, build_model, open_clip_config
from synthclip.models.transformer import lean_timm, timm_vit_features
from synthclip.recipe.training import ModelConfig, TextConfig, VisionConfig


def loss(model: nn.Module, images: Tensor, tokens: Tensor) -> Tensor:
    image_BE, text_BE, scale = model(images, tokens)[:3]
    logits: Tensor = scale * image_BE @ text_BE.T
    return nn.functional.cross_entropy(logits, torch.arange(len(images)))


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("length", [9, 16], ids=["cut", "whole"])
def test_features_and_gradients_are_open_clips(layers: int, length: int) -> None:
    config = ModelConfig(
        embed_dim=16,
        vision=VisionConfig(image_size_px=32, layers=layers, width=32, head_width=16, patch_size_px=8),
        text=TextConfig(context_length=16, width=32, heads=2, layers=layers),
    )
    torch.manual_seed(0)
    ours, theirs = build_model(config), open_clip.CLIP(**open_clip_config(config)["model_cfg"])
    theirs.load_state_dict(ours.state_dict())
    ours, theirs = ours.double(), theirs.double()
    images, tokens = torch.randn(5, 3, 32, 32).double(), torch.randint(1, 49000, (5, 16))
    for row, end in enumerate([3, 8, 5, 1, 8]):
        tokens[row, end] = 49407
        tokens[row, end + 1 :] = 0
    loss(ours, images, tokens[:, :length]).backward()
    loss(theirs, images, tokens).backward()
    torch.testing.assert_close(ours.encode_image(images), theirs.encode_image(images))
    torch.testing.assert_close(ours.encode_text(tokens), theirs.encode_text(tokens))
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad)


TIMM: dict[str, Any] = {
    "img_size": 32,
    "patch_size": 8,
    "embed_dim": 32,
    "depth": 3,
    "num_heads": 2,
    "num_classes": 0,
    "global_pool": "token",
}


@pytest.mark.parametrize("values", [{}, {"qkv_bias": False}, {"init_values": 0.5}, {"pre_norm": True}])
def test_features_and_gradients_are_timms(values: dict[str, Any]) -> None:
    torch.manual_seed(0)
    theirs = timm.models.VisionTransformer(**TIMM | values).double()
    for weight in theirs.parameters():  # also where timm begins with zeros
        nn.init.normal_(weight, std=0.2)
    ours = copy.deepcopy(theirs)
    assert lean_timm(ours)
    images = torch.randn(4, 3, 32, 32).double()
    mine, other = timm_vit_features(SimpleNamespace(trunk=ours, head=nn.Identity()), images), theirs(images)
    torch.testing.assert_close(mine, other)
    mine.square().sum().backward()
    other.square().sum().backward()
    for name, weight in theirs.named_parameters():
        torch.testing.assert_close(ours.get_parameter(name).grad, weight.grad)


@pytest.mark.parametrize(
    "values",
    [
        {"qk_norm": True},
        {"proj_drop_rate": 0.1},
        {"drop_path_rate": 0.1},
        {"global_pool": "avg"},
        {"dynamic_img_pad": True},
    ],
)
def test_timms_blocks_that_do_more_stay_as_they_are(values: dict[str, Any]) -> None:
    tower = timm.models.VisionTransformer(**TIMM | values)
    blocks = list(tower.blocks)
    assert not lean_timm(tower)
    assert list(tower.blocks) == blocks


SMALL: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
SMALL_TIMM = {
    "image_size": 224,
    "timm_model_name": "vit_tiny_patch16_224",
    "timm_pool": "token",
    "timm_proj": "linear",
}


@pytest.mark.parametrize(
    "part",
    [
        {"quick_gelu": True},
        {"vision_cfg": {"no_ln_pre": True, "final_ln_after_pool": True, "ls_init_value": 0.1}},
        {"vision_cfg": {"layers": [1, 1, 1, 1]}},
        {"vision_cfg": SMALL_TIMM},
    ],
    ids=["quick", "other norms", "resnet", "timm"],
)
def test_a_model_of_open_clips_keeps_its_features_on_texts_that_are_cut(part: dict[str, Any]) -> None:
    config = merged(part)
    torch.manual_seed(0)
    theirs = open_clip.CLIP(**config).eval().double()
    ours = LeanCLIP.of(copy.deepcopy(theirs), {"model_cfg": config, "preprocess_cfg": {}})
    assert ours is not None
    size = config["vision_cfg"]["image_size"]
    images, tokens = torch.randn(2, 3, size, size).double(), torch.randint(1, 49000, (2, 16))
    for row, end in enumerate([3, 8]):
        tokens[row, end] = 49407
        tokens[row, end + 1 :] = 0
    torch.testing.assert_close(ours.encode_image(images), theirs.encode_image(images))
    torch.testing.assert_close(ours.encode_text(tokens[:, :9]), theirs.encode_text(tokens))
    assert ours.state_dict().keys() == theirs.state_dict().keys()


@pytest.mark.parametrize(
    "part",
    [
        {"text_cfg": {"no_causal_mask": True}},
        {"text_cfg": {"pool_type": "last"}},
        {"text_cfg": {"proj_bias": True}},
        {"vision_cfg": {"attentional_pool": True}},
        {"vision_cfg": {"pool_type": "avg"}},
        {"vision_cfg": {"qk_norm": True, "block_type": "custom"}},
    ],
    ids=str,
)
def test_a_model_of_open_clips_that_does_more_stays_as_it_is(part: dict[str, Any]) -> None:
    assert LeanCLIP.of(open_clip.CLIP(**merged(part)), {}) is None


def merged(part: dict[str, Any]) -> dict[str, Any]:
    """`SMALL` with other values."""
    towers = {name: SMALL[name] | part.get(name, {}) for name in ("vision_cfg", "text_cfg")}
    return SMALL | part | towers
