"""Small tokenizers, text encoders and decoders with random weights, for the families of pipelines."""

from pathlib import Path
from typing import Any

from tiny_pipeline import CLIP_TEXT, clip_tokenizer


def vae(*, widths: tuple[int, ...] = (16, 32), **values: Any) -> Any:
    """Each width but the first halves the size."""
    import torch

    from synthclip.models import diffusers

    torch.manual_seed(0)
    return diffusers.AutoencoderKL(
        block_out_channels=widths,
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        norm_num_groups=8,
        sample_size=32,
        **values,
    )


def clip(*, projects: bool, **values: Any) -> Any:
    from synthclip.models import transformers

    config = transformers.CLIPTextConfig(**CLIP_TEXT, **values)
    return (
        transformers.CLIPTextModelWithProjection(config) if projects else transformers.CLIPTextModel(config)
    )


def tokenizer_in(folder: Path) -> Any:
    scratch = folder.parent / f"{folder.name}-tokenizer"
    scratch.mkdir(parents=True, exist_ok=True)
    return clip_tokenizer(scratch)


T5_WORDS = ("<pad>", "</s>", "<unk>", "▁", *"abcdefghijklmnopqrstuvwxyz0123456789.")


def t5() -> Any:
    from synthclip.models import transformers

    return transformers.T5EncoderModel(
        transformers.T5Config(
            vocab_size=len(T5_WORDS), d_model=64, d_ff=37, d_kv=16, num_layers=1, num_heads=2
        )
    )


def t5_tokenizer() -> Any:
    """One token a letter."""
    from synthclip.models import transformers

    return transformers.T5Tokenizer(
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
    from synthclip.models import open_clip, transformers

    letters = open_clip.tokenizer.bytes_to_unicode().values()
    special = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "[IMG]", "[IMG_BREAK]", "[IMG_END]")
    pictures = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
    words = {word: at for at, word in enumerate([*letters, *special, *pictures])}
    return transformers.Qwen2Tokenizer(
        vocab=words, merges=[], additional_special_tokens=list(special), chat_template=CHAT, **values
    )


def gemma_tokenizer() -> Any:
    from synthclip.models import transformers

    words = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *map(chr, range(33, 127))]
    return transformers.GemmaTokenizer(
        vocab={word: at for at, word in enumerate(words)}, merges=[], model_max_length=300, add_bos_token=True
    )


def decoder_config(kind: str, **values: Any) -> Any:
    """The configuration of a small language model."""
    from synthclip.models import transformers

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
    return getattr(transformers, kind)(**{**shape, **values})


def kl(**values: Any) -> Any:
    """A decoder that halves the size once, of 16 latent channels."""
    return vae(
        latent_channels=16, shift_factor=0.1, use_quant_conv=False, use_post_quant_conv=False, **values
    )


def flow(**values: Any) -> Any:
    from synthclip.models import diffusers

    return diffusers.FlowMatchEulerDiscreteScheduler(**values)


def qwen_vl() -> Any:
    from synthclip.models import transformers

    text = decoder_config("Qwen2_5_VLTextConfig").to_dict()
    text |= {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e6}}
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16}
    return transformers.Qwen2_5_VLForConditionalGeneration(
        transformers.Qwen2_5_VLConfig(text_config=text, vision_config=vision)
    )


def flux2_parts() -> dict[str, Any]:
    from synthclip.models import diffusers

    return {
        "vae": diffusers.AutoencoderKLFlux2(
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
    from synthclip.models import diffusers

    return diffusers.Flux2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        timestep_guidance_channels=16,
        axes_dims_rope=(4, 4, 4, 4),
        **values,
    )


def gemma() -> Any:
    from synthclip.models import transformers

    return transformers.Gemma2Model(decoder_config("Gemma2Config"))


def sana_parts(**values: Any) -> dict[str, Any]:
    from synthclip.models import diffusers

    return {
        "transformer": diffusers.SanaTransformer2DModel(
            in_channels=4,
            out_channels=4,
            num_layers=1,
            num_attention_heads=2,
            attention_head_dim=8,
            num_cross_attention_heads=2,
            cross_attention_head_dim=8,
            cross_attention_dim=16,
            caption_channels=16,
            sample_size=32,
            **values,
        ),
        "vae": diffusers.AutoencoderDC(
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
