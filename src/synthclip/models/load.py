"""Loads a CLIP model from wherever one comes."""

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from synthclip.errors import SynthClipError
from synthclip.models import foreign
from synthclip.models.weights import (
    CONFIG_FILE,
    TRAINING_FORMAT,
    from_official,
    official_state_dict,
    read_checkpoint,
    read_weights,
    refuse_other_architecture,
    to_official,
    weight_files,
    weights_of,
)
from synthclip.recipe.section import did_you_mean
from synthclip.recipe.training import PAPER_MODEL, ModelConfig

if TYPE_CHECKING:
    from open_clip import CLIP
    from PIL.Image import Image
    from torch import Tensor

    from synthclip.models.build import LeanCLIP

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
    """open_clip's `model_cfg`."""
    preprocess: dict[str, Any]
    """open_clip's `preprocess_cfg`."""
    tokenizer: Any

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the images that it takes, in pixels."""
        size = self.preprocess["size"]
        return (size, size) if isinstance(size, int) else (size[0], size[1])


class Encoders(NamedTuple):
    """A written model, read back. Both give features float32 [B, embed_dim], not normalised."""

    image: "Callable[[Tensor], Tensor]"
    """From pixels float32 [B, 3, H, W]."""
    text: "Callable[[Tensor], Tensor]"
    """From token ids int64 [B, context_length]."""


def load_model(source: str | Path) -> LoadedModel:
    """Load a CLIP model with its preprocessing and tokenizer.

    `source` is one of: a run directory, or its `train/model`; any open_clip folder (`local-dir:` may stand
    before it); an official SynthCLIP `checkpoint_best.pt`; a `step-<n>.pt` of a run that is being trained;
    `NAME:TAG`, an open_clip model with one of its pretrained weights (`ViT-B-32:laion2b_s34b_b79k`);
    `hf-hub:ORG/REPO`; an `epoch_<n>.pt` of open_clip's training; a transformers CLIP folder.

    Raises SynthClipError where there is no such model, or a file is damaged or not safe to load.
    """
    return _ready(open_model(source))


def load_encoder(source: str | Path) -> LoadedModel:
    """As `load_model`, for features alone: of many models without the work that these do not need."""
    from synthclip.models.build import LeanCLIP

    opened = open_model(source)
    size = opened.config["vision_cfg"].get("image_size", 224)
    if opened.image_size == (size, size):  # else the model refuses what its preprocessing makes
        architecture = {"model_cfg": opened.config, "preprocess_cfg": opened.preprocess}
        opened = replace(opened, model=LeanCLIP.of(opened.model, architecture) or opened.model)
    return _ready(opened)


def split_preprocess(
    preprocess: "Callable[[Image], Tensor]",
) -> "tuple[Callable[[Image], Tensor], Callable[[Tensor], Tensor]]":
    """A preprocessing as what each image takes, and what a batch of the results takes: the same pixels to the
    last bit. torchvision's last steps, to float and normalised, are cheaper for a batch, and one of uint8
    [B, H, W, 3] is a quarter of the bytes; its pixels are laid out as `torch.channels_last`. Others are taken
    as they are.
    """
    import torch

    from synthclip.models import open_clip, torchvision

    transforms, to_mode = torchvision.transforms, open_clip.transform.MaybeConvertMode
    match getattr(preprocess, "transforms", ()):
        case [*steps, transforms.ToTensor(), transforms.Normalize() as normalise]:
            mean_311, std_311 = (torch.tensor(one).view(3, 1, 1) for one in (normalise.mean, normalise.std))
        case _:
            return preprocess, lambda pixels_B3HW: pixels_B3HW

    def one(image: "Image") -> "Tensor":
        for step in steps:
            # Pillow copies what has the size and the mode already.
            cropped = isinstance(step, transforms.CenterCrop) and step.size == (image.height, image.width)
            if not cropped and not (isinstance(step, to_mode) and step.mode == image.mode):
                image = step(image)
        return torch.from_numpy(np.array(image))

    def batch(rgb_BHW3: "Tensor") -> "Tensor":
        pixels_B3HW = rgb_BHW3.permute(0, 3, 1, 2).float().div_(255)
        device = pixels_B3HW.device
        return pixels_B3HW.sub_(mean_311.to(device)).div_(std_311.to(device))

    return one, batch


def local_path(source: str | Path) -> Path:
    """Where a model lies that is on this machine; `local-dir:` may stand before it."""
    return Path(str(source).removeprefix(_LOCAL))


def model_folder(path: Path) -> Path | None:
    """The open_clip folder that a folder is, or has as a run; None where it is neither."""
    return next((folder for folder in (path, path / _IN_RUN) if (folder / CONFIG_FILE).is_file()), None)


def as_loaded(model: "LeanCLIP") -> LoadedModel:
    """A model that is in memory as `load_model` would load it, in eval mode."""
    return _ready(_opened(model))


def _ready(opened: OpenedModel) -> LoadedModel:
    from synthclip.models import open_clip

    config = open_clip.transform.PreprocessCfg(**opened.preprocess)
    preprocess = open_clip.transform.image_transform_v2(config, is_train=False)
    return LoadedModel(opened.model, preprocess, opened.tokenizer)


def open_model(source: str | Path) -> OpenedModel:
    """As `load_model`, with the configuration instead of the ready transform."""
    _refuse_missing(source)
    name, path = str(source), local_path(source)
    if path.is_dir():
        return _from_folder(path)
    if path.is_file():
        return _from_file(path)
    return _from_open_clip(name, None) if name.startswith(_HUB) else _from_open_clip(*_name_and_tag(name))


def refuse_missing(source: str, setting: str) -> None:
    """Raise SynthClipError where there is no model as a setting of the recipe names it. The hub is not asked,
    and nothing is loaded."""
    try:
        _refuse_missing(source)
    except SynthClipError as error:
        raise SynthClipError(f"{setting}: {error}") from None


def _refuse_missing(source: str | Path) -> None:
    name, path = str(source), local_path(source)
    if path.is_file() or name.startswith(_HUB):
        return
    if path.is_dir():
        if model_folder(path) is None and not (path / foreign.CONFIG_FILE).is_file():
            if (path / "recipe.yaml").is_file():
                raise SynthClipError(
                    f"{path}: this run has no trained model yet: run `synthclip train {path}`"
                )
            raise SynthClipError(
                f"{path}: neither a run directory nor a model folder: no {CONFIG_FILE} in it"
            )
    elif name.startswith(_LOCAL) or isinstance(source, Path) or "/" in name or path.suffix in (".pt", ".pth"):
        raise SynthClipError(f"{path}: no such file or folder")
    else:
        _name_and_tag(name)


def known_architecture(source: str | Path) -> dict[str, Any] | None:
    """open_clip's `model_cfg` of a model, where it can be told without loading the model."""
    from synthclip.models import open_clip

    if (folder := model_folder(local_path(source))) is not None:
        found: dict[str, Any] = json.loads((folder / CONFIG_FILE).read_bytes())["model_cfg"]
        return found
    if local_path(source).exists() or str(source).startswith(_HUB):
        return None
    named: dict[str, Any] = open_clip.get_model_config(_name_and_tag(str(source))[0])
    return named


def _from_folder(path: Path) -> OpenedModel:
    folder = model_folder(path)
    if folder is None:
        return _transformers(path)
    files = weight_files(folder)
    return _from_open_clip(
        f"{_LOCAL}{folder}", None, lambda model: _load(model, files[0], read_weights(files))
    )


def _from_file(path: Path) -> OpenedModel:
    checkpoint = read_checkpoint(path)
    if checkpoint.get("format") == TRAINING_FORMAT:
        return _from_training(path, checkpoint)

    def load(model: Any) -> None:
        _load(model, path, weights_of(checkpoint))

    if (path.parent / CONFIG_FILE).is_file() and "image_projection" not in checkpoint.get("state_dict", {}):
        return _from_open_clip(f"{_LOCAL}{path.parent}", None, load)
    if (trained := foreign.open_clip_training(path, checkpoint)) is not None:
        return _from_open_clip(trained.name, None, load, trained.options)
    return _from_official(path, checkpoint)


def _transformers(folder: Path) -> OpenedModel:
    from synthclip.models.build import LeanCLIP

    architecture, state = foreign.transformers_clip(folder, read_weights(weight_files(folder)))
    model = LeanCLIP(architecture)
    refuse_other_architecture(folder, state, model.state_dict(), "its config.json")
    model.load_state_dict(state)
    return _opened(model)


def _from_official(path: Path, checkpoint: dict[str, Any]) -> OpenedModel:
    from synthclip.models.build import build_model

    state, model = official_state_dict(path, checkpoint), build_model(ModelConfig(name=PAPER_MODEL))
    refuse_other_architecture(path, state, to_official(model.state_dict()), PAPER_MODEL)
    model.load_state_dict(from_official(state))
    return _opened(model)


def _from_training(path: Path, checkpoint: dict[str, Any]) -> OpenedModel:
    """A checkpoint of a run that is still being trained: `RUN/train/partial/<fingerprint>/step-<n>.pt`."""
    from synthclip.models.build import LeanCLIP

    try:
        model = LeanCLIP(json.loads(checkpoint["architecture"]))
    except KeyError:
        raise SynthClipError(f"{path}: a checkpoint of an older version: train again") from None
    model.load_state_dict(checkpoint["average"] or checkpoint["model"])
    return _opened(model)


def _opened(model: "LeanCLIP") -> OpenedModel:
    config = model.architecture["model_cfg"]
    size = config["vision_cfg"]["image_size"]
    known = {"size": (size, size), "mode": "RGB", "fill_color": 0}
    preprocess = {**known, **model.architecture["preprocess_cfg"]}
    return OpenedModel(model.eval(), config, preprocess, _tokenizer(config))


def _tokenizer(config: dict[str, Any]) -> Any:
    """The tokenizer of a model without one of its own: CLIP's, cut as the paper does for its network."""
    from synthclip.models import open_clip
    from synthclip.models.build import PaperTokenizer, is_paper_model

    if is_paper_model(config):
        return PaperTokenizer()
    return open_clip.SimpleTokenizer(context_length=config["text_cfg"]["context_length"])


def _name_and_tag(name: str) -> tuple[str, str]:
    from synthclip.models import open_clip

    model, _, tag = name.partition(":")
    known = open_clip.list_models()
    if model not in known:
        raise SynthClipError(f"{name}: no such file, folder or open_clip model{did_you_mean(model, known)}")
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


def _from_open_clip(
    name: str,
    tag: str | None,
    load: Callable[[Any], None] | None = None,
    options: Mapping[str, Any] | None = None,
) -> OpenedModel:
    """A model that open_clip builds by name; `load` puts in the weights, else they are open_clip's for the
    tag."""
    from synthclip.models import build, open_clip

    label = name.removeprefix(_LOCAL) if tag is None else f"{name}:{tag}"
    options = dict(options or {})
    # open_clip only warns where a tag's weights were trained with the other activation than the name implies.
    if tag is not None and open_clip.get_pretrained_cfg(name, tag).get("quick_gelu", False):
        options["force_quick_gelu"] = True
    try:
        # Else it warns that the weights are random, which those that are loaded below replace.
        logging.disable(logging.NOTSET if load is None else logging.WARNING)
        try:
            model = open_clip.create_model(
                name, pretrained=tag, load_weights=load is None, require_pretrained=load is None, **options
            )
        finally:
            logging.disable(logging.NOTSET)
        config = open_clip.get_model_config(name)
        if options.get("force_quick_gelu"):
            config["quick_gelu"] = True
        tokenizer = _tokenizer(config) if build.is_paper_model(config) else open_clip.get_tokenizer(name)
        if load is not None:
            load(model)
    except SynthClipError:
        raise
    except Exception as error:  # open_clip, its readers and the hub client share no base class
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        raise SynthClipError(f"{label}: cannot be loaded: {' '.join(lines[:2])[:300]}") from error
    return OpenedModel(model.eval(), config, open_clip.model.get_model_preprocess_cfg(model), tokenizer)


def _load(model: Any, path: Path, weights: "dict[str, Tensor]") -> None:
    from synthclip.models import open_clip

    state, wanted = open_clip.convert.convert_state_dict(model, weights), model.state_dict()
    if "positional_embedding" in state and "positional_embedding" not in wanted:
        state = open_clip.model.convert_to_custom_text_state_dict(state)
    for name in {"logit_scale", "logit_bias"} & state.keys() & wanted.keys():
        state[name] = state[name].reshape(wanted[name].shape)
    refuse_other_architecture(path, state, wanted, "its architecture")
    model.load_state_dict(state)
