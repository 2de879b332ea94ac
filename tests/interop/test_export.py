"""Every format gives back the model's embeddings; what has no equal is refused with the reason."""

import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

import synthclip
from small_inputs import save_model
from synthclip.errors import SynthClipError
from synthclip.interop.export import Format, export_model
from synthclip.models.build import PAPER_MODEL_CFG, is_paper_model
from synthclip.models.weights import to_official

pytestmark = pytest.mark.slow

_TEXTS = ["a photo of a dog", "two red umbrellas on a rainy street", "word " * 90]
_SMALL: dict[str, Any] = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8},
    "text_cfg": {"context_length": 16, "width": 128, "heads": 2, "layers": 2},
}
_GREY = {
    "mean": [0.5, 0.5, 0.5],
    "std": [0.25, 0.25, 0.25],
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}


def _folder(path: Path, config: dict[str, Any]) -> Path:
    """An open_clip folder with random weights."""
    return save_model(path, config, _GREY, noise=0.02)


def _close(embeddings: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(normalize(embeddings, dim=-1), normalize(wanted, dim=-1), rtol=0, atol=1e-5)


def _onnx(path: Path, batch: Tensor) -> Tensor:
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (embeddings,) = session.run(None, {session.get_inputs()[0].name: batch.numpy()})
    return torch.from_numpy(embeddings)


@pytest.fixture(scope="module")
def pixels() -> Tensor:
    return torch.randn(3, 3, 224, 224, generator=torch.Generator().manual_seed(5))


@torch.no_grad()
def test_an_official_checkpoint_is_the_same_in_open_clip_and_comes_back(
    official_checkpoint: Path, tmp_path: Path, pixels: Tensor
) -> None:
    model, preprocess, tokenizer = synthclip.load_model(official_checkpoint)
    images, texts = model.encode_image(pixels), model.encode_text(tokenizer(_TEXTS))

    assert export_model(official_checkpoint, tmp_path / "open_clip", "open_clip") < 1e-5
    theirs, _, transform = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'open_clip'}")
    theirs.eval()
    _close(theirs.encode_image(pixels), images)
    _close(theirs.encode_text(tokenizer(_TEXTS)), texts)
    picture = Image.effect_noise((300, 260), 80).convert("RGB")
    torch.testing.assert_close(transform(picture), preprocess(picture))
    assert open_clip.get_tokenizer(f"local-dir:{tmp_path / 'open_clip'}")(_TEXTS[:2]).equal(
        tokenizer(_TEXTS[:2])
    )

    # And back: what open_clip holds becomes an official file again, bit for bit.
    export_model(tmp_path / "open_clip", tmp_path / "official", "official")
    again = torch.load(tmp_path / "official" / "checkpoint_best.pt", weights_only=False)
    assert again.keys() == {"epoch", "state_dict", "optimizer", "scaler", "best_acc1", "args"}
    for name, value in to_official(model.state_dict()).items():
        assert torch.equal(again["state_dict"][f"module.{name}"], value)


@torch.no_grad()
def test_an_official_checkpoint_in_transformers(
    official_checkpoint: Path, tmp_path: Path, pixels: Tensor
) -> None:
    transformers = pytest.importorskip("transformers")
    assert export_model(official_checkpoint, tmp_path / "hf", "hf") < 1e-5
    model, preprocess, tokenizer = synthclip.load_model(official_checkpoint)
    theirs = transformers.AutoModel.from_pretrained(tmp_path / "hf").eval()
    processor = transformers.AutoProcessor.from_pretrained(tmp_path / "hf")
    picture = Image.effect_noise((300, 260), 80).convert("RGB")
    inputs = processor(text=_TEXTS[:2], images=picture, return_tensors="pt", padding=True)
    outputs = theirs(**inputs)
    _close(outputs.text_embeds, model.encode_text(tokenizer(_TEXTS[:2])))
    torch.testing.assert_close(inputs["pixel_values"][0], preprocess(picture), rtol=0, atol=0.02)
    _close(theirs.get_image_features(pixels).pooler_output, model.encode_image(pixels))
    torch.testing.assert_close(theirs.logit_scale, model.logit_scale)


@torch.no_grad()
@pytest.mark.parametrize("quick_gelu", [False, True])
def test_open_clips_own_vit_in_transformers(quick_gelu: bool, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    source = _folder(tmp_path / "source", {**_SMALL, "quick_gelu": quick_gelu})
    model, _, tokenizer = synthclip.load_model(source)
    export_model(source, tmp_path / "hf", "hf")
    theirs = transformers.CLIPModel.from_pretrained(tmp_path / "hf").eval()
    small = torch.randn(2, 3, 32, 32)
    _close(theirs.get_image_features(small).pooler_output, model.encode_image(small))
    processor = transformers.AutoProcessor.from_pretrained(tmp_path / "hf")
    ids = processor(text=_TEXTS, return_tensors="pt", padding=True, truncation=True)
    _close(theirs.get_text_features(**ids).pooler_output, model.encode_text(tokenizer(_TEXTS)))


@torch.no_grad()
@pytest.mark.parametrize(
    "vision",
    [
        {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16},
        {**PAPER_MODEL_CFG["vision_cfg"], "timm_model_name": "test_vit", "image_size": 64},
    ],
    ids=["a resnet", "the paper's network with fewer and smaller layers"],
)
def test_any_image_tower_goes_to_open_clip_and_onnx(vision: dict[str, Any], tmp_path: Path) -> None:
    text = {**PAPER_MODEL_CFG["text_cfg"], **_SMALL["text_cfg"], "layers": 1}
    config = {**PAPER_MODEL_CFG, "embed_dim": 32, "vision_cfg": vision, "text_cfg": text}
    source = _folder(tmp_path / "source", config)
    model, _, tokenizer = synthclip.load_model(source)
    small = torch.randn(5, 3, 64, 64)
    assert export_model(source, tmp_path / "again", "open_clip") == 0
    assert export_model(source, tmp_path / "onnx", "onnx") < 1e-5
    _close(_onnx(tmp_path / "onnx" / "image.onnx", small), model.encode_image(small))
    _close(_onnx(tmp_path / "onnx" / "text.onnx", tokenizer(_TEXTS)), model.encode_text(tokenizer(_TEXTS)))


@torch.no_grad()
def test_the_onnx_export_of_a_siglip_model_gives_its_logits(tmp_path: Path) -> None:
    towers = {name: {**_SMALL[name], "layers": 1} for name in ("vision_cfg", "text_cfg")}
    config = {**_SMALL, **towers, "init_logit_scale": 2.3026, "init_logit_bias": -10.0}
    source = _folder(tmp_path / "source", config)
    model, _, tokenizer = synthclip.load_model(source)
    export_model(source, tmp_path / "onnx", "onnx")
    pixels, ids = torch.randn(2, 3, 32, 32), tokenizer(_TEXTS)
    image, text = _onnx(tmp_path / "onnx/image.onnx", pixels), _onnx(tmp_path / "onnx/text.onnx", ids)
    for path in (tmp_path / "onnx").iterdir():
        assert b"site-packages" not in path.read_bytes()
        assert str(Path(synthclip.__file__).parent).encode() not in path.read_bytes()
    extra = json.loads((tmp_path / "onnx/preprocess.json").read_text())
    logits = extra["logit_scale"] * normalize(image) @ normalize(text).T + extra["logit_bias"]
    torch.testing.assert_close(logits, model.get_logits(pixels, ids)[0], rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "format", "reason"),
    [
        ({}, "official", "holds the architecture synthclip-vitb16 alone"),
        (
            {"vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16}},
            "hf",
            "image tower is a ResNet",
        ),
        ({"vision_cfg": {**_SMALL["vision_cfg"], "no_ln_pre": True}}, "hf", "vision_cfg sets 'no_ln_pre'"),
        ({"init_logit_bias": -10.0}, "hf", "it sets 'init_logit_bias'"),
    ],
)
def test_what_has_no_equal_is_refused_and_leaves_nothing(
    change: dict[str, Any], format: Format, reason: str, tmp_path: Path
) -> None:
    pytest.importorskip("transformers")
    source = _folder(tmp_path / "source", {**_SMALL, **change})
    with pytest.raises(SynthClipError, match=reason):
        export_model(source, tmp_path / "out", format)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_the_papers_network_with_another_activation_is_not_official() -> None:
    """Same keys and shapes, other arithmetic."""
    assert is_paper_model(PAPER_MODEL_CFG)
    assert not is_paper_model({**PAPER_MODEL_CFG, "quick_gelu": False})


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    source = _folder(tmp_path / "source", _SMALL)
    with pytest.raises(SynthClipError, match="not an empty folder"):
        export_model(source, source, "open_clip")
    assert synthclip.load_model(source)
