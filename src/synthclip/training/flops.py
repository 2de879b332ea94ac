"""How much arithmetic a CLIP does: FLOPs, two for a multiply-add."""

import functools

from synthclip.recipe.training import ModelConfig, TrainingConfig


@functools.cache
def clip_pair(
    config: ModelConfig, tokens: int | None = None, image_size_px: int | None = None
) -> tuple[float, int]:
    """FLOPs of one image and its caption forward through a CLIP, and the parameters of the CLIP.

    The caption takes so many tokens, the whole context unless told; the image has the model's own size unless
    told. Counted on the model itself, on torch's meta device: no memory is used and nothing is computed.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from synthclip.models.build import build_model, open_clip_config

    shape = open_clip_config(config)["model_cfg"]
    size, length = image_size_px or config.image_size_px, tokens or shape["text_cfg"]["context_length"]
    with torch.device("meta"):
        model = build_model(config)
        image, text = torch.empty(1, 3, size, size), torch.zeros(1, length, dtype=torch.int64)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model.encode_image(image)
            model.encode_text(text)
    return float(counter.get_total_flops()), sum(weight.numel() for weight in model.parameters())


def mean_pair(model: ModelConfig, training: TrainingConfig) -> float:
    """FLOPs forward of a pair with its whole context, on the average of the sizes that a training sees."""
    smaller = {stage.image_size_px: stage.share for stage in training.resolutions}
    parts = {**smaller, model.image_size_px: 1 - sum(smaller.values())}
    return sum(share * clip_pair(model, image_size_px=size)[0] for size, share in parts.items())


def training_pair(config: ModelConfig, tokens: int, image_size_px: int) -> float:
    """FLOPs of a training step for one pair: the backward pass does twice the arithmetic of the forward one
    (Kaplan et al., arXiv 2001.08361, section 2.1)."""
    return 3 * clip_pair(config, tokens, image_size_px)[0]
