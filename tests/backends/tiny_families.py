"""Whole but tiny pipelines of the families that the presets name, with random weights."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tiny_pipeline import CLIP_TEXT, clip_tokenizer


def save_sdxl(folder: Path, *, zeros: bool = True) -> None:
    """`zeros`: the empty prompt is all zeros, as in the released models."""
    from synthclip.models import diffusers

    unet = diffusers.UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 32,
        cross_attention_dim=64,
        norm_num_groups=8,
    )
    diffusers.StableDiffusionXLPipeline(
        unet=unet,
        vae=_vae(latent_channels=4),
        text_encoder=_clip(projects=False),
        text_encoder_2=_clip(projects=True),
        tokenizer=_tokenizer(folder),
        tokenizer_2=_tokenizer(folder),
        scheduler=diffusers.EulerDiscreteScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"
        ),
        force_zeros_for_empty_prompt=zeros,
    ).save_pretrained(folder)


def save_sd3(folder: Path) -> None:
    from synthclip.models import diffusers

    transformer = diffusers.SD3Transformer2DModel(
        sample_size=16,
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_projection_dim=32,
        joint_attention_dim=64,
        pooled_projection_dim=64,
    )
    diffusers.StableDiffusion3Pipeline(
        transformer=transformer,
        vae=_vae(latent_channels=4, shift_factor=0.06),
        text_encoder=_clip(projects=True),
        text_encoder_2=_clip(projects=True),
        text_encoder_3=_t5(),
        tokenizer=_tokenizer(folder),
        tokenizer_2=_tokenizer(folder),
        tokenizer_3=_t5_tokenizer(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
    ).save_pretrained(folder)


def save_flux(folder: Path) -> None:
    from synthclip.models import diffusers

    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=64,
        pooled_projection_dim=32,
        axes_dims_rope=(4, 4, 8),
    )
    diffusers.FluxPipeline(
        transformer=transformer,
        vae=_vae(latent_channels=1, shift_factor=0.06),
        text_encoder=_clip(projects=False),
        text_encoder_2=_t5(),
        tokenizer=_tokenizer(folder),
        tokenizer_2=_t5_tokenizer(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
    ).save_pretrained(folder)


FAMILIES: Mapping[str, Callable[[Path], None]] = {"sdxl": save_sdxl, "sd3": save_sd3, "flux": save_flux}


def _vae(**values: Any) -> Any:
    import torch

    from synthclip.models import diffusers

    torch.manual_seed(0)
    return diffusers.AutoencoderKL(
        block_out_channels=(16, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=8,
        sample_size=32,
        **values,
    )


def _clip(*, projects: bool) -> Any:
    from synthclip.models import transformers

    config = transformers.CLIPTextConfig(**CLIP_TEXT)
    return (
        transformers.CLIPTextModelWithProjection(config) if projects else transformers.CLIPTextModel(config)
    )


def _tokenizer(folder: Path) -> Any:
    scratch = folder.parent / f"{folder.name}-tokenizer"
    scratch.mkdir(parents=True, exist_ok=True)
    return clip_tokenizer(scratch)


_T5_WORDS = ("<pad>", "</s>", "<unk>", "▁", *"abcdefghijklmnopqrstuvwxyz0123456789.")


def _t5() -> Any:
    from synthclip.models import transformers

    return transformers.T5EncoderModel(
        transformers.T5Config(
            vocab_size=len(_T5_WORDS), d_model=64, d_ff=37, d_kv=16, num_layers=1, num_heads=2
        )
    )


def _t5_tokenizer() -> Any:
    """One token a letter."""
    from synthclip.models import transformers

    return transformers.T5Tokenizer(
        vocab=[(word, -float(at)) for at, word in enumerate(_T5_WORDS)], extra_ids=0
    )
