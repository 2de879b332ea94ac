"""The blocks of a transformer without the work that a CLIP throws away.

Shapes: B sequences of a batch, L positions of a sequence, D width, H heads, K width of a head.

The weights stay in open_clip's and timm's modules, and the features are theirs, up to rounding. In the last
block only the pooled position needs a query and the MLP; `nn.MultiheadAttention` copies its projections
forward and pads their gradients with zeros backward; timm's attention puts the gradients of its projections
together twice; a convolution over patches is one matrix product.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention

from synthclip.models import open_clip, timm


def is_timm_vit(visual: Any) -> bool:
    """Whether a tower is a ViT of timm's with one token, of the class, before its square of patches."""
    trunk = getattr(visual, "trunk", None)
    if not isinstance(trunk, timm.models.VisionTransformer) or trunk.pos_embed is None:
        return False
    return bool(trunk.pos_embed.shape[1] == 1 + trunk.patch_embed.num_patches)


class Projections(NamedTuple):
    """Those of an attention: of queries, keys and values stacked, and of what comes out."""

    weight: Tensor
    bias: Tensor | None
    out: nn.Module
    heads: int


class Block(nn.Module):
    """The weights of an `open_clip.transformer.ResidualAttentionBlock`, under the same names.

    One call does all that a block does, so that what hooks a module's forward, such as FSDP, sees it.
    """

    NORM_1, SCALE_1, NORM_2, SCALE_2 = "ln_1", "ls_1", "ln_2", "ls_2"

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        for name in (self.NORM_1, "attn", self.SCALE_1, self.NORM_2, "mlp", self.SCALE_2):
            self.add_module(name, block.get_submodule(name))

    def projections(self) -> Projections:
        attention: Any = self.attn
        return Projections(
            attention.in_proj_weight, attention.in_proj_bias, attention.out_proj, attention.num_heads
        )

    def forward(self, x_BLD: Tensor, at_B: Tensor | None, causal: bool) -> Tensor:
        """The output [B, L, D], or [B, D] at position `at_B` (int64) of each sequence."""
        of: Any = self._modules
        x = x_BLD
        if at_B is None:
            mixed = _attention(self.projections(), of[self.NORM_1](x), causal)
        else:
            mixed = _attention_at(self.projections(), of[self.NORM_1](x), at_B, causal)
            x = x[torch.arange(x.shape[0], device=x.device), at_B]
        x = x + of[self.SCALE_1](mixed)
        out: Tensor = x + of[self.SCALE_2](of["mlp"](of[self.NORM_2](x)))
        return out


class TimmBlock(Block):
    """The weights of a plain `timm.models.vision_transformer.Block`, under the same names."""

    NORM_1, SCALE_1, NORM_2, SCALE_2 = "norm1", "ls1", "norm2", "ls2"

    def projections(self) -> Projections:
        attention: Any = self.attn
        return Projections(attention.qkv.weight, attention.qkv.bias, attention.proj, attention.num_heads)


def is_plain(model: Any) -> bool:
    """Whether an `open_clip.CLIP` reads its texts at their end token, behind plain blocks in which no token
    sees a later one; and, if its image tower is a ViT of open_clip's, so that at its class token."""
    visual, text = model.visual, model.transformer
    kind = open_clip.transformer.ResidualAttentionBlock
    plain_text = (
        model.text_pool_type == "argmax"
        and model.attn_mask is not None
        and isinstance(model.text_projection, nn.Parameter)
        and all(type(block) is kind for block in text.resblocks)
    )
    if not isinstance(visual, open_clip.transformer.VisionTransformer):
        return plain_text
    plain_image = visual.attn_pool is None and visual.pool_type == "tok" and visual.proj is not None
    blocks = visual.transformer.resblocks
    return (
        plain_text and plain_image and not visual.output_tokens and all(type(one) is kind for one in blocks)
    )


def lean(transformer: Any) -> None:
    """Prepare an `open_clip.transformer.Transformer` of plain blocks for `pooled`, then its only use."""
    transformer.resblocks = nn.ModuleList(Block(block) for block in transformer.resblocks)


def lean_timm(trunk: Any) -> bool:
    """Prepare a ViT of timm's for `timm_vit_features`, then its only use, if it reads its class token behind
    plain blocks, and its patches are plain too; whether it does."""
    if trunk.global_pool != "token" or trunk.attn_pool is not None or not all(map(_is_plain, trunk.blocks)):
        return False
    embed = trunk.patch_embed
    if type(embed) is not timm.layers.PatchEmbed or not embed.flatten or embed.dynamic_img_pad:
        return False
    trunk.blocks = nn.ModuleList(TimmBlock(block) for block in trunk.blocks)
    return True


def _is_plain(block: Any) -> bool:
    if (
        type(block) is not timm.models.vision_transformer.Block
        or type(block.attn) is not timm.layers.Attention
    ):
        return False
    attention = block.attn
    unused = (attention.q_norm, attention.k_norm, attention.norm, block.drop_path1, block.drop_path2)
    return (
        attention.gate is None
        and attention.attn_drop.p == attention.proj_drop.p == 0
        and all(isinstance(part, nn.Identity) for part in unused)
    )


def vit_features(visual: Any, image: Tensor) -> Tensor:
    """[B, E] of a lean `open_clip.transformer.VisionTransformer`. The edge of the squares `image`
    [B, 3, H, H] is any multiple of its patch."""
    x_BLD = _with_positions(
        visual.class_embedding, _patches(visual.conv1, image), visual.positional_embedding
    )
    x_BLD = visual.ln_pre(visual.patch_dropout(x_BLD))
    x_BE: Tensor = visual.ln_post(_at_class_token(visual.transformer.resblocks, x_BLD)) @ visual.proj
    return x_BE


def timm_vit_features(visual: Any, image: Tensor) -> Tensor:
    """As `vit_features`, of an `open_clip.timm_model.TimmModel` that `lean_timm` prepared."""
    trunk = visual.trunk
    patch_BPD = trunk.patch_embed.norm(_patches(trunk.patch_embed.proj, image))
    x_BLD = _with_positions(trunk.cls_token[0, 0], patch_BPD, trunk.pos_embed[0])
    x_BLD = trunk.norm_pre(trunk.patch_drop(trunk.pos_drop(x_BLD)))
    x_BD = trunk.norm(_at_class_token(trunk.blocks, x_BLD))
    x_BE: Tensor = visual.head(trunk.head(trunk.head_drop(trunk.fc_norm(x_BD))))
    return x_BE


def _patches(conv: nn.Conv2d, image: Tensor) -> Tensor:
    """A convolution whose stride is its kernel, [B, P, D], as one matrix product, which takes less time."""
    B, _, H, W = image.shape
    h, w = conv.kernel_size
    pixels = image.permute(0, 2, 3, 1).reshape(B, H // h, h, W // w, w, -1)
    pixels_BPC = pixels.permute(0, 1, 3, 2, 4, 5).reshape(B, (H // h) * (W // w), -1)
    return linear(pixels_BPC, conv.weight.permute(0, 2, 3, 1).flatten(1), conv.bias)


def _with_positions(class_D: Tensor, patch_BPD: Tensor, own_LD: Tensor) -> Tensor:
    """The class token and the patches, each with its position, [B, 1 + P, D]."""
    B, P, _ = patch_BPD.shape
    x_BLD = torch.cat([class_D.to(patch_BPD.dtype).expand(B, 1, -1), patch_BPD], dim=1)
    return x_BLD + positions(own_LD, math.isqrt(P)).to(x_BLD.dtype)


def _at_class_token(blocks: nn.ModuleList, x_BLD: Tensor) -> Tensor:
    """The output of lean blocks [B, D] at the first position of each sequence."""
    first_B = torch.zeros(x_BLD.shape[0], dtype=torch.int64, device=x_BLD.device)
    return pooled(blocks, x_BLD, first_B, causal=False)


def pooled(blocks: nn.ModuleList, x_BLD: Tensor, at_B: Tensor, *, causal: bool) -> Tensor:
    """The output of lean blocks [B, D] at position `at_B` (int64) of each sequence.

    With `causal`, no position sees a later one.
    """
    *first, last = blocks
    for block in first:
        x_BLD = block(x_BLD, None, causal)
    out_BD: Tensor = last(x_BLD, at_B, causal)
    return out_BD


def positions(own_LD: Tensor, side: int) -> Tensor:
    """Position embeddings [1 + side * side, D] for a square grid of patches behind a class token.

    Those of another grid, `own_LD`, are interpolated as timm and open_clip do where they load weights for
    another image size; for its own grid it is the very same tensor.
    """
    if own_LD.shape[0] == 1 + side * side:
        return own_LD
    resampled_LD: Tensor = timm.layers.resample_abs_pos_embed(own_LD[None], [side, side])[0]
    return resampled_LD


def _attention(by: Projections, x_BLD: Tensor, causal: bool) -> Tensor:
    q_BHLK, k_BHLK, v_BHLK = _heads(linear(x_BLD, by.weight, by.bias), 3, by.heads)
    mixed_BHLK = scaled_dot_product_attention(q_BHLK, k_BHLK, v_BHLK, is_causal=causal)
    out_BLD: Tensor = by.out(mixed_BHLK.transpose(1, 2).flatten(2))
    return out_BLD


def _attention_at(by: Projections, x_BLD: Tensor, at_B: Tensor, causal: bool) -> Tensor:
    B, L, D = x_BLD.shape
    of_query, of_rest = by.weight.split([D, 2 * D])
    query_bias, rest_bias = (None, None) if by.bias is None else by.bias.split([D, 2 * D])
    here_B1D = x_BLD[torch.arange(B, device=x_BLD.device), at_B].unsqueeze(1)
    (q_BH1K,) = _heads(linear(here_B1D, of_query, query_bias), 1, by.heads)
    k_BHLK, v_BHLK = _heads(linear(x_BLD, of_rest, rest_bias), 2, by.heads)
    seen = torch.arange(L, device=x_BLD.device) <= at_B[:, None, None, None] if causal else None
    mixed_BH1K = scaled_dot_product_attention(q_BH1K, k_BHLK, v_BHLK, attn_mask=seen)
    out_BD: Tensor = by.out(mixed_BH1K.flatten(1))
    return out_BD


def _heads(x_BLD: Tensor, parts: int, heads: int) -> tuple[Tensor, ...]:
    """Split the last axis into `parts` tensors [B, H, L, K]."""
    return tuple(part.transpose(1, 2) for part in x_BLD.unflatten(-1, (parts, heads, -1)).unbind(2))
