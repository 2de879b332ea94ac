"""`load_model` on everything it takes, and on files that are damaged, hostile or of another model."""

import argparse
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from PIL import Image

import synthclip
from small_inputs import save_model
from synthclip.errors import SynthClipError
from synthclip.models.build import PaperTokenizer, build_model
from synthclip.models.weights import to_official
from synthclip.training.checkpoint import Checkpoints

_SMALL = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 8},
    "text_cfg": {"context_length": 16, "width": 32, "heads": 2, "layers": 1},
}
_GREY = {
    "mean": [0.5, 0.5, 0.5],
    "std": [0.25, 0.25, 0.25],
    "interpolation": "bicubic",
    "resize_mode": "squash",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An open_clip folder with random weights."""
    return save_model(tmp_path / "model", _SMALL, _GREY)


def test_no_warning_says_that_loaded_weights_are_random(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    synthclip.load_model(folder)
    assert not caplog.records


@torch.no_grad()
def test_official_checkpoint(official_checkpoint: Path, official_state: dict[str, torch.Tensor]) -> None:
    model, preprocess, tokenizer = synthclip.load_model(official_checkpoint)
    assert not model.training
    loaded = to_official(model.state_dict())
    assert loaded.keys() == official_state.keys()
    assert all(torch.equal(loaded[name], official_state[name]) for name in loaded)
    assert model.encode_text(tokenizer(["a dog"])).shape == (1, 512)
    # Resize the short side to 224, take the middle, ImageNet's normalisation.
    image = Image.new("RGB", (448, 224), (255, 0, 0))
    image.paste((0, 255, 0), (112, 0, 336, 224))
    pixels = preprocess(image)
    assert pixels.shape == (3, 224, 224)
    wanted = torch.tensor([(0 - 0.485) / 0.229, (1 - 0.456) / 0.224, (0 - 0.406) / 0.225])
    torch.testing.assert_close(pixels, wanted[:, None, None].expand(3, 224, 224), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_folder_with_and_without_prefix_and_as_a_run(folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "train").mkdir(parents=True)
    (run / "train" / "model").symlink_to(folder, target_is_directory=True)
    image, reference = Image.new("RGB", (40, 20), (128, 0, 255)), None
    for source in (folder, str(folder), f"local-dir:{folder}", run, run / "train" / "model"):
        model, preprocess, tokenizer = synthclip.load_model(source)
        assert not model.training
        assert tokenizer(["a dog"]).shape == (1, 16)
        features = model.encode_image(preprocess(image)[None])
        reference = features if reference is None else reference
        torch.testing.assert_close(features, reference)
    pixels = preprocess(image)
    assert pixels.shape == (3, 32, 32)
    torch.testing.assert_close(pixels[2], torch.full((32, 32), (1 - 0.5) / 0.25))


@torch.no_grad()
def test_checkpoint_of_a_run_in_training(tmp_path: Path) -> None:
    recipe = synthclip.load_recipe("demo")
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    trained: Any = build_model(recipe.model).eval()
    checkpoints = Checkpoints(tmp_path / "train" / "partial" / "0123456789abcdef", keep=1)
    architecture = json.dumps(trained.architecture)
    state = {"model": trained.state_dict(), "average": None, "architecture": architecture}
    checkpoints.save(7, state)
    checkpoints.finish()
    (path,) = tmp_path.rglob("step-*.pt")
    model, preprocess, tokenizer = synthclip.load_model(path)
    pixels = preprocess(Image.new("RGB", (90, 70), (10, 200, 30)))[None]
    torch.testing.assert_close(model.encode_image(pixels), trained.encode_image(pixels))
    assert tokenizer(["a dog"]).shape == (1, recipe.model.text.context_length)
    elsewhere = path.rename(tmp_path / path.name)
    again = synthclip.load_model(elsewhere).model
    torch.testing.assert_close(again.encode_image(pixels), trained.encode_image(pixels))


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SynthClipError, match="no such file or folder"):
        synthclip.load_model(tmp_path / "checkpoint_best.pt")
    with pytest.raises(SynthClipError, match="neither a run directory nor a model folder"):
        synthclip.load_model(tmp_path)
    (tmp_path / "recipe.yaml").write_text("name: demo\n")
    with pytest.raises(SynthClipError, match="no trained model yet: run `synthclip train"):
        synthclip.load_model(tmp_path)
    with pytest.raises(SynthClipError, match="did you mean 'ViT-B-32'"):
        synthclip.load_model("ViT-B32")
    with pytest.raises(SynthClipError, match=r"choose one of .*ViT-B-32:openai"):
        synthclip.load_model("ViT-B-32")


def test_folder_that_is_damaged(folder: Path) -> None:
    weights = folder / "open_clip_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SynthClipError, match="cannot be loaded"):
        synthclip.load_model(folder)
    weights.write_bytes(whole)
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": {**_SMALL, "embed_dim": 48}, "preprocess_cfg": _GREY})
    )
    with pytest.raises(SynthClipError, match=r"shapes differ: text_projection is \[32, 32\], not \[32, 48\]"):
        synthclip.load_model(folder)
    deeper = {**_SMALL, "text_cfg": {**_SMALL["text_cfg"], "layers": 3}}  # type: ignore[dict-item]
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": deeper, "preprocess_cfg": _GREY}))
    with pytest.raises(SynthClipError, match=r"lacks transformer\.resblocks\.1\.\S+, \S+, \S+ and 21 more$"):
        synthclip.load_model(folder)
    (folder / "open_clip_config.json").write_text("{")
    with pytest.raises(SynthClipError, match="cannot be loaded"):
        synthclip.load_model(folder)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": _SMALL}))
    weights.unlink()
    with pytest.raises(SynthClipError, match="cannot be loaded"):
        synthclip.load_model(folder)


class _RunsCode:
    def __init__(self, call: Callable[..., Any], argument: str) -> None:
        self._made_of = call, (argument,)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return self._made_of


@pytest.mark.parametrize("call", [os.system, eval, exec, os.mkdir], ids=lambda call: call.__name__)
def test_pickle_with_code_is_refused_and_not_run(call: Callable[..., Any], tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    argument = {
        os.system: f"mkdir {proof}",
        os.mkdir: str(proof),
    }.get(call, f"__import__('os').mkdir({str(proof)!r})")
    path = tmp_path / "evil.pt"
    torch.save(
        {"state_dict": {"module.logit_scale": torch.ones(())}, "args": _RunsCode(call, argument)}, path
    )
    with pytest.raises(SynthClipError, match=f"refused.*{call.__name__}"):
        synthclip.load_model(path)
    assert not proof.exists()
    pickle.loads(pickle.dumps(_RunsCode(call, argument)))  # the attack is a real one
    assert proof.exists()


def test_bare_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    path = tmp_path / "evil.pt"
    path.write_bytes(pickle.dumps({"state_dict": _RunsCode(os.mkdir, str(proof))}))
    with pytest.raises(SynthClipError, match=r"not a checkpoint that torch\.save wrote"):
        synthclip.load_model(path)
    assert not proof.exists()


def _with_pickle(path: Path, pickled: bytes, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", pickled)
        archive.writestr("x/version", "3\n")
        archive.writestr("x/byteorder", "little")
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def test_zip_bombs_are_refused_before_they_are_read(tmp_path: Path) -> None:
    deflated = tmp_path / "deflated.pt"
    with zipfile.ZipFile(deflated, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", pickle.dumps({}))
        archive.writestr("x/data/0", bytes(100_000_000))
    with pytest.raises(SynthClipError, match=r"refused: declares 100,000,\d+ bytes of data in a file of"):
        synthclip.load_model(deflated)

    honest = _with_pickle(tmp_path / "honest.pt", pickle.dumps({}))
    raw = bytearray(honest.read_bytes())
    entry = raw.index(b"PK\x01\x02")
    raw[entry + 24 : entry + 28] = (1 << 31).to_bytes(4, "little")  # the size that the directory declares
    (tmp_path / "lying.pt").write_bytes(raw)
    with pytest.raises(SynthClipError, match="refused: declares"):
        synthclip.load_model(tmp_path / "lying.pt")


def test_a_folder_of_pickled_weights_is_looked_at_first(folder: Path, tmp_path: Path) -> None:
    (folder / "open_clip_model.safetensors").unlink()
    weights, proof = folder / "open_clip_pytorch_model.bin", tmp_path / "proof"
    state = open_clip.CLIP(**_SMALL).state_dict()
    torch.save(state, weights)
    loaded = synthclip.load_model(folder).model.state_dict()
    assert all(torch.equal(loaded[name], state[name]) for name in state)
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SynthClipError, match="cut short"):
        synthclip.load_model(folder)
    torch.save({**state, "more": _RunsCode(os.mkdir, str(proof))}, weights)
    with pytest.raises(SynthClipError, match=r"refused.*posix\.mkdir"):
        synthclip.load_model(folder)
    assert not proof.exists()
    with zipfile.ZipFile(weights, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", pickle.dumps({}))
        archive.writestr("x/data/0", bytes(100_000_000))
    with pytest.raises(SynthClipError, match="refused: declares 100,"):
        synthclip.load_model(folder)


def test_storage_larger_than_its_record_is_refused(official_checkpoint: Path, tmp_path: Path) -> None:
    """The pickle says a tensor has more elements than the file holds."""
    small = tmp_path / "small.pt"
    torch.save({"state_dict": {"module.logit_scale": torch.arange(60.0)}}, small)
    with zipfile.ZipFile(small) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    (pickled,) = (name for name in members if name.endswith("data.pkl"))
    assert members[pickled].count(b"K<") == 2  # BININT1 60: the storage's length and the tensor's shape
    members[pickled] = members[pickled].replace(b"K<", b"J\x00\xca\x9a\x3b")  # BININT 1,000,000,000
    lying = tmp_path / "lying.pt"
    with zipfile.ZipFile(lying, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    with pytest.raises(SynthClipError, match=str(lying)):
        synthclip.load_model(lying)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_truncated_file(official_checkpoint: Path, tmp_path: Path, share: float) -> None:
    cut = tmp_path / "cut.pt"
    size = int(official_checkpoint.stat().st_size * share)
    with official_checkpoint.open("rb") as source, cut.open("wb") as target:
        target.write(source.read(size))
    with pytest.raises(SynthClipError, match="cut short: download it again"):
        synthclip.load_model(cut)


def test_other_architectures_are_named_by_their_keys(
    official_state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    path = tmp_path / "other.pt"
    small = open_clip.CLIP(**_SMALL).state_dict()
    torch.save({"state_dict": small, "args": argparse.Namespace()}, path)
    with pytest.raises(
        SynthClipError, match=r"not the weights of synthclip-vitb16: lacks image_projection, .*more"
    ):
        synthclip.load_model(path)

    torch.save({"state_dict": {**official_state, "image_projection": torch.zeros(512, 512)}}, path)
    with pytest.raises(SynthClipError, match=r"image_projection is \[512, 512\], not \[768, 512\]"):
        synthclip.load_model(path)

    torch.save(PaperTokenizer().encoder, path)
    with pytest.raises(SynthClipError, match="holds no 'state_dict' of tensors"):
        synthclip.load_model(path)
