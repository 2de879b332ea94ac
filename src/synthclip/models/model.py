"""The CLIP that a recipe describes, out of open_clip's modules."""

import json
from collections.abc import Callable, Iterable
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.func import functional_call

from synthclip.errors import SynthClipError
from synthclip.models import torchvision_ops
from synthclip.models.transformer import embedded, lean, pooled, positions
from synthclip.recipe.training import PAPER_MODEL, ModelConfig

torchvision_ops.ensure()

import open_clip  # noqa: E402  torchvision must be mended before it is imported
from open_clip.modified_resnet import ModifiedResNet  # noqa: E402
from open_clip.transformer import VisionTransformer  # noqa: E402

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
        from synthclip.models import vitb16

        return vitb16.SynthClipViTB16()
    cfg = open_clip_config(config)["model_cfg"]
    return LeanCLIP(**cfg)


class LeanCLIP(open_clip.CLIP):  # type: ignore[misc]
    """open_clip's CLIP without the work that its features do not need.

    Image towers with position embeddings take other sizes than their own, as training at progressive
    resolution needs; of timm's, those that do so by themselves. Batches of texts may be shorter than the
    context: no token sees a later one, so cutting what stands after the last end token changes nothing.
    """

    def __init__(self, **config: Any) -> None:
        super().__init__(**config)
        lean(self.transformer)
        if isinstance(self.visual, VisionTransformer):
            lean(self.visual.transformer)

    def encode_image(self, image: Tensor, normalize: bool = False) -> Tensor:
        visual: Any = self.visual
        if isinstance(visual, VisionTransformer):
            x_BLD = embedded(visual, image)
            class_token_B = torch.zeros(x_BLD.shape[0], dtype=torch.int64, device=x_BLD.device)
            x_BD = visual.ln_post(pooled(visual.transformer, x_BLD, class_token_B, causal=False))
            x_BE: Tensor = x_BD @ visual.proj
        elif isinstance(visual, ModifiedResNet) and image.shape[-1] != visual.image_size:
            at_size_LD = positions(visual.attnpool.positional_embedding, image.shape[-1] // 32)
            x_BE = functional_call(visual, {"attnpool.positional_embedding": at_size_LD}, (image,))
        else:
            x_BE = visual(image)
        return nn.functional.normalize(x_BE, dim=-1) if normalize else x_BE

    def encode_text(self, text: Tensor, normalize: bool = False) -> Tensor:
        x_BLD = self.token_embedding(text) + self.positional_embedding[: text.shape[1]]
        # The end token has the largest id of all.
        x_BD = self.ln_final(pooled(self.transformer, x_BLD, text.argmax(dim=-1), causal=True))
        x_BE: Tensor = x_BD @ self.text_projection
        return nn.functional.normalize(x_BE, dim=-1) if normalize else x_BE


def open_clip_config(config: ModelConfig) -> dict[str, Any]:
    """The contents of `open_clip_config.json` for a model."""
    if config.name == PAPER_MODEL:
        from synthclip.models import vitb16

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

    @lru_cache(maxsize=1 << 16)
    def word_ids(word: str) -> tuple[int, ...]:
        return tuple(tokenizer.encode(word))

    def text_ids(text: str) -> Iterable[int]:
        # Such a text has nothing to repair, so that its words can be looked up one by one.
        if text.isascii() and text.isprintable() and "&" not in text:
            return chain.from_iterable(map(word_ids, tokenizer.pat.findall(text.lower())))
        return tokenizer.encode(text)  # type: ignore[no-any-return]

    def encode(text: str) -> tuple[int, ...]:
        ids = (tokenizer.sot_token_id, *text_ids(text), tokenizer.eot_token_id)
        if len(ids) > context and end_kept:
            return (*ids[: context - 1], tokenizer.eot_token_id)
        return ids[:context]

    return encode


def save_open_clip(model: nn.Module, config: ModelConfig, folder: Path) -> None:
    """Write a folder that `open_clip.create_model_and_transforms("local-dir:FOLDER")` loads."""
    state = model.state_dict()
    if config.name == PAPER_MODEL:
        from synthclip.models import vitb16

        state = vitb16.to_open_clip(state)
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(open_clip_config(config), indent=2) + "\n"
    (folder / "open_clip_config.json").write_text(text, encoding="utf-8")
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    try:
        save_file(whole, folder / "open_clip_model.safetensors")
    except SafetensorError as error:  # a full disk, say: it is no OSError
        raise SynthClipError(
            f"{folder}: the model cannot be written ({error}): run the same command again"
        ) from None
