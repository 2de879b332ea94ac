"""Weights as the field has them: they load, or one line says what they are."""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import synthclip
from small_inputs import save_model
from synthclip.errors import SynthClipError
from synthclip.models.build import build_model
from synthclip.models.weights import read_checkpoint
from synthclip.recipe.training import ModelConfig, VisionConfig

pytestmark = pytest.mark.slow

SMALL: dict[str, Any] = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8},
    "text_cfg": {"context_length": 16, "width": 64, "heads": 1, "layers": 2},
}
GREY = {"mean": [0.5] * 3, "std": [0.25] * 3, "interpolation": "bicubic", "resize_mode": "shortest"}
WEIGHTS = "open_clip_model.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An open_clip folder with random weights."""
    return save_model(tmp_path / "model", SMALL, GREY)


def loads_as(source: Path, state: dict[str, Tensor]) -> None:
    loaded = synthclip.load_model(source).model.state_dict()
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], state[name]) for name in state)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
@pytest.mark.parametrize("kind", ["safetensors", "bin", "legacy", "shards"])
def test_wrapped_names_in_every_kind_of_file(folder: Path, prefix: str, kind: str) -> None:
    state = load_file(folder / WEIGHTS)
    wrapped = {prefix + name: value for name, value in state.items()}
    (folder / WEIGHTS).unlink()
    if kind == "safetensors":
        save_file(wrapped, folder / WEIGHTS)
    elif kind == "shards":
        names = sorted(wrapped)
        halves = {"a-1.safetensors": names[::2], "a-2.safetensors": names[1::2]}
        for shard, part in halves.items():
            save_file({name: wrapped[name] for name in part}, folder / shard)
        where = {name: shard for shard, part in halves.items() for name in part}
        (folder / "a.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    else:
        file = folder / "open_clip_pytorch_model.bin"
        torch.save({"state_dict": wrapped}, file, _use_new_zipfile_serialization=kind == "bin")
    loads_as(folder, state)


def test_a_shard_that_is_missing_is_named(folder: Path) -> None:
    where = {"logit_scale": "b-1.safetensors"}
    (folder / "b.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    with pytest.raises(SynthClipError, match=r"b-1\.safetensors is missing: download it again"):
        synthclip.load_model(folder)


def test_an_official_checkpoint_with_numpy_numbers_and_of_an_old_torch(
    official_state: dict[str, Tensor], tmp_path: Path
) -> None:
    args = argparse.Namespace(lr=np.float64(5e-4), seed=np.int64(3), half=np.float32(1))
    held = {
        "epoch": np.int32(3),
        "best_acc1": np.float64(0.1),
        "state_dict": {f"module._orig_mod.{name}": value for name, value in official_state.items()},
        "args": args,
    }
    for zipped in (True, False):
        torch.save(held, tmp_path / "best.pt", _use_new_zipfile_serialization=zipped)
        assert read_checkpoint(tmp_path / "best.pt")["best_acc1"] == 0.1
        loaded = synthclip.load_model(tmp_path / "best.pt").model.state_dict()
        assert torch.equal(loaded["text_projection"], official_state["text_projection"])


def test_torchscript_and_lfs_pointers_and_cut_files_are_named(folder: Path, tmp_path: Path) -> None:
    script = tmp_path / "ViT-B-32.pt"
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), script)
    with pytest.raises(SynthClipError, match="a TorchScript archive, which holds code: save its state_dict"):
        synthclip.load_model(script)
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n"
    script.write_bytes(pointer)
    with pytest.raises(SynthClipError, match="a Git LFS pointer, not the file itself: run `git lfs pull`"):
        synthclip.load_model(script)
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(pointer)
    with pytest.raises(SynthClipError, match="a Git LFS pointer"):
        synthclip.load_model(folder)
    for share in (0.0, 0.001, 0.5, 0.999):
        (folder / WEIGHTS).write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(SynthClipError, match=r"damaged or cut short .*: download it again"):
            synthclip.load_model(folder)


@pytest.mark.parametrize("how", ["name", "params", "config"])
def test_a_checkpoint_of_open_clips_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "tiny-test.json").write_text(json.dumps(SMALL))
    open_clip.add_model_config(tmp_path / "configs")
    state = open_clip.CLIP(**SMALL).state_dict()
    path = tmp_path / "logs" / "run" / "checkpoints" / "epoch_3.pt"
    path.parent.mkdir(parents=True)
    name = "2024_01_02-model_tiny-test-lr_0.0005-b_64-j_4-p_amp" if how == "name" else "mine"
    held = {"epoch": 3, "name": name, "state_dict": {f"module.{k}": v for k, v in state.items()}}
    torch.save({**held, "optimizer": {"state": {}, "param_groups": []}}, path)
    if how == "params":
        (path.parent.parent / "params.txt").write_text("batch_size: 64\nmodel: tiny-test\nname: mine\n")
    if how == "config":
        config = {"model_cfg": SMALL, "preprocess_cfg": GREY}
        (path.parent / "open_clip_config.json").write_text(json.dumps(config))
    loads_as(path, state)


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
def test_a_folder_of_transformers(tmp_path: Path, activation: str) -> None:
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.CLIPConfig(
        projection_dim=16,
        text_config={**size, "hidden_act": activation, "max_position_embeddings": 20},
        vision_config={**size, "hidden_act": activation, "image_size": 32, "patch_size": 8},
    )
    torch.manual_seed(1)
    theirs = transformers.CLIPModel(config).eval()
    theirs.save_pretrained(tmp_path)
    transformers.CLIPImageProcessor(
        size={"shortest_edge": 32},
        crop_size={"height": 32, "width": 32},
        resample=2,
        image_mean=[0.1, 0.2, 0.3],
    ).save_pretrained(tmp_path)
    loaded: Any = synthclip.load_model(tmp_path)
    model, preprocess, tokenizer = loaded
    ids, pixels = tokenizer(["a dog", "two red umbrellas"]), torch.randn(2, 3, 32, 32)
    assert ids.shape == (2, 20)
    assert preprocess.transforms[-1].mean == [0.1, 0.2, 0.3]
    with torch.no_grad():
        images = theirs.get_image_features(pixels)
        texts = theirs.get_text_features(ids)
        images, texts = (getattr(found, "pooler_output", found) for found in (images, texts))
        torch.testing.assert_close(model.encode_image(pixels), images, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(model.encode_text(ids), texts, rtol=1e-4, atol=1e-4)
    shutil.copy(tmp_path / "config.json", tmp_path / "saved.json")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "siglip"}))
    with pytest.raises(SynthClipError, match="a transformers model of type 'siglip', not 'clip'"):
        synthclip.load_model(tmp_path)


def test_a_timm_model_that_does_not_exist_is_refused_with_the_nearest_name() -> None:
    config = ModelConfig(vision=VisionConfig(timm="resnet50_b"))
    with pytest.raises(SynthClipError, match=r"model\.vision\.timm=resnet50_b: .*did you mean 'resnet50"):
        build_model(config)
