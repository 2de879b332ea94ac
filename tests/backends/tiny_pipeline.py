"""A Stable Diffusion pipeline that is whole but tiny, with random weights."""

import gzip
import json
from pathlib import Path
from typing import Any

_MERGES = 2000
_VOCABULARY = 2 * 256 + _MERGES + 2
CLIP_TEXT = {
    "vocab_size": _VOCABULARY,
    "bos_token_id": _VOCABULARY - 2,
    "eos_token_id": _VOCABULARY - 1,
    "hidden_size": 32,
    "intermediate_size": 37,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "projection_dim": 32,
}
"""A text encoder for `clip_tokenizer`."""


def clip_tokenizer(folder: Path) -> Any:
    """The first part of CLIP's own vocabulary, from the file that open_clip carries."""
    from synthclip.models import open_clip, transformers

    source = Path(open_clip.__file__).parent / "bpe_simple_vocab_16e6.txt.gz"
    merges = gzip.decompress(source.read_bytes()).decode().split("\n")[1 : _MERGES + 1]
    letters = list(open_clip.tokenizer.bytes_to_unicode().values())
    words = [*letters, *(letter + "</w>" for letter in letters)]
    words += ["".join(merge.split()) for merge in merges]
    words += ["<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: at for at, word in enumerate(words)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    return transformers.CLIPTokenizer.from_pretrained(folder, model_max_length=77)


def save_tiny_pipeline(folder: Path, *, checker: bool = False, nan: bool = False, **unet_values: Any) -> Path:
    """The folder of a pipeline that paints at 32 px in a fraction of a second.

    `checker`: it comes with a safety checker that refuses everything. `nan`: its decoder yields NaN.
    """
    import torch

    from synthclip.models import diffusers, transformers

    torch.manual_seed(0)
    scratch = folder.parent / f"{folder.name}-tokenizer"
    scratch.mkdir(parents=True, exist_ok=True)
    unet = diffusers.UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(32, 64),
        layers_per_block=1,
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=8,
        norm_num_groups=8,
        **unet_values,
    )
    vae = diffusers.AutoencoderKL(
        block_out_channels=(16, 32),
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=32,
    )
    text = transformers.CLIPTextModel(transformers.CLIPTextConfig(**CLIP_TEXT))
    if nan:
        torch.nn.init.constant_(vae.decoder.conv_out.bias, torch.nan)
    diffusers.StableDiffusionPipeline(
        unet=unet,
        scheduler=diffusers.PNDMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            skip_prk_steps=True,
            steps_offset=1,
        ),
        vae=vae,
        text_encoder=text,
        tokenizer=clip_tokenizer(scratch),
        safety_checker=_prude() if checker else None,
        feature_extractor=_feature_extractor() if checker else None,
        requires_safety_checker=checker,
    ).save_pretrained(folder)
    return folder


def _prude() -> Any:
    """A safety checker for which every image lies above every threshold."""
    import torch
    from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker

    from synthclip.models import transformers

    tower = {"hidden_size": 32, "intermediate_size": 37, "num_attention_heads": 4, "num_hidden_layers": 2}
    checker = StableDiffusionSafetyChecker(
        transformers.CLIPConfig(
            text_config=tower, vision_config={**tower, "image_size": 32, "patch_size": 8}, projection_dim=32
        )
    )
    torch.nn.init.constant_(checker.concept_embeds_weights, -2)
    return checker


def _feature_extractor() -> Any:
    from synthclip.models import transformers

    return transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
