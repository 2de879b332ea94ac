"""How much arithmetic a CLIP does: FLOPs, two for a multiply-add."""

import functools

from synthclip.training.config import ModelConfig


@functools.cache
def clip_pair(config: ModelConfig, tokens: int | None = None) -> tuple[float, int]:
    """FLOPs of one image and its caption forward through a CLIP, and the parameters of the CLIP.

    The caption takes so many tokens, the whole context unless told. Counted on the model itself, on torch's
    meta device: no memory is used and nothing is computed.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from synthclip.training.model import build_model, open_clip_config

    shape = open_clip_config(config)["model_cfg"]
    size, length = shape["vision_cfg"]["image_size"], tokens or shape["text_cfg"]["context_length"]
    with torch.device("meta"):
        model = build_model(config)
        image, text = torch.empty(1, 3, size, size), torch.zeros(1, length, dtype=torch.int64)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model.encode_image(image)  # type: ignore[operator]
            model.encode_text(text)  # type: ignore[operator]
    return float(counter.get_total_flops()), sum(weight.numel() for weight in model.parameters())


def training_pair(config: ModelConfig, tokens: int) -> float:
    """FLOPs of a training step for one pair: the backward pass does twice the arithmetic of the forward one
    (Kaplan et al., arXiv 2001.08361, section 2.1)."""
    return 3 * clip_pair(config, tokens)[0]
