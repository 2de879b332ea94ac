"""`synthclip-vitb16`: the ViT-B/16 CLIP of the SynthCLIP paper (arXiv 2402.01832, section 4).

The state dict has the official names and layouts, so that official checkpoints load as they are. The same
network also exists in open_clip's terms (`OPEN_CLIP_CONFIG`); `to_open_clip` and `from_open_clip` translate
the weights, which are the same numbers either way.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from synthclip.models import torchvision_ops
from synthclip.models.transformer import lean, pooled, positions

torchvision_ops.ensure()

import open_clip  # noqa: E402  torchvision must be mended before it is imported
from open_clip.model import set_model_preprocess_cfg  # noqa: E402

NAME = "synthclip-vitb16"

OPEN_CLIP_CONFIG: dict[str, Any] = {
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
"""The same network as open_clip's factory builds it. The image tower keeps timm's exact GELU and its
LayerNorm epsilon of 1e-6; `quick_gelu` reaches the text tower alone."""

PREPROCESS: dict[str, Any] = {
    "size": (224, 224),
    "mode": "RGB",
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
    "interpolation": "bilinear",
    "resize_mode": "shortest",
    "fill_color": 0,
}
"""open_clip's words for torchvision's Resize(224) and CenterCrop(224), with ImageNet's mean and std."""

_TRUNK, _HEAD = "visual.trunk.", "visual.head.proj.weight"


class SynthClipViTB16(open_clip.CLIP):  # type: ignore[misc]
    """The official `CLIP_VITB16` with open_clip's interface.

    `encode_image` takes float32 [B, 3, 224, 224], or squares of another multiple of 16, with positions
    interpolated; `encode_text` token ids int64 [B, L] with L at most 77; both give [B, 512]. The mask is
    causal, so a batch cut after its longest text gives the same features.
    Weights start as in the paper's code: timm's own for the image tower, Radford et al. (2021, section 2.4)
    for the text tower, 768^-0.5 for the image projection, ln(1/0.07) for the logit scale.
    """

    def __init__(self) -> None:
        super().__init__(**OPEN_CLIP_CONFIG)
        lean(self.transformer)
        self.visual: Any = self.visual.trunk
        self.visual.image_size = PREPROCESS["size"]
        self.visual.patch_embed.strict_img_size = False  # positions are interpolated in `encode_image`
        set_model_preprocess_cfg(self, PREPROCESS)
        width, embed_dim = self.visual.num_features, OPEN_CLIP_CONFIG["embed_dim"]
        self.image_projection = nn.Parameter(torch.empty(width, embed_dim).normal_(std=width**-0.5))

    def encode_image(self, image: Tensor, normalize: bool = False) -> Tensor:
        own_LD = self.visual.pos_embed[0]
        at_size_LD = positions(own_LD, image.shape[-1] // self.visual.patch_embed.patch_size[0])
        if at_size_LD is own_LD:
            x_BD = self.visual(image)
        else:
            x_BD = functional_call(self.visual, {"pos_embed": at_size_LD[None]}, (image,))
        features: Tensor = x_BD @ self.image_projection
        return nn.functional.normalize(features, dim=-1) if normalize else features

    def encode_text(self, text: Tensor, normalize: bool = False) -> Tensor:
        x_BLD = self.token_embedding(text) + self.positional_embedding[: text.shape[1]]
        # The end token has the largest id of all.
        at_end = self.ln_final(pooled(self.transformer, x_BLD, text.argmax(dim=-1), causal=True))
        features: Tensor = at_end @ self.text_projection
        return nn.functional.normalize(features, dim=-1) if normalize else features


class Tokenizer(open_clip.SimpleTokenizer):  # type: ignore[misc]
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


def to_open_clip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights under the names of the network that `OPEN_CLIP_CONFIG` describes."""
    renamed = {}
    for name, value in state.items():
        if name == "image_projection":
            renamed[_HEAD] = value.T.contiguous()
        elif name.startswith("visual."):
            renamed[_TRUNK + name.removeprefix("visual.")] = value
        else:
            renamed[name] = value
    return renamed


def from_open_clip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `to_open_clip`: the weights under the official names."""
    renamed = {}
    for name, value in state.items():
        if name == _HEAD:
            renamed["image_projection"] = value.T.contiguous()
        elif name.startswith(_TRUNK):
            renamed["visual." + name.removeprefix(_TRUNK)] = value
        else:
            renamed[name] = value
    return renamed
