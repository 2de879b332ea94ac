"""The CLIP that a recipe describes, out of open_clip's modules.

Shapes: B images or texts of a batch, L positions of a sequence, D width of a tower, E width of the embedding.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.func import functional_call

from synthclip.errors import SynthClipError, first_line
from synthclip.models import open_clip, timm
from synthclip.models.transformer import (
    is_plain,
    is_timm_vit,
    lean,
    lean_timm,
    pooled,
    positions,
    timm_vit_features,
    vit_features,
)
from synthclip.models.weights import CONFIG_FILE, WEIGHTS_FILE
from synthclip.recipe.section import did_you_mean
from synthclip.recipe.training import PAPER_MODEL, ModelConfig

PAPER_MODEL_CFG: dict[str, Any] = {
    "embed_dim": 512,
    "quick_gelu": True,
    "vision_cfg": {
        "timm_model_name": "vit_base_patch16_224",
        "timm_model_pretrained": False,
        "timm_pool": "token",
        "timm_proj": "linear",
        "image_size": 224,
    },
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12},
}
"""The network of the SynthCLIP paper (arXiv 2402.01832, section 4) as open_clip's `model_cfg`. The image
tower keeps timm's exact GELU and its LayerNorm epsilon of 1e-6; `quick_gelu` reaches the text tower alone."""

IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)
"""ImageNet's, in RGB on a scale of 0 to 1: the paper's normalisation."""

_PREPROCESS: dict[str, Any] = {
    "mean": list(IMAGE_MEAN),
    "std": list(IMAGE_STD),
    "interpolation": "bilinear",
    "resize_mode": "shortest",
}
"""open_clip's words for torchvision's Resize and CenterCrop, with ImageNet's mean and std."""
PREPROCESS_KEYS = tuple(_PREPROCESS)
"""What an open_clip folder says of the preprocessing; all else follows from the model."""


def open_clip_config(config: ModelConfig) -> dict[str, Any]:
    """The architecture of a model, as `open_clip_config.json` has it: `model_cfg` and `preprocess_cfg`."""
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
    if config.name == PAPER_MODEL:
        model_cfg = PAPER_MODEL_CFG
    return {"model_cfg": model_cfg, "preprocess_cfg": _PREPROCESS}


def build_model(config: ModelConfig) -> "LeanCLIP":
    """A CLIP with fresh weights. Draws from torch's global generator.

    Raises SynthClipError where timm has no such image tower, or takes no such size.
    """
    try:
        model = LeanCLIP(open_clip_config(config))
    except (RuntimeError, AssertionError, TypeError, ValueError) as error:
        name = config.vision.timm
        if name is None or config.name == PAPER_MODEL:
            raise
        known = timm.list_models()
        hint = did_you_mean(name, known) if name not in known else ""
        reason = first_line(error)[:200]
        raise SynthClipError(f"model.vision.timm={name}: cannot be built: {reason}{hint}") from None
    if config.name == PAPER_MODEL:  # which draws its image projection [width, embed_dim] last
        weight: nn.Parameter = model.visual.head.proj.weight
        embed_dim, width = weight.shape
        weight.data = torch.empty(width, embed_dim).normal_(std=width**-0.5).T.contiguous()
    return model


class LeanCLIP(open_clip.CLIP):  # type: ignore[misc]
    """open_clip's CLIP without the work that its features do not need.

    `encode_image(images float [B, 3, H, W])` and `encode_text(tokens int64 [B, L])` give [B, embed_dim];
    `logit_scale` is the logarithm of the inverse temperature.

    Image towers with position embeddings take other sizes than their own, as training at progressive
    resolution needs; of timm's, its ViTs and those that do so by themselves. Batches of texts may be shorter
    than the context: no token sees a later one, so cutting what stands after the last end token changes
    nothing.
    """

    def __init__(self, architecture: dict[str, Any]) -> None:
        super().__init__(**architecture["model_cfg"])
        self._lean(architecture)

    @classmethod
    def of(cls, model: Any, architecture: dict[str, Any]) -> "LeanCLIP | None":
        """A model of open_clip's as this class, with its very weights; None where its towers are others than
        this class knows. It takes the model over: the one given is not to be used any more."""
        if type(model) is not open_clip.CLIP or not is_plain(model):
            return None
        made = cls.__new__(cls)
        made.__dict__.update(model.__dict__)
        made._lean(architecture)
        return made

    def _lean(self, architecture: dict[str, Any]) -> None:
        self.architecture = architecture
        """As `open_clip_config` gives it."""
        lean(self.transformer)
        self._lean_trunk = False
        if isinstance(self.visual, open_clip.transformer.VisionTransformer):
            lean(self.visual.transformer)
        elif is_timm_vit(self.visual):
            self.visual.trunk.patch_embed.strict_img_size = False  # positions are interpolated below
            self._lean_trunk = lean_timm(self.visual.trunk)

    def encode_image(self, image: Tensor, normalize: bool = False) -> Tensor:
        visual: Any = self.visual
        size = image.shape[-1]
        x_BE: Tensor
        if isinstance(visual, open_clip.transformer.VisionTransformer):
            x_BE = vit_features(visual, image)
        elif self._lean_trunk:
            x_BE = timm_vit_features(visual, image)
        elif isinstance(visual, open_clip.modified_resnet.ModifiedResNet) and size != visual.image_size:
            at_size_LD = positions(visual.attnpool.positional_embedding, size // 32)
            x_BE = functional_call(visual, {"attnpool.positional_embedding": at_size_LD}, (image,))
        elif is_timm_vit(visual) and size != visual.trunk.patch_embed.img_size[0]:
            at_size_LD = positions(visual.trunk.pos_embed[0], size // visual.trunk.patch_embed.patch_size[0])
            x_BE = functional_call(visual, {"trunk.pos_embed": at_size_LD[None]}, (image,))
        else:
            x_BE = visual(image)
        return nn.functional.normalize(x_BE, dim=-1) if normalize else x_BE

    def encode_text(self, text: Tensor, normalize: bool = False) -> Tensor:
        x_BLD = self.token_embedding(text) + self.positional_embedding[: text.shape[1]]
        # The end token has the largest id of all.
        x_BD = self.ln_final(pooled(self.transformer.resblocks, x_BLD, text.argmax(dim=-1), causal=True))
        x_BE: Tensor = x_BD @ self.text_projection
        return nn.functional.normalize(x_BE, dim=-1) if normalize else x_BE


def save_open_clip(model: LeanCLIP, folder: Path) -> None:
    """Write a folder that `open_clip.create_model_and_transforms("local-dir:FOLDER")` loads."""
    folder.mkdir(parents=True, exist_ok=True)
    write_folder(folder, model.architecture, model.state_dict())


def write_folder(folder: Path, architecture: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
    """Write an architecture, as `open_clip_config` gives it, and its weights into an open_clip folder."""
    (folder / CONFIG_FILE).write_text(json.dumps(architecture, indent=2) + "\n", encoding="utf-8")
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    try:
        save_file(weights, folder / WEIGHTS_FILE)
    except SafetensorError as error:  # a full disk, say: it is no OSError
        raise SynthClipError(
            f"{folder}: the model cannot be written ({error}): run the same command again"
        ) from None


def is_paper_model(model_cfg: dict[str, Any]) -> bool:
    """Whether an open_clip `model_cfg` is the paper's network, spelt out or left to open_clip's defaults."""

    def normal(config: dict[str, Any]) -> dict[str, Any]:
        towers = {"vision_cfg": open_clip.model.CLIPVisionCfg, "text_cfg": open_clip.model.CLIPTextCfg}
        return {key: towers[key](**value) if key in towers else value for key, value in config.items()}

    return normal(model_cfg) == normal(PAPER_MODEL_CFG)


def build_encode(model_cfg: dict[str, Any]) -> Callable[[str], tuple[int, ...]]:
    """CLIP's tokenizer for one text: ids with start and end token, cut to the context.

    What is cut keeps its end token; that of `synthclip-vitb16` loses it; see `PaperTokenizer`.
    """
    tokenizer = open_clip.SimpleTokenizer()
    context = model_cfg["text_cfg"]["context_length"]
    end_kept = not is_paper_model(model_cfg)

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


class PaperTokenizer(open_clip.SimpleTokenizer):  # type: ignore[misc]
    """CLIP's byte-pair encoding as the official code calls it.

    A text of more than 75 tokens is cut without putting the end token back, where open_clip puts it back.
    The text feature is read at the largest id, so for such texts the two give different features, and the
    official weights have only ever seen this one.
    """

    def __call__(self, texts: str | Sequence[str], context_length: int | None = None) -> Tensor:
        """Token ids int64 [N, 77], padded with zeros."""
        texts = [texts] if isinstance(texts, str) else texts
        ids = torch.zeros(len(texts), context_length or self.context_length, dtype=torch.long)
        for row, text in zip(ids, texts, strict=True):
            tokens = [self.sot_token_id, *self.encode(text), self.eot_token_id][: len(row)]
            row[: len(tokens)] = torch.tensor(tokens)
        return ids
