"""Small tokenizers, text encoders, denoisers and decoders with random weights, for pipelines."""

import gzip
import json
from pathlib import Path
from typing import Any

from synthclip import models


def unet(**values: Any) -> Any:
    return models.diffusers.UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
        **values,
    )


def denoiser(kind: str, **values: Any) -> Any:
    """A transformer of diffusers: of one layer with two heads, unless given."""
    return getattr(models.diffusers, kind)(**{"num_layers": 1, "num_attention_heads": 2, **values})


def vae(*, widths: tuple[int, ...] = (16, 32), **values: Any) -> Any:
    """Each width but the first halves the size."""
    import torch

    torch.manual_seed(0)
    return models.diffusers.AutoencoderKL(
        block_out_channels=widths,
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        norm_num_groups=8,
        sample_size=32,
        **values,
    )


_MERGES = 2000
_CLIP_VOCABULARY = 2 * 256 + _MERGES + 2
_CLIP_TEXT = {
    "vocab_size": _CLIP_VOCABULARY,
    "bos_token_id": _CLIP_VOCABULARY - 2,
    "eos_token_id": _CLIP_VOCABULARY - 1,
    "hidden_size": 32,
    "intermediate_size": 37,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "projection_dim": 32,
}
"""A text encoder for `clip_tokenizer`."""


def clip(*, projects: bool, **values: Any) -> Any:
    config = models.transformers.CLIPTextConfig(**_CLIP_TEXT, **values)
    return (
        models.transformers.CLIPTextModelWithProjection(config)
        if projects
        else models.transformers.CLIPTextModel(config)
    )


def clip_tokenizer(folder: Path) -> Any:
    """The first part of CLIP's own vocabulary, from the file that open_clip carries; written beside the
    pipeline's `folder`."""
    source = Path(models.open_clip.__file__).parent / "bpe_simple_vocab_16e6.txt.gz"
    merges = gzip.decompress(source.read_bytes()).decode().split("\n")[1 : _MERGES + 1]
    letters = list(models.open_clip.tokenizer.bytes_to_unicode().values())
    words = [*letters, *(letter + "</w>" for letter in letters)]
    words += ["".join(merge.split()) for merge in merges]
    words += ["<|startoftext|>", "<|endoftext|>"]
    scratch = folder.parent / f"{folder.name}-tokenizer"
    scratch.mkdir(parents=True, exist_ok=True)
    (scratch / "vocab.json").write_text(json.dumps({word: at for at, word in enumerate(words)}))
    (scratch / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    return models.transformers.CLIPTokenizer.from_pretrained(scratch, model_max_length=77)


T5_WORDS = ("<pad>", "</s>", "<unk>", "▁", *"abcdefghijklmnopqrstuvwxyz0123456789.")


def t5() -> Any:
    return models.transformers.T5EncoderModel(
        models.transformers.T5Config(
            vocab_size=len(T5_WORDS), d_model=64, d_ff=37, d_kv=16, num_layers=1, num_heads=2
        )
    )


def t5_tokenizer() -> Any:
    """One token a letter."""
    return models.transformers.T5Tokenizer(
        vocab=[(word, -float(at)) for at, word in enumerate(T5_WORDS)], extra_ids=0
    )


CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}"
    "{% else %}{% for part in message.content %}{{ part.text }}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}"
)
_VOCABULARY = 384
"""Room for a byte each and the special tokens of every tokenizer below."""


def qwen_tokenizer(**values: Any) -> Any:
    """One token a byte."""
    letters = models.open_clip.tokenizer.bytes_to_unicode().values()
    special = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "[IMG]", "[IMG_BREAK]", "[IMG_END]")
    pictures = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
    words = {word: at for at, word in enumerate([*letters, *special, *pictures])}
    return models.transformers.Qwen2Tokenizer(
        vocab=words, merges=[], additional_special_tokens=list(special), chat_template=CHAT, **values
    )


def gemma_tokenizer() -> Any:
    words = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *map(chr, range(33, 127))]
    return models.transformers.GemmaTokenizer(
        vocab={word: at for at, word in enumerate(words)}, merges=[], model_max_length=300, add_bos_token=True
    )


def decoder_config(kind: str, **values: Any) -> Any:
    """The configuration of a small language model."""
    shape = {
        "vocab_size": _VOCABULARY,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 2048,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }
    return getattr(models.transformers, kind)(**{**shape, **values})


def kl(**values: Any) -> Any:
    """A decoder that halves the size once, of 16 latent channels."""
    return vae(
        latent_channels=16, shift_factor=0.1, use_quant_conv=False, use_post_quant_conv=False, **values
    )


def flow(**values: Any) -> Any:
    return models.diffusers.FlowMatchEulerDiscreteScheduler(**values)


def qwen_vl() -> Any:
    text = decoder_config("Qwen2_5_VLTextConfig").to_dict()
    text |= {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e6}}
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16}
    return models.transformers.Qwen2_5_VLForConditionalGeneration(
        models.transformers.Qwen2_5_VLConfig(text_config=text, vision_config=vision)
    )


def flux2_parts() -> dict[str, Any]:
    return {
        "vae": models.diffusers.AutoencoderKLFlux2(
            block_out_channels=(8, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=4,
            sample_size=32,
        ),
        "scheduler": flow(use_dynamic_shifting=True),
    }


def flux2_transformer(**values: Any) -> Any:
    return denoiser(
        "Flux2Transformer2DModel",
        in_channels=16,
        num_single_layers=1,
        attention_head_dim=16,
        timestep_guidance_channels=16,
        axes_dims_rope=(4, 4, 4, 4),
        **values,
    )


def gemma() -> Any:
    return models.transformers.Gemma2Model(decoder_config("Gemma2Config"))


def sana_parts(**values: Any) -> dict[str, Any]:
    return {
        "transformer": denoiser(
            "SanaTransformer2DModel",
            in_channels=4,
            out_channels=4,
            attention_head_dim=8,
            num_cross_attention_heads=2,
            cross_attention_head_dim=8,
            cross_attention_dim=16,
            caption_channels=16,
            sample_size=32,
            **values,
        ),
        "vae": models.diffusers.AutoencoderDC(
            latent_channels=4,
            attention_head_dim=2,
            encoder_block_types=("ResBlock", "EfficientViTBlock"),
            decoder_block_types=("ResBlock", "EfficientViTBlock"),
            encoder_block_out_channels=(8, 8),
            decoder_block_out_channels=(8, 8),
            encoder_qkv_multiscales=((), (5,)),
            decoder_qkv_multiscales=((), (5,)),
            encoder_layers_per_block=(1, 1),
            decoder_layers_per_block=(1, 1),
            downsample_block_type="conv",
            upsample_block_type="interpolate",
            decoder_norm_types="rms_norm",
            decoder_act_fns="silu",
        ),
        "text_encoder": gemma(),
        "tokenizer": gemma_tokenizer(),
    }
