"""A Stable Diffusion pipeline that is whole but tiny, with random weights."""

from pathlib import Path
from typing import Any

import tiny_parts as tiny

from synthclip import models


def save_tiny_pipeline(folder: Path, *, checker: bool = False, nan: bool = False, **unet_values: Any) -> Path:
    """The folder of a pipeline that paints at 32 px in a fraction of a second.

    `checker`: it comes with a safety checker that refuses everything. `nan`: its decoder yields NaN.
    """
    import torch

    torch.manual_seed(0)
    unet = tiny.unet(cross_attention_dim=32, attention_head_dim=8, **unet_values)
    vae = tiny.vae(latent_channels=4)
    if nan:
        torch.nn.init.constant_(vae.decoder.conv_out.bias, torch.nan)
    models.diffusers.StableDiffusionPipeline(
        unet=unet,
        scheduler=models.diffusers.PNDMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            skip_prk_steps=True,
            steps_offset=1,
        ),
        vae=vae,
        text_encoder=tiny.clip(projects=False),
        tokenizer=tiny.clip_tokenizer(folder),
        safety_checker=_prude() if checker else None,
        feature_extractor=_feature_extractor() if checker else None,
        requires_safety_checker=checker,
    ).save_pretrained(folder)
    return folder


def _prude() -> Any:
    """A safety checker for which every image lies above every threshold."""
    import torch
    from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker

    tower = {"hidden_size": 32, "intermediate_size": 37, "num_attention_heads": 4, "num_hidden_layers": 2}
    checker = StableDiffusionSafetyChecker(
        models.transformers.CLIPConfig(
            text_config=tower, vision_config={**tower, "image_size": 32, "patch_size": 8}, projection_dim=32
        )
    )
    torch.nn.init.constant_(checker.concept_embeds_weights, -2)
    return checker


def _feature_extractor() -> Any:
    return models.transformers.CLIPImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    )
