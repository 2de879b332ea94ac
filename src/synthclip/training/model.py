"""The CLIP that a recipe describes, out of open_clip's modules."""

import json
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn

from synthclip import torchvision_ops
from synthclip.training.config import PAPER_MODEL, ModelConfig

torchvision_ops.ensure()

import open_clip  # noqa: E402  torchvision must be mended before it is imported
from open_clip.transformer import text_global_pool  # noqa: E402

IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)
"""ImageNet's, in RGB on a scale of 0 to 1: the paper's normalisation."""


def build_model(config: ModelConfig) -> nn.Module:
    """A CLIP with fresh weights and open_clip's interface.

    `encode_image(images float [B, 3, H, W])` and `encode_text(tokens int64 [B, L])` give [B, embed_dim];
    `logit_scale` is the logarithm of the inverse temperature. L may be below the context length when every
    text of the batch fits: the features are the same. Draws from torch's global generator.
    """
    if config.name == PAPER_MODEL:
        from synthclip.training import vitb16

        return vitb16.SynthClipViTB16()
    cfg = open_clip_config(config)["model_cfg"]
    return ShortTextCLIP(**cfg)


class ShortTextCLIP(open_clip.CLIP):  # type: ignore[misc]
    """open_clip's CLIP, which takes batches of texts shorter than its context."""

    def encode_text(self, text: Tensor, normalize: bool = False) -> Tensor:
        # No token sees a later one, so cutting what stands after the last end token changes nothing.
        L = text.shape[1]
        x_BLD = self.token_embedding(text).to(self.transformer.get_cast_dtype())
        x_BLD = x_BLD + self.positional_embedding[:L].to(x_BLD.dtype)
        x_BLD = self.ln_final(self.transformer(x_BLD, attn_mask=self.attn_mask[:L, :L]))
        x_BE: Tensor = text_global_pool(x_BLD, text, self.text_pool_type) @ self.text_projection
        return nn.functional.normalize(x_BE, dim=-1) if normalize else x_BE


def open_clip_config(config: ModelConfig) -> dict[str, Any]:
    """The contents of `open_clip_config.json` for a model."""
    if config.name == PAPER_MODEL:
        from synthclip.training import vitb16

        return {"model_cfg": vitb16.OPEN_CLIP_CONFIG, "preprocess_cfg": _PREPROCESS}
    vision, text = config.vision, config.text
    vision_cfg: dict[str, Any] = {"image_size": vision.image_size_px}
    if vision.timm is not None:
        vision_cfg |= {
            "timm_model_name": vision.timm,
            "timm_model_pretrained": False,
            "timm_pool": "avg",
            "timm_proj": "linear",
        }
    else:
        vision_cfg |= {
            "layers": vision.layers if isinstance(vision.layers, int) else list(vision.layers),
            "width": vision.width,
            "head_width": vision.head_width,
            "patch_size": vision.patch_size_px,
            "patch_dropout": vision.patch_dropout,
        }
    text_cfg = {
        "context_length": text.context_length,
        "vocab_size": 49408,
        "width": text.width,
        "heads": text.heads,
        "layers": text.layers,
    }
    model_cfg = {
        "embed_dim": config.embed_dim,
        "vision_cfg": vision_cfg,
        "text_cfg": text_cfg,
        "init_logit_scale": config.logit_scale,
        "init_logit_bias": config.logit_bias,
    }
    return {"model_cfg": model_cfg, "preprocess_cfg": _PREPROCESS}


_PREPROCESS = {
    "mean": list(IMAGE_MEAN),
    "std": list(IMAGE_STD),
    "interpolation": "bilinear",
    "resize_mode": "shortest",
}


def build_encode(config: ModelConfig) -> Callable[[str], tuple[int, ...]]:
    """CLIP's tokenizer for one text: ids with start and end token, cut to the context.

    What is cut keeps its end token; of `synthclip-vitb16` it loses it, as in the paper's code.
    """
    tokenizer = open_clip.SimpleTokenizer()
    context = config.text.context_length
    end_kept = config.name != PAPER_MODEL

    @lru_cache(maxsize=1 << 17)
    def encode(text: str) -> tuple[int, ...]:
        ids = (tokenizer.sot_token_id, *tokenizer.encode(text), tokenizer.eot_token_id)
        if len(ids) > context and end_kept:
            return (*ids[: context - 1], tokenizer.eot_token_id)
        return ids[:context]

    return encode


def save_open_clip(model: nn.Module, config: ModelConfig, folder: Path) -> None:
    """Write a folder that `open_clip.create_model_and_transforms("local-dir:FOLDER")` loads."""
    state = model.state_dict()
    if config.name == PAPER_MODEL:
        from synthclip.training import vitb16

        state = vitb16.to_open_clip(state)
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(open_clip_config(config), indent=2) + "\n"
    (folder / "open_clip_config.json").write_text(text, encoding="utf-8")
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    save_file(whole, folder / "open_clip_model.safetensors")
