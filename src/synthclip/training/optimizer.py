"""The paper's optimiser: AdamW, its parameter groups, and each iteration's learning rate."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from synthclip.recipe.training import TrainingConfig

MAX_LOGIT_SCALE = 4.6052
"""ln 100, as CLIP (arXiv 2103.00020, Section 2.5) bounds the logarithm of the inverse temperature."""


def learning_rate(step: int, steps: int, steps_per_epoch: int, config: TrainingConfig) -> float:
    """The rate of iteration `step` of `steps`, counted from 0.

    The warm-up rises linearly from `lr_start` and reaches `lr` with its last iteration; the cosine begins at
    `lr` with the next one and would reach `lr_end` with iteration `steps` (Loshchilov and Hutter,
    arXiv 1608.03983, without restarts).
    """
    warmup = min(steps, int(config.warmup_epochs * steps_per_epoch))
    if step < warmup:
        return config.lr_start + (config.lr - config.lr_start) * step / max(1, warmup - 1)
    progress = (step - warmup) / max(1, steps - warmup)
    return config.lr_end + 0.5 * (config.lr - config.lr_end) * (1 + math.cos(math.pi * progress))


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay applies: not to vectors and scalars, nor to biases and norms by name."""
    return parameter.ndim >= 2 and not any(part in name for part in ("bias", "ln", "bn"))


def build_optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    """Fused AdamW over two groups, with and without weight decay. The learning rate is set each step."""
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [
        {
            "params": [parameter for name, parameter in named if decays(name, parameter)],
            "weight_decay": config.weight_decay,
        },
        {
            "params": [parameter for name, parameter in named if not decays(name, parameter)],
            "weight_decay": 0.0,
        },
    ]
    return torch.optim.AdamW(
        groups, lr=config.lr, betas=(config.beta1, config.beta2), eps=config.eps, fused=True
    )


def clamp_logit_scale(model: nn.Module) -> None:
    """Keep the inverse temperature between 1 and 100; called after every step."""
    scale = model.logit_scale
    assert isinstance(scale, Tensor)
    with torch.no_grad():
        scale.clamp_(0.0, MAX_LOGIT_SCALE)
