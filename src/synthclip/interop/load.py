"""Loads a CLIP model from wherever one comes."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from synthclip.config import nearest
from synthclip.errors import SynthClipError

if TYPE_CHECKING:
    from open_clip import CLIP
    from PIL.Image import Image
    from torch import Tensor

CONFIG_FILE = "open_clip_config.json"
"""The file by which open_clip knows a model folder."""
_IN_RUN = Path("train/model")
_LOCAL, _HUB = "local-dir:", "hf-hub:"


class LoadedModel(NamedTuple):
    """What `load_model` returns: unpack it as `model, preprocess, tokenizer`."""

    model: "CLIP"
    """open_clip's class, or ours with its interface; float32, on the CPU, in eval mode."""
    preprocess: "Callable[[Image], Tensor]"
    """A PIL image to float32 [3, H, W], resized, cropped and normalised as the model was trained."""
    tokenizer: "Callable[[str | list[str]], Tensor]"
    """Texts to token ids int64 [N, context_length]."""


@dataclass(frozen=True)
class OpenedModel:
    """A model together with what it takes to write it elsewhere."""

    model: "CLIP"
    config: dict[str, Any]
    """open_clip's `model_cfg`. For `SynthClipViTB16`, that of its equal in open_clip."""
    preprocess: dict[str, Any]
    """open_clip's `preprocess_cfg`."""
    tokenizer: Any


def load_model(source: str | Path) -> LoadedModel:
    """Load a CLIP model with its preprocessing and tokenizer.

    `source` is one of: a run directory, or its `train/model`; any open_clip folder (`local-dir:` may stand
    before it); an official SynthCLIP `checkpoint_best.pt`; `NAME:TAG`, an open_clip model with one of its
    pretrained weights (`ViT-B-32:laion2b_s34b_b79k`); `hf-hub:ORG/REPO`.

    Raises SynthClipError where there is no such model, or a file is damaged or not safe to load.
    """
    opened = open_model(source)
    from open_clip.transform import PreprocessCfg, image_transform_v2

    preprocess = image_transform_v2(PreprocessCfg(**opened.preprocess), is_train=False)
    return LoadedModel(opened.model, preprocess, opened.tokenizer)


def open_model(source: str | Path) -> OpenedModel:
    """As `load_model`, with the configuration instead of the ready transform."""
    from synthclip import torchvision_ops

    torchvision_ops.ensure()
    name = str(source)
    path = Path(name.removeprefix(_LOCAL))
    if path.is_dir():
        return _from_folder(path)
    if path.is_file():
        return _from_official(path)
    if name.startswith(_HUB):
        return _from_open_clip(name, None)
    if name.startswith(_LOCAL) or isinstance(source, Path) or "/" in name or path.suffix in (".pt", ".pth"):
        raise SynthClipError(f"{path}: no such file or folder")
    return _from_open_clip(*_name_and_tag(name))


def _from_folder(path: Path) -> OpenedModel:
    folder = next((at for at in (path, path / _IN_RUN) if (at / CONFIG_FILE).is_file()), None)
    if folder is None:
        if (path / "recipe.yaml").is_file():
            raise SynthClipError(f"{path}: this run has no trained model yet: run `synthclip train {path}`")
        raise SynthClipError(f"{path}: neither a run directory nor a model folder: no {CONFIG_FILE} in it")
    return _from_open_clip(f"{_LOCAL}{folder}", None)


def _from_official(path: Path) -> OpenedModel:
    import torch

    from synthclip.interop.checkpoint import read_state_dict, refuse_other_architecture
    from synthclip.training import vitb16

    state = read_state_dict(path)
    with torch.device("meta"):
        expected = vitb16.SynthClipViTB16().state_dict()
    refuse_other_architecture(path, state, expected, vitb16.NAME)
    model = vitb16.SynthClipViTB16()
    model.load_state_dict(state)
    return OpenedModel(model.eval(), vitb16.OPEN_CLIP_CONFIG, vitb16.PREPROCESS, vitb16.Tokenizer())


def _name_and_tag(name: str) -> tuple[str, str]:
    import open_clip

    model, _, tag = name.partition(":")
    known = open_clip.list_models()
    if model not in known:
        close = nearest(model, known) if "did you mean" in nearest(model, known) else ""
        raise SynthClipError(f"{name}: no such file, folder or open_clip model{close}")
    tags = open_clip.list_pretrained_tags_by_model(model)
    if tag not in tags:
        raise SynthClipError(
            f"{name}: open_clip has no such weights: "
            + (
                f"choose one of {', '.join(f'{model}:{one}' for one in tags)}"
                if tags
                else "none are released"
            )
        )
    return model, tag


def _from_open_clip(name: str, tag: str | None) -> OpenedModel:
    import open_clip
    from open_clip.model import get_model_preprocess_cfg

    label = name.removeprefix(_LOCAL) if tag is None else f"{name}:{tag}"
    # open_clip only warns where a tag's weights were trained with the other activation than the name implies.
    quick_gelu = tag is not None and open_clip.get_pretrained_cfg(name, tag).get("quick_gelu", False)
    try:
        model = open_clip.create_model(
            name, pretrained=tag, require_pretrained=True, force_quick_gelu=quick_gelu
        )
        config = open_clip.get_model_config(name)
        if quick_gelu:
            config["quick_gelu"] = True
        tokenizer = open_clip.get_tokenizer(name)
    except json.JSONDecodeError as error:
        raise SynthClipError(f"{label}: {CONFIG_FILE} is not JSON: {error}") from None
    except Exception as error:  # open_clip, its readers and the hub client share no base class
        raise SynthClipError(f"{label}: cannot be loaded: {_told(error)}") from error
    return OpenedModel(model.eval(), config, get_model_preprocess_cfg(model), tokenizer)


def _told(error: Exception) -> str:
    """One line of what went wrong; of a misfit of weights and architecture, the keys too."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2])[:300] if lines else type(error).__name__
