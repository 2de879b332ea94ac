"""Models as other programs write them, in open_clip's terms."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from synthclip.errors import SynthClipError
from synthclip.models.weights import plain_names

if TYPE_CHECKING:
    from torch import Tensor

CONFIG_FILE = "config.json"
"""The file by which transformers knows a model folder."""
_TOWERS: dict[str, dict[str, Any]] = {
    "text": {
        "vocab_size": 49408,
        "hidden_size": 512,
        "intermediate_size": 2048,
        "num_hidden_layers": 12,
        "num_attention_heads": 8,
        "max_position_embeddings": 77,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
    },
    "vision": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "image_size": 224,
        "patch_size": 32,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
    },
}
"""What transformers leaves out of a `config.json` where it is the default."""
_PREPROCESS = {
    "image_mean": (0.48145466, 0.4578275, 0.40821073),
    "image_std": (0.26862954, 0.26130258, 0.27577711),
    "resample": 3,
    "do_center_crop": True,
}
_INTERPOLATION = {2: "bilinear", 3: "bicubic"}
_NAMES = {
    "text_model.embeddings.token_embedding.": "token_embedding.",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm.": "ln_final.",
    "text_model.encoder.layers.": "transformer.resblocks.",
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.": "visual.conv1.",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.pre_layrnorm.": "visual.ln_pre.",
    "vision_model.post_layernorm.": "visual.ln_post.",
    "vision_model.encoder.layers.": "visual.transformer.resblocks.",
    ".self_attn.out_proj.": ".attn.out_proj.",
    ".layer_norm1.": ".ln_1.",
    ".layer_norm2.": ".ln_2.",
    ".mlp.fc1.": ".mlp.c_fc.",
    ".mlp.fc2.": ".mlp.c_proj.",
}
_PROJECTIONS = {"text_projection.weight": "text_projection", "visual_projection.weight": "visual.proj"}


@dataclass(frozen=True)
class OpenClipTraining:
    """What open_clip's training says of one of its checkpoints."""

    name: str
    """The model's."""
    options: dict[str, Any]
    """For `open_clip.create_model`."""


def open_clip_training(path: Path, checkpoint: Mapping[str, Any]) -> OpenClipTraining | None:
    """The model of an `epoch_<n>.pt`, by the `params.txt` of its training or the name inside it; None where
    neither says."""
    from synthclip.models import open_clip

    if "state_dict" not in checkpoint:
        return None
    try:
        lines = (path.parent.parent / "params.txt").read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        lines = []
    said = dict(line.split(": ", 1) for line in lines if ": " in line)
    in_name = re.search(r"model_(.+?)-lr_", str(checkpoint.get("name", "")))
    name = said.get("model") or (in_name[1] if in_name else None)
    if name is None or name not in open_clip.list_models():
        return None
    options: dict[str, Any] = {}
    if said.get("force_quick_gelu") == "True":
        options["force_quick_gelu"] = True
    if size := re.fullmatch(r"\[?(\d+)\]?", said.get("force_image_size", "")):
        options["force_image_size"] = int(size[1])
    return OpenClipTraining(name, options)


def transformers_clip(
    folder: Path, weights: "Mapping[str, Tensor]"
) -> "tuple[dict[str, Any], dict[str, Tensor]]":
    """The architecture (as `open_clip_config.json` has it) and the weights of a folder of transformers'.

    Raises SynthClipError where it is not a `CLIPModel`, or one that open_clip has no equal of.
    """
    config = _read_json(folder / CONFIG_FILE)
    if config.get("model_type") != "clip":
        raise SynthClipError(
            f"{folder}: a transformers model of type {config.get('model_type')!r}, not 'clip': name a CLIP"
        )
    text, vision = ({**known, **(config.get(f"{tower}_config") or {})} for tower, known in _TOWERS.items())
    activations = {text["hidden_act"], vision["hidden_act"]}
    if len(activations) > 1 or not activations <= {"quick_gelu", "gelu"}:
        raise SynthClipError(f"{folder}: open_clip has no activation {' and '.join(sorted(activations))}")
    if {text["layer_norm_eps"], vision["layer_norm_eps"]} != {1e-5} or text["vocab_size"] != 49408:
        raise SynthClipError(f"{folder}: its layer norms or its vocabulary are not CLIP's")
    model_cfg = {
        "embed_dim": config.get("projection_dim", 512),
        "quick_gelu": activations == {"quick_gelu"},
        "vision_cfg": {
            "image_size": vision["image_size"],
            "layers": vision["num_hidden_layers"],
            "width": vision["hidden_size"],
            "head_width": vision["hidden_size"] // vision["num_attention_heads"],
            "mlp_ratio": vision["intermediate_size"] / vision["hidden_size"],
            "patch_size": vision["patch_size"],
        },
        "text_cfg": {
            "context_length": text["max_position_embeddings"],
            "vocab_size": text["vocab_size"],
            "width": text["hidden_size"],
            "heads": text["num_attention_heads"],
            "layers": text["num_hidden_layers"],
            "mlp_ratio": text["intermediate_size"] / text["hidden_size"],
        },
    }
    return {"model_cfg": model_cfg, "preprocess_cfg": _preprocess(folder)}, _renamed(plain_names(weights))


def _preprocess(folder: Path) -> dict[str, Any]:
    said: dict[str, Any] = {}
    if (folder / "preprocessor_config.json").is_file():
        said = _read_json(folder / "preprocessor_config.json")
    elif (folder / "processor_config.json").is_file():
        said = _read_json(folder / "processor_config.json").get("image_processor", {})
    said = {**_PREPROCESS, **said}
    if said["resample"] not in _INTERPOLATION:
        raise SynthClipError(f"{folder}: its images are resized by filter {said['resample']}, not supported")
    return {
        "mean": list(said["image_mean"]),
        "std": list(said["image_std"]),
        "interpolation": _INTERPOLATION[said["resample"]],
        "resize_mode": "shortest" if said["do_center_crop"] else "squash",
    }


def _renamed(weights: "Mapping[str, Tensor]") -> "dict[str, Tensor]":
    import torch

    state: dict[str, Tensor] = {}
    for key, value in weights.items():
        if key.endswith(".position_ids"):
            continue
        name = key
        for theirs, ours in _NAMES.items():
            name = name.replace(theirs, ours)
        state[name] = value
    for projection in [name for name in state if ".self_attn.q_proj." in name]:
        block, _, kind = projection.partition(".self_attn.q_proj.")
        parts = [state.pop(f"{block}.self_attn.{part}_proj.{kind}", None) for part in "qkv"]
        if all(part is not None for part in parts):
            state[f"{block}.attn.in_proj_{kind}"] = torch.cat([part for part in parts if part is not None])
    for theirs, ours in _PROJECTIONS.items():
        if theirs in state:
            state[ours] = state.pop(theirs).T.contiguous()
    return state


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise SynthClipError(f"{path}: not JSON: {error}") from None
    return content if isinstance(content, dict) else {}
