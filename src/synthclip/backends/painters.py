"""What is known of text-to-image models before one is loaded: settings, size, licence.

docs/models.md lists them for readers, and says what the settings were compared with.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Preset:
    """A model of the Hugging Face hub with its own defaults, as values of the `diffusers` backend."""

    model: str
    licence: str
    steps: int | None = None
    guidance: float | None = None
    size_px: int | None = None
    dtype: str = "bfloat16"
    weights_gb: float = 0.0
    """All weights in `dtype`, text encoders and decoder included, in GB of 10^9 bytes."""
    more: Mapping[str, Any] = field(default_factory=dict)
    """Further values."""

    def values(self) -> dict[str, Any]:
        given = {
            "model": self.model,
            "licence": self.licence,
            "steps": self.steps,
            "guidance": self.guidance,
            "size_px": self.size_px,
            "dtype": self.dtype,
        }
        return {name: value for name, value in given.items() if value is not None} | dict(self.more)


_SD15 = "stable-diffusion-v1-5/stable-diffusion-v1-5"
_SDXL = "stabilityai/stable-diffusion-xl-base-1.0"
_RAIL, _RAIL_PP = "CreativeML Open RAIL-M", "CreativeML Open RAIL++-M"
_STABILITY, _FLUX = "Stability AI Community", "FLUX Non-Commercial"
_NVIDIA = "NVIDIA NSCL v2-custom (non-commercial), Gemma terms"
_LLAMA = "meta-llama/Llama-3.1-8B-Instruct"
_FP16 = {"variant": "fp16"}

PRESETS: Mapping[str, Preset] = {
    # The paper's setting (section 4.1); the repository that it names is gone, this is its mirror.
    "sd15-paper": Preset(_SD15, _RAIL, 50, 2.0, 512, "float16", 2.1, {"scheduler": "DDIMScheduler"}),
    "sd15-lcm": Preset(
        _SD15, _RAIL, 4, 1.0, 512, "float16", 2.3,
        {"adapter": "latent-consistency/lcm-lora-sdv1-5", "scheduler": "LCMScheduler"},
    ),
    "lcm-dreamshaper": Preset("SimianLuo/LCM_Dreamshaper_v7", "MIT", 4, 8.0, 512, "float16", 2.1),
    "sdxl": Preset(_SDXL, _RAIL_PP, dtype="float16", weights_gb=6.9, more=_FP16),
    "sdxl-turbo": Preset("stabilityai/sdxl-turbo", _STABILITY, 1, 0.0, 512, "float16", 6.9, _FP16),
    "sdxl-lightning": Preset(
        _SDXL, _RAIL_PP, 4, 0.0, 1024, "float16", 7.3,
        {
            "variant": "fp16",
            "adapter": "ByteDance/SDXL-Lightning/sdxl_lightning_4step_lora.safetensors",
            "scheduler": "EulerDiscreteScheduler",
            "scheduler_values": {"timestep_spacing": "trailing"},
        },
    ),
    "sd35-medium": Preset("stabilityai/stable-diffusion-3.5-medium", _STABILITY, 40, 4.5, weights_gb=15.9),
    "sd35-large": Preset("stabilityai/stable-diffusion-3.5-large", _STABILITY, 28, 3.5, weights_gb=27.0),
    "sd35-large-turbo": Preset(
        "stabilityai/stable-diffusion-3.5-large-turbo", _STABILITY, 4, 0.0, weights_gb=27.0
    ),
    "flux-schnell": Preset(
        "black-forest-labs/FLUX.1-schnell", "Apache-2.0", 4, 0.0, weights_gb=33.7,
        more={"arguments": {"max_sequence_length": 256}},
    ),
    "flux-dev": Preset("black-forest-labs/FLUX.1-dev", _FLUX, 50, 3.5, weights_gb=33.7),
    "flux2-dev": Preset("black-forest-labs/FLUX.2-dev", _FLUX, 50, 4.0, weights_gb=113.0),
    "flux2-klein": Preset("black-forest-labs/FLUX.2-klein-4B", "Apache-2.0", 4, 1.0, 1024, weights_gb=16.0),
    "z-image-turbo": Preset("Tongyi-MAI/Z-Image-Turbo", "Apache-2.0", 9, 0.0, 1024, weights_gb=20.6),
    "z-image": Preset("Tongyi-MAI/Z-Image", "Apache-2.0", 50, 4.0, 1024, weights_gb=20.6),
    "qwen-image": Preset("Qwen/Qwen-Image", "Apache-2.0", 50, 4.0, 1328, weights_gb=57.7),
    "qwen-image-2512": Preset("Qwen/Qwen-Image-2512", "Apache-2.0", 50, 4.0, 1328, weights_gb=57.7),
    "qwen-image-lightning": Preset(
        "Qwen/Qwen-Image", "Apache-2.0", 8, 1.0, 1328, weights_gb=57.7,
        more={
            "adapter": "lightx2v/Qwen-Image-Lightning/Qwen-Image-Lightning-8steps-V1.1.safetensors",
            "scheduler": "FlowMatchEulerDiscreteScheduler",
            # ln 3, the constant shift that it was distilled with.
            "scheduler_values": {"base_shift": 1.0986, "max_shift": 1.0986, "shift_terminal": None},
        },
    ),
    "sana": Preset(
        "Efficient-Large-Model/SANA1.5_1.6B_1024px_diffusers", _NVIDIA, 20, 4.5, 1024, weights_gb=9.1
    ),
    "sana-sprint": Preset(
        "Efficient-Large-Model/Sana_Sprint_1.6B_1024px_diffusers", _NVIDIA, 2, 4.5, 1024, weights_gb=9.1
    ),
    "pixart-sigma": Preset(
        "PixArt-alpha/PixArt-Sigma-XL-2-1024-MS", _RAIL_PP, 20, 4.5, 1024, "float16", 10.9
    ),
    "lumina2": Preset(
        "Alpha-VLLM/Lumina-Image-2.0", "Apache-2.0 (text encoder: Gemma terms)", 50, 4.0, 1024,
        weights_gb=10.6,
        more={"arguments": {"cfg_trunc_ratio": 0.25}},
    ),
    "hidream-fast": Preset(
        "HiDream-ai/HiDream-I1-Fast", "MIT (text encoder: Llama 3.1 Community)", 16, 0.0, weights_gb=63.0,
        more={"parts": {"text_encoder_4": _LLAMA, "tokenizer_4": _LLAMA}},
    ),
    "kandinsky5": Preset(
        "kandinskylab/Kandinsky-5.0-T2I-Lite-sft-Diffusers", "MIT", 50, 3.5, 1024, weights_gb=29.0
    ),
    "cogview4": Preset("zai-org/CogView4-6B", "Apache-2.0", 50, 3.5, 1024, weights_gb=31.0),
    "auraflow": Preset("fal/AuraFlow-v0.3", "Apache-2.0", 50, 3.5, 1024, "float16", 16.8, _FP16),
    "chroma": Preset("lodestones/Chroma1-HD", "Apache-2.0", 40, 3.0, 1024, weights_gb=27.5),
}  # fmt: skip

_TERMS = (
    (
        r"hunyuan",
        "the Tencent Hunyuan licence forbids training any other model on its pictures, and any use in the "
        "EU, the UK and South Korea",
    ),
    (
        r"FLUX\.1-(?!schnell)|FLUX\.2-(?!klein-(base-)?4B)",
        "the FLUX licence forbids commercial use of the model, and training a model on its pictures that "
        "competes with it",
    ),
    (
        r"stable-diffusion-3|sdxl-turbo|sd-turbo|stable-cascade",
        "the Stability AI Community licence forbids training a generative foundation model on its pictures, "
        "and wants a paid licence above a revenue of 1 million dollars",
    ),
    (r"\bsana[_-]|sana1\.5", "the NVIDIA licence allows non-commercial use only"),
    (
        r"gpt-image|dall-e|chatgpt-image",
        "OpenAI's terms forbid to develop models that compete with OpenAI with its output",
    ),
    (
        r"imagen-|gemini-",
        "Google's terms forbid to develop models that compete with its services with their output",
    ),
)


def terms(model: str) -> str | None:
    """What the licence of a model is known to say against training on its pictures; None where nothing is
    known. The licence itself decides."""
    return next((said for name, said in _TERMS if re.search(name, model, re.IGNORECASE)), None)


def terms_note(model: str) -> list[str]:
    """The same as a note to the user."""
    said = terms(model)
    return [] if said is None else [f"text_to_image: {model}: {said}: read it before you publish"]
