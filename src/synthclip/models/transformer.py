"""The forward pass of open_clip's transformers: of one position of each sequence, for images of any size.

The weights stay in open_clip's modules and the features are open_clip's, up to rounding. What is left out is
work that a CLIP throws away: in the last block only the pooled position needs a query and the MLP, and
`nn.MultiheadAttention` copies its projections forward and pads their gradients with zeros backward.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention

from synthclip.models import torchvision_ops

torchvision_ops.ensure()

from timm.layers import resample_abs_pos_embed  # noqa: E402  torchvision must be mended before it is imported


class Block(nn.Module):
    """The weights of an `open_clip.transformer.ResidualAttentionBlock`, under the same names.

    One call does all that a block does, so that what hooks a module's forward, such as FSDP, sees it.
    """

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.ln_1, self.attn, self.ls_1 = block.ln_1, block.attn, block.ls_1
        self.ln_2, self.mlp, self.ls_2 = block.ln_2, block.mlp, block.ls_2

    def forward(self, x_BLD: Tensor, at_B: Tensor | None, causal: bool) -> Tensor:
        """The output [B, L, D], or [B, D] at position `at_B` (int64) of each sequence."""
        out: Tensor
        if at_B is None:
            out = x_BLD + self.ls_1(_attention(self.attn, self.ln_1(x_BLD), causal))
        else:
            row_B = torch.arange(x_BLD.shape[0], device=x_BLD.device)
            out = x_BLD[row_B, at_B] + self.ls_1(_attention_at(self.attn, self.ln_1(x_BLD), at_B, causal))
        out = out + self.ls_2(self.mlp(self.ln_2(out)))
        return out


def lean(transformer: Any) -> None:
    """Prepare an `open_clip.transformer.Transformer` of plain blocks for `pooled`, then its only use."""
    transformer.resblocks = nn.ModuleList(Block(block) for block in transformer.resblocks)


def pooled(transformer: Any, x_BLD: Tensor, at_B: Tensor, *, causal: bool) -> Tensor:
    """The output of a lean transformer [B, D] at position `at_B` (int64) of each sequence.

    With `causal`, no position sees a later one.
    """
    *first, last = transformer.resblocks
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
    resampled_LD: Tensor = resample_abs_pos_embed(own_LD[None], [side, side])[0]
    return resampled_LD


def embedded(visual: nn.Module, image: Tensor) -> Tensor:
    """What enters the blocks of an `open_clip.transformer.VisionTransformer`, [B, 1 + patches, D].

    The edge of the squares `image` [B, 3, H, H] is any multiple of its patch.
    """
    tower: Any = visual
    x_BDHW = tower.conv1(image)
    B, D, H, _ = x_BDHW.shape
    class_B1D = tower.class_embedding.to(x_BDHW.dtype).expand(B, 1, D)
    x_BLD = torch.cat([class_B1D, x_BDHW.flatten(2).transpose(1, 2)], dim=1)
    x_BLD = x_BLD + positions(tower.positional_embedding, H).to(x_BLD.dtype)
    out_BLD: Tensor = tower.ln_pre(tower.patch_dropout(x_BLD))
    return out_BLD


def _attention(attention: nn.MultiheadAttention, x_BLD: Tensor, causal: bool) -> Tensor:
    qkv = linear(x_BLD, attention.in_proj_weight, attention.in_proj_bias)
    q_BHLK, k_BHLK, v_BHLK = _heads(qkv, 3, attention.num_heads)
    mixed_BHLK = scaled_dot_product_attention(q_BHLK, k_BHLK, v_BHLK, is_causal=causal)
    out_BLD: Tensor = attention.out_proj(mixed_BHLK.transpose(1, 2).flatten(2))
    return out_BLD


def _attention_at(attention: nn.MultiheadAttention, x_BLD: Tensor, at_B: Tensor, causal: bool) -> Tensor:
    B, L, D = x_BLD.shape
    of_query, of_rest = attention.in_proj_weight.split([D, 2 * D])
    query_bias, rest_bias = attention.in_proj_bias.split([D, 2 * D])
    here_B1D = x_BLD[torch.arange(B, device=x_BLD.device), at_B].unsqueeze(1)
    (q_BH1K,) = _heads(linear(here_B1D, of_query, query_bias), 1, attention.num_heads)
    k_BHLK, v_BHLK = _heads(linear(x_BLD, of_rest, rest_bias), 2, attention.num_heads)
    seen = torch.arange(L, device=x_BLD.device) <= at_B[:, None, None, None] if causal else None
    mixed_BH1K = scaled_dot_product_attention(q_BH1K, k_BHLK, v_BHLK, attn_mask=seen)
    out_BD: Tensor = attention.out_proj(mixed_BH1K.flatten(1))
    return out_BD


def _heads(x_BLD: Tensor, parts: int, heads: int) -> tuple[Tensor, ...]:
    """Split the last axis into so many tensors [B, H, L, K]."""
    return tuple(part.transpose(1, 2) for part in x_BLD.unflatten(-1, (parts, heads, -1)).unbind(2))
