"""Whole but tiny pipelines of every family that the product names, with random weights."""

from collections.abc import Callable, Mapping
from pathlib import Path

import tiny_parts as tiny
from tiny_pipeline import save_tiny_pipeline

from synthclip import models


def save_sdxl(folder: Path, *, zeros: bool = True) -> None:
    """`zeros`: the empty prompt is all zeros, as in the released models."""
    unet = tiny.unet(
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 32,
        cross_attention_dim=64,
    )
    models.diffusers.StableDiffusionXLPipeline(
        unet=unet,
        vae=tiny.vae(latent_channels=4),
        text_encoder=tiny.clip(projects=False),
        text_encoder_2=tiny.clip(projects=True),
        tokenizer=tiny.clip_tokenizer(folder),
        tokenizer_2=tiny.clip_tokenizer(folder),
        scheduler=models.diffusers.EulerDiscreteScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"
        ),
        force_zeros_for_empty_prompt=zeros,
    ).save_pretrained(folder)


def save_sd3(folder: Path) -> None:
    models.diffusers.StableDiffusion3Pipeline(
        transformer=tiny.denoiser(
            "SD3Transformer2DModel",
            sample_size=16,
            patch_size=1,
            in_channels=4,
            out_channels=4,
            attention_head_dim=8,
            num_attention_heads=4,
            caption_projection_dim=32,
            joint_attention_dim=64,
            pooled_projection_dim=64,
        ),
        vae=tiny.vae(latent_channels=4, shift_factor=0.06),
        text_encoder=tiny.clip(projects=True),
        text_encoder_2=tiny.clip(projects=True),
        text_encoder_3=tiny.t5(),
        tokenizer=tiny.clip_tokenizer(folder),
        tokenizer_2=tiny.clip_tokenizer(folder),
        tokenizer_3=tiny.t5_tokenizer(),
        scheduler=tiny.flow(),
    ).save_pretrained(folder)


def save_flux(folder: Path) -> None:
    models.diffusers.FluxPipeline(
        transformer=tiny.denoiser(
            "FluxTransformer2DModel",
            patch_size=1,
            in_channels=4,
            num_single_layers=1,
            attention_head_dim=16,
            joint_attention_dim=64,
            pooled_projection_dim=32,
            axes_dims_rope=(4, 4, 8),
        ),
        vae=tiny.vae(latent_channels=1, shift_factor=0.06),
        text_encoder=tiny.clip(projects=False),
        text_encoder_2=tiny.t5(),
        tokenizer=tiny.clip_tokenizer(folder),
        tokenizer_2=tiny.t5_tokenizer(),
        scheduler=tiny.flow(),
    ).save_pretrained(folder)


def save_z_image(folder: Path) -> None:
    models.diffusers.ZImagePipeline(
        transformer=models.diffusers.ZImageTransformer2DModel(
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
        vae=tiny.kl(),
        text_encoder=models.transformers.Qwen3Model(tiny.decoder_config("Qwen3Config")),
        tokenizer=tiny.qwen_tokenizer(),
        scheduler=tiny.flow(),
    ).save_pretrained(folder)


def save_qwen_image(folder: Path) -> None:
    models.diffusers.QwenImagePipeline(
        transformer=tiny.denoiser(
            "QwenImageTransformer2DModel",
            in_channels=16,
            out_channels=4,
            attention_head_dim=16,
            joint_attention_dim=16,
            axes_dims_rope=(8, 4, 4),
        ),
        vae=models.diffusers.AutoencoderKLQwenImage(
            base_dim=8,
            z_dim=4,
            dim_mult=[1, 2],
            num_res_blocks=1,
            temperal_downsample=[False],
            latents_mean=[0.0] * 4,
            latents_std=[1.0] * 4,
        ),
        text_encoder=tiny.qwen_vl(),
        tokenizer=tiny.qwen_tokenizer(),
        scheduler=tiny.flow(),
    ).save_pretrained(folder)


def save_flux2(folder: Path) -> None:
    """Its tokenizer is a processor of pictures and texts."""
    text = tiny.decoder_config("MistralConfig", num_hidden_layers=30, hidden_size=8, head_dim=4).to_dict()
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = models.transformers.Mistral3Config(
        text_config=text,
        vision_config={**vision, "head_dim": 16, "model_type": "pixtral"},
        image_token_index=9,
    )
    processor = models.transformers.PixtralProcessor(
        models.transformers.PixtralImageProcessor(),
        tiny.qwen_tokenizer(padding_side="left"),
        chat_template=tiny.CHAT,
    )
    models.diffusers.Flux2Pipeline(
        transformer=tiny.flux2_transformer(joint_attention_dim=24),
        text_encoder=models.transformers.Mistral3ForConditionalGeneration(config),
        tokenizer=processor,
        **tiny.flux2_parts(),
    ).save_pretrained(folder)


def save_flux2_klein(folder: Path) -> None:
    text = tiny.decoder_config("Qwen3Config", num_hidden_layers=27, hidden_size=8, head_dim=4)
    models.diffusers.Flux2KleinPipeline(
        transformer=tiny.flux2_transformer(joint_attention_dim=24, guidance_embeds=False),
        text_encoder=models.transformers.Qwen3ForCausalLM(text),
        tokenizer=tiny.qwen_tokenizer(),
        is_distilled=True,
        **tiny.flux2_parts(),
    ).save_pretrained(folder)


def save_sana(folder: Path) -> None:
    models.diffusers.SanaPipeline(scheduler=tiny.flow(shift=3.0), **tiny.sana_parts()).save_pretrained(folder)


def save_sana_sprint(folder: Path) -> None:
    models.diffusers.SanaSprintPipeline(
        scheduler=models.diffusers.SCMScheduler(),
        **tiny.sana_parts(guidance_embeds=True, qk_norm="rms_norm_across_heads"),
    ).save_pretrained(folder)


def save_pixart_sigma(folder: Path) -> None:
    models.diffusers.PixArtSigmaPipeline(
        transformer=tiny.denoiser(
            "PixArtTransformer2DModel",
            sample_size=128,
            attention_head_dim=8,
            cross_attention_dim=16,
            caption_channels=64,
            norm_type="ada_norm_single",
            use_additional_conditions=False,
        ),
        vae=tiny.vae(latent_channels=4),
        text_encoder=tiny.t5(),
        tokenizer=tiny.t5_tokenizer(),
        scheduler=models.diffusers.DPMSolverMultistepScheduler(),
    ).save_pretrained(folder)


def save_lumina2(folder: Path) -> None:
    models.diffusers.Lumina2Pipeline(
        transformer=tiny.denoiser(
            "Lumina2Transformer2DModel",
            sample_size=4,
            in_channels=16,
            hidden_size=24,
            num_refiner_layers=1,
            num_attention_heads=3,
            num_kv_heads=1,
            multiple_of=2,
            cap_feat_dim=16,
            axes_dim_rope=(4, 2, 2),
            axes_lens=(300, 128, 128),
        ),
        vae=tiny.kl(widths=(8, 8, 16, 16)),
        text_encoder=tiny.gemma(),
        tokenizer=tiny.gemma_tokenizer(),
        scheduler=tiny.flow(),
    ).save_pretrained(folder)


def save_hidream(folder: Path) -> None:
    llama = models.transformers.LlamaForCausalLM(
        tiny.decoder_config("LlamaConfig", num_hidden_layers=2, attn_implementation="eager")
    )
    tokenizer = models.transformers.PreTrainedTokenizerFast(
        tokenizer_object=tiny.qwen_tokenizer().backend_tokenizer,
        eos_token="<|endoftext|>",
        model_max_length=128,
    )
    models.diffusers.HiDreamImagePipeline(
        transformer=tiny.denoiser(
            "HiDreamImageTransformer2DModel",
            patch_size=2,
            in_channels=16,
            out_channels=16,
            num_single_layers=1,
            attention_head_dim=8,
            caption_channels=[64, 16],
            text_emb_dim=64,
            axes_dims_rope=(4, 2, 2),
            max_resolution=(32, 32),
            llama_layers=(0, 1),
        ),
        vae=tiny.kl(widths=(16,)),
        text_encoder=tiny.clip(projects=True, max_position_embeddings=128),
        text_encoder_2=tiny.clip(projects=True, max_position_embeddings=128),
        text_encoder_3=tiny.t5(),
        text_encoder_4=llama,
        tokenizer=tiny.clip_tokenizer(folder),
        tokenizer_2=tiny.clip_tokenizer(folder),
        tokenizer_3=tiny.t5_tokenizer(),
        tokenizer_4=tokenizer,
        scheduler=tiny.flow(),
    ).save_pretrained(folder)


def save_kandinsky5(folder: Path) -> None:
    """It paints at 1024 px whatever it is asked for, calls its output `image` and has a processor."""
    processor = models.transformers.Qwen2VLProcessor(
        models.transformers.Qwen2VLImageProcessor(),
        tiny.qwen_tokenizer(),
        models.transformers.Qwen2VLVideoProcessor(),
    )
    models.diffusers.Kandinsky5T2IPipeline(
        transformer=models.diffusers.Kandinsky5Transformer3DModel(
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
        vae=tiny.vae(widths=(8,), latent_channels=4),
        text_encoder=tiny.qwen_vl(),
        tokenizer=processor,
        text_encoder_2=tiny.clip(projects=False),
        tokenizer_2=tiny.clip_tokenizer(folder),
        scheduler=tiny.flow(),
    ).save_pretrained(folder)


def save_lcm(folder: Path) -> None:
    base = save_tiny_pipeline(folder.parent / "lcm-base", time_cond_proj_dim=16)
    parts = models.diffusers.StableDiffusionPipeline.from_pretrained(base).components
    parts["scheduler"] = models.diffusers.LCMScheduler.from_config(parts["scheduler"].config)
    pipeline = models.diffusers.LatentConsistencyModelPipeline(**parts, requires_safety_checker=False)
    pipeline.save_pretrained(folder)


def save_cogview4(folder: Path) -> None:
    models.diffusers.CogView4Pipeline(
        transformer=tiny.denoiser(
            "CogView4Transformer2DModel",
            in_channels=16,
            attention_head_dim=8,
            out_channels=16,
            text_embed_dim=16,
            time_embed_dim=8,
            condition_dim=4,
            rope_axes_dim=(32, 32),
        ),
        vae=tiny.kl(),
        text_encoder=models.transformers.GlmModel(tiny.decoder_config("GlmConfig")),
        tokenizer=tiny.gemma_tokenizer(),
        scheduler=tiny.flow(use_dynamic_shifting=True),
    ).save_pretrained(folder)


def save_auraflow(folder: Path) -> None:
    encoder = models.transformers.UMT5EncoderModel(
        models.transformers.UMT5Config(
            vocab_size=len(tiny.T5_WORDS), d_model=32, d_ff=37, d_kv=16, num_layers=1, num_heads=2
        )
    )
    models.diffusers.AuraFlowPipeline(
        transformer=models.diffusers.AuraFlowTransformer2DModel(
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
        vae=tiny.vae(latent_channels=4),
        text_encoder=encoder,
        tokenizer=tiny.t5_tokenizer(),
        scheduler=tiny.flow(),
    ).save_pretrained(folder)


def save_chroma(folder: Path) -> None:
    models.diffusers.ChromaPipeline(
        transformer=tiny.denoiser(
            "ChromaTransformer2DModel",
            in_channels=4,
            num_single_layers=1,
            attention_head_dim=16,
            joint_attention_dim=64,
            axes_dims_rope=(4, 4, 8),
            approximator_hidden_dim=32,
            approximator_layers=1,
            approximator_num_channels=16,
        ),
        vae=tiny.vae(latent_channels=1, shift_factor=0.06),
        text_encoder=tiny.t5(),
        tokenizer=tiny.t5_tokenizer(),
        scheduler=tiny.flow(),
    ).save_pretrained(folder)


def save_longcat(folder: Path) -> None:
    """Its text encoder can write, and would write another prompt than the caption."""
    processor = models.transformers.Qwen2VLProcessor(
        models.transformers.Qwen2VLImageProcessor(),
        tiny.qwen_tokenizer(),
        models.transformers.Qwen2VLVideoProcessor(),
        chat_template=tiny.CHAT,
    )
    models.diffusers.LongCatImagePipeline(
        transformer=tiny.denoiser(
            "LongCatImageTransformer2DModel",
            in_channels=64,
            num_single_layers=1,
            attention_head_dim=16,
            joint_attention_dim=16,
            pooled_projection_dim=16,
            axes_dims_rope=[4, 4, 8],
        ),
        vae=tiny.kl(),
        text_encoder=tiny.qwen_vl(),
        tokenizer=tiny.qwen_tokenizer(),
        text_processor=processor,
        scheduler=tiny.flow(use_dynamic_shifting=True),
    ).save_pretrained(folder)


_SAVERS = (
    save_sdxl, save_sd3, save_flux, save_lcm, save_z_image, save_qwen_image, save_flux2, save_flux2_klein,
    save_sana, save_sana_sprint, save_pixart_sigma, save_lumina2, save_hidream, save_kandinsky5,
    save_cogview4, save_auraflow, save_chroma, save_longcat,
)  # fmt: skip
FAMILIES: Mapping[str, Callable[[Path], None]] = {
    save.__name__.removeprefix("save_").replace("_", "-"): save for save in _SAVERS
}
