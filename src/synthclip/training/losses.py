"""Contrastive losses over the pairs of a batch."""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy


def clip_loss(image_BE: Tensor, text_BE: Tensor, scale: Tensor) -> Tensor:
    """Symmetric cross-entropy over a batch of pairs (CLIP, arXiv 2103.00020, Figure 3).

    `image_BE` and `text_BE` are L2-normalised; `scale` is the inverse temperature.
    """
    logits_BB = scale * image_BE @ text_BE.T
    target_B = torch.arange(len(logits_BB), device=logits_BB.device)
    return 0.5 * (cross_entropy(logits_BB, target_B) + cross_entropy(logits_BB.T, target_B))
