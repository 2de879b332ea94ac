"""Training starts from weights of others with all that belongs to them, or refuses them in one line."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from shape_runs import train, with_training

import synthclip
from small_inputs import save_model
from synthclip.errors import SynthClipError
from synthclip.models.build import open_clip_config
from synthclip.recipe import Recipe
from synthclip.run.store import RunDirectory
from synthclip.training import Train

pytestmark = pytest.mark.slow

OTHER = {
    "mean": [0.5, 0.4, 0.3],
    "std": [0.2, 0.3, 0.25],
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}


def test_weights_are_fingerprinted_however_their_folder_is_named(
    run: RunDirectory, tmp_path: Path, tiny_recipe: Recipe
) -> None:
    (tmp_path / "theirs").mkdir()
    weights = tmp_path / "theirs" / "open_clip_model.safetensors"
    weights.write_bytes(b"1")
    plain, prefixed = (
        Train(with_training(tiny_recipe, init=f"{prefix}{weights.parent}"), run)
        for prefix in ("", "local-dir:")
    )
    before = prefixed.shards()[0].inputs
    assert before == plain.shards()[0].inputs
    weights.write_bytes(b"22")
    after = prefixed.shards()[0].inputs
    assert [name for name in after if after[name] != before[name]] == [str(weights)]


def test_activation_heads_and_preprocessing_are_taken_over(
    run: RunDirectory, tmp_path: Path, tiny_recipe: Recipe
) -> None:
    """With a learning rate of almost nothing the trained model is still the one that it began with."""
    ours = open_clip_config(tiny_recipe.model)["model_cfg"]
    vision, text = {**ours["vision_cfg"], "head_width": 8}, {**ours["text_cfg"], "heads": 4}
    theirs = {**ours, "quick_gelu": True, "vision_cfg": vision, "text_cfg": text}
    folder = save_model(tmp_path / "theirs", theirs, OTHER, seed=5)
    rates = {"lr": 1e-12, "lr_start": 1e-12, "lr_end": 1e-12, "weight_decay": 0}
    train(with_training(tiny_recipe, init=str(folder), **rates), run)
    written = json.loads(run.file("train", "model/open_clip_config.json").read_text())
    assert written["preprocess_cfg"] == OTHER
    assert written["model_cfg"]["quick_gelu"] is True
    before, after = synthclip.load_model(folder), synthclip.load_model(run.path)
    picture = Image.effect_noise((70, 50), 90).convert("RGB")
    torch.testing.assert_close(after.preprocess(picture), before.preprocess(picture))
    with torch.no_grad():
        pixels, ids = before.preprocess(picture)[None], before.tokenizer(["a red circle"])
        torch.testing.assert_close(after.model.encode_image(pixels), before.model.encode_image(pixels))
        torch.testing.assert_close(after.model.encode_text(ids), before.model.encode_text(ids))


@pytest.mark.parametrize(
    ("section", "change", "preprocess", "why"),
    [
        ("vision_cfg", {"pool_type": "avg"}, {}, "its towers compute other features in training"),
        (
            "text_cfg",
            {"no_causal_mask": True},
            {},
            "its towers|another architecture",
        ),
        ("vision_cfg", {}, {"interpolation": "random"}, "its images are resized by random"),
        ("vision_cfg", {"width": 64}, {}, "another architecture than the recipe's model: "),
    ],
)
def test_what_training_does_not_compute_is_refused(
    run: RunDirectory,
    tmp_path: Path,
    tiny_recipe: Recipe,
    section: str,
    change: dict[str, Any],
    preprocess: dict[str, Any],
    why: str,
) -> None:
    ours = open_clip_config(tiny_recipe.model)["model_cfg"]
    theirs = {**ours, section: {**ours[section], **change}}
    folder = save_model(tmp_path / "theirs", theirs, {**OTHER, **preprocess}, seed=5)
    with pytest.raises(SynthClipError, match=f"training.init=.*{why}"):
        train(with_training(tiny_recipe, init=str(folder)), run)
