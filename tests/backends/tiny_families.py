"""Whole but tiny pipelines of every family that the product names, with random weights."""

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


def _vae(*, widths: tuple[int, ...] = (16, 32), **values: Any) -> Any:
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


def _clip(*, projects: bool, **values: Any) -> Any:
    from synthclip.models import transformers

    config = transformers.CLIPTextConfig(**CLIP_TEXT, **values)
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


_CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}"
    "{% else %}{% for part in message.content %}{{ part.text }}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}"
)
_VOCABULARY = 384
"""Room for a byte each and the special tokens of every tokenizer below."""


def _qwen_tokenizer(**values: Any) -> Any:
    """One token a byte."""
    from synthclip.models import open_clip, transformers

    letters = open_clip.tokenizer.bytes_to_unicode().values()
    special = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "[IMG]", "[IMG_BREAK]", "[IMG_END]")
    special += ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
    words = {word: at for at, word in enumerate([*letters, *special])}
    return transformers.Qwen2Tokenizer(
        vocab=words, merges=[], additional_special_tokens=list(special), chat_template=_CHAT, **values
    )


def _gemma_tokenizer() -> Any:
    from synthclip.models import transformers

    words = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *map(chr, range(33, 127))]
    return transformers.GemmaTokenizer(
        vocab={word: at for at, word in enumerate(words)}, merges=[], model_max_length=300, add_bos_token=True
    )


def _decoder_config(kind: str, **values: Any) -> Any:
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


def _kl(**values: Any) -> Any:
    """A decoder that halves the size once, of 16 latent channels."""
    return _vae(
        latent_channels=16, shift_factor=0.1, use_quant_conv=False, use_post_quant_conv=False, **values
    )


def _flow(**values: Any) -> Any:
    from synthclip.models import diffusers

    return diffusers.FlowMatchEulerDiscreteScheduler(**values)


def save_z_image(folder: Path) -> None:
    from synthclip.models import diffusers, transformers

    diffusers.ZImagePipeline(
        transformer=diffusers.ZImageTransformer2DModel(
            dim=32,
            n_layers=1,
            n_refiner_layers=1,
            n_heads=2,
            n_kv_heads=2,
            cap_feat_dim=16,
            rope_theta=256.0,
            axes_dims=[8, 4, 4],
            axes_lens=[1024, 32, 32],
        ),
        vae=_kl(),
        text_encoder=transformers.Qwen3Model(_decoder_config("Qwen3Config")),
        tokenizer=_qwen_tokenizer(),
        scheduler=_flow(),
    ).save_pretrained(folder)


def _qwen_vl() -> Any:
    from synthclip.models import transformers

    text = _decoder_config("Qwen2_5_VLTextConfig").to_dict()
    text |= {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e6}}
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16}
    return transformers.Qwen2_5_VLForConditionalGeneration(
        transformers.Qwen2_5_VLConfig(text_config=text, vision_config=vision)
    )


def save_qwen_image(folder: Path) -> None:
    from synthclip.models import diffusers

    diffusers.QwenImagePipeline(
        transformer=diffusers.QwenImageTransformer2DModel(
            in_channels=16,
            out_channels=4,
            num_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=16,
            axes_dims_rope=(8, 4, 4),
        ),
        vae=diffusers.AutoencoderKLQwenImage(
            base_dim=8,
            z_dim=4,
            dim_mult=[1, 2],
            num_res_blocks=1,
            temperal_downsample=[False],
            latents_mean=[0.0] * 4,
            latents_std=[1.0] * 4,
        ),
        text_encoder=_qwen_vl(),
        tokenizer=_qwen_tokenizer(),
        scheduler=_flow(),
    ).save_pretrained(folder)


def _flux2_parts() -> dict[str, Any]:
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
        "scheduler": _flow(use_dynamic_shifting=True),
    }


def _flux2_transformer(**values: Any) -> Any:
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


def save_flux2(folder: Path) -> None:
    """Its tokenizer is a processor of pictures and texts."""
    from synthclip.models import diffusers, transformers

    text = _decoder_config("MistralConfig", num_hidden_layers=30, hidden_size=8, head_dim=4).to_dict()
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = transformers.Mistral3Config(
        text_config=text,
        vision_config={**vision, "head_dim": 16, "model_type": "pixtral"},
        image_token_index=9,
    )
    processor = transformers.PixtralProcessor(
        transformers.PixtralImageProcessor(), _qwen_tokenizer(padding_side="left"), chat_template=_CHAT
    )
    diffusers.Flux2Pipeline(
        transformer=_flux2_transformer(joint_attention_dim=24),
        text_encoder=transformers.Mistral3ForConditionalGeneration(config),
        tokenizer=processor,
        **_flux2_parts(),
    ).save_pretrained(folder)


def save_flux2_klein(folder: Path, *, is_distilled: bool = True) -> None:
    from synthclip.models import diffusers, transformers

    text = _decoder_config("Qwen3Config", num_hidden_layers=27, hidden_size=8, head_dim=4)
    diffusers.Flux2KleinPipeline(
        transformer=_flux2_transformer(joint_attention_dim=24, guidance_embeds=False),
        text_encoder=transformers.Qwen3ForCausalLM(text),
        tokenizer=_qwen_tokenizer(),
        is_distilled=is_distilled,
        **_flux2_parts(),
    ).save_pretrained(folder)


def _gemma() -> Any:
    from synthclip.models import transformers

    return transformers.Gemma2Model(_decoder_config("Gemma2Config"))


def _sana_parts(**values: Any) -> dict[str, Any]:
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
        "text_encoder": _gemma(),
        "tokenizer": _gemma_tokenizer(),
    }


def save_sana(folder: Path) -> None:
    from synthclip.models import diffusers

    diffusers.SanaPipeline(scheduler=_flow(shift=3.0), **_sana_parts()).save_pretrained(folder)


def save_sana_sprint(folder: Path) -> None:
    from synthclip.models import diffusers

    parts = _sana_parts(guidance_embeds=True, qk_norm="rms_norm_across_heads")
    diffusers.SanaSprintPipeline(scheduler=diffusers.SCMScheduler(), **parts).save_pretrained(folder)


def save_pixart_sigma(folder: Path) -> None:
    from synthclip.models import diffusers

    diffusers.PixArtSigmaPipeline(
        transformer=diffusers.PixArtTransformer2DModel(
            sample_size=128,
            num_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            cross_attention_dim=16,
            caption_channels=64,
            norm_type="ada_norm_single",
            use_additional_conditions=False,
        ),
        vae=_vae(latent_channels=4),
        text_encoder=_t5(),
        tokenizer=_t5_tokenizer(),
        scheduler=diffusers.DPMSolverMultistepScheduler(),
    ).save_pretrained(folder)


def save_lumina2(folder: Path) -> None:
    from synthclip.models import diffusers

    diffusers.Lumina2Pipeline(
        transformer=diffusers.Lumina2Transformer2DModel(
            sample_size=4,
            in_channels=16,
            hidden_size=24,
            num_layers=1,
            num_refiner_layers=1,
            num_attention_heads=3,
            num_kv_heads=1,
            multiple_of=2,
            cap_feat_dim=16,
            axes_dim_rope=(4, 2, 2),
            axes_lens=(300, 128, 128),
        ),
        vae=_kl(widths=(8, 8, 16, 16)),
        text_encoder=_gemma(),
        tokenizer=_gemma_tokenizer(),
        scheduler=_flow(),
    ).save_pretrained(folder)


def save_hidream(folder: Path) -> None:
    from synthclip.models import diffusers, transformers

    llama = transformers.LlamaForCausalLM(
        _decoder_config("LlamaConfig", num_hidden_layers=2, attn_implementation="eager")
    )
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=_qwen_tokenizer().backend_tokenizer, eos_token="<|endoftext|>", model_max_length=128
    )
    diffusers.HiDreamImagePipeline(
        transformer=diffusers.HiDreamImageTransformer2DModel(
            patch_size=2,
            in_channels=16,
            out_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            caption_channels=[64, 16],
            text_emb_dim=64,
            axes_dims_rope=(4, 2, 2),
            max_resolution=(32, 32),
            llama_layers=(0, 1),
        ),
        vae=_kl(widths=(16,)),
        text_encoder=_clip(projects=True, max_position_embeddings=128),
        text_encoder_2=_clip(projects=True, max_position_embeddings=128),
        text_encoder_3=_t5(),
        text_encoder_4=llama,
        tokenizer=_tokenizer(folder),
        tokenizer_2=_tokenizer(folder),
        tokenizer_3=_t5_tokenizer(),
        tokenizer_4=tokenizer,
        scheduler=_flow(),
    ).save_pretrained(folder)


def save_kandinsky5(folder: Path) -> None:
    """It paints at 1024 px whatever it is asked for, calls its output `image` and has a processor."""
    from synthclip.models import diffusers, transformers

    processor = transformers.Qwen2VLProcessor(
        transformers.Qwen2VLImageProcessor(), _qwen_tokenizer(), transformers.Qwen2VLVideoProcessor()
    )
    diffusers.Kandinsky5T2IPipeline(
        transformer=diffusers.Kandinsky5Transformer3DModel(
            in_visual_dim=4,
            in_text_dim=16,
            in_text_dim2=32,
            time_dim=16,
            out_visual_dim=4,
            model_dim=16,
            ff_dim=16,
            num_text_blocks=1,
            num_visual_blocks=1,
            axes_dims=(2, 2, 4),
        ),
        vae=_vae(widths=(8,), latent_channels=4),
        text_encoder=_qwen_vl(),
        tokenizer=processor,
        text_encoder_2=_clip(projects=False),
        tokenizer_2=_tokenizer(folder),
        scheduler=_flow(),
    ).save_pretrained(folder)


def save_lcm(folder: Path) -> None:
    from tiny_pipeline import save_tiny_pipeline

    from synthclip.models import diffusers

    base = save_tiny_pipeline(folder.parent / "lcm-base", time_cond_proj_dim=16)
    parts = diffusers.StableDiffusionPipeline.from_pretrained(base).components
    parts["scheduler"] = diffusers.LCMScheduler.from_config(parts["scheduler"].config)
    diffusers.LatentConsistencyModelPipeline(**parts, requires_safety_checker=False).save_pretrained(folder)


def save_cogview4(folder: Path) -> None:
    from synthclip.models import diffusers, transformers

    diffusers.CogView4Pipeline(
        transformer=diffusers.CogView4Transformer2DModel(
            in_channels=16,
            num_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            out_channels=16,
            text_embed_dim=16,
            time_embed_dim=8,
            condition_dim=4,
            rope_axes_dim=(32, 32),
        ),
        vae=_kl(),
        text_encoder=transformers.GlmModel(_decoder_config("GlmConfig")),
        tokenizer=_gemma_tokenizer(),
        scheduler=_flow(use_dynamic_shifting=True),
    ).save_pretrained(folder)


def save_auraflow(folder: Path) -> None:
    from synthclip.models import diffusers, transformers

    encoder = transformers.UMT5EncoderModel(
        transformers.UMT5Config(
            vocab_size=len(_T5_WORDS), d_model=32, d_ff=37, d_kv=16, num_layers=1, num_heads=2
        )
    )
    diffusers.AuraFlowPipeline(
        transformer=diffusers.AuraFlowTransformer2DModel(
            sample_size=32,
            in_channels=4,
            num_mmdit_layers=1,
            num_single_dit_layers=1,
            attention_head_dim=8,
            num_attention_heads=4,
            caption_projection_dim=32,
            joint_attention_dim=32,
            pos_embed_max_size=4096,
        ),
        vae=_vae(latent_channels=4),
        text_encoder=encoder,
        tokenizer=_t5_tokenizer(),
        scheduler=_flow(),
    ).save_pretrained(folder)


def save_chroma(folder: Path) -> None:
    from synthclip.models import diffusers

    diffusers.ChromaPipeline(
        transformer=diffusers.ChromaTransformer2DModel(
            in_channels=4,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=64,
            axes_dims_rope=(4, 4, 8),
            approximator_hidden_dim=32,
            approximator_layers=1,
            approximator_num_channels=16,
        ),
        vae=_vae(latent_channels=1, shift_factor=0.06),
        text_encoder=_t5(),
        tokenizer=_t5_tokenizer(),
        scheduler=_flow(),
    ).save_pretrained(folder)


FAMILIES: Mapping[str, Callable[[Path], None]] = {
    "sdxl": save_sdxl,
    "sd3": save_sd3,
    "flux": save_flux,
    "lcm": save_lcm,
    "z-image": save_z_image,
    "qwen-image": save_qwen_image,
    "flux2": save_flux2,
    "flux2-klein": save_flux2_klein,
    "sana": save_sana,
    "sana-sprint": save_sana_sprint,
    "pixart-sigma": save_pixart_sigma,
    "lumina2": save_lumina2,
    "hidream": save_hidream,
    "kandinsky5": save_kandinsky5,
    "cogview4": save_cogview4,
    "auraflow": save_auraflow,
    "chroma": save_chroma,
}
