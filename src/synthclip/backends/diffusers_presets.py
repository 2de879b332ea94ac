"""Settings of well-known diffusion models."""

from collections.abc import Mapping
from typing import Any

PRESETS: Mapping[str, Mapping[str, Any]] = {
    # The paper's setting (section 4.1); the repository that it names is gone, this is its mirror.
    "sd15-paper": {
        "model": "stable-diffusion-v1-5/stable-diffusion-v1-5",
        "licence": "CreativeML Open RAIL-M",
        "scheduler": "DDIMScheduler",
        "steps": 50,
        "guidance": 2.0,
        "size_px": 512,
        "dtype": "float16",
    },
    "sd15-lcm": {
        "model": "stable-diffusion-v1-5/stable-diffusion-v1-5",
        "licence": "CreativeML Open RAIL-M",
        "adapter": "latent-consistency/lcm-lora-sdv1-5",
        "scheduler": "LCMScheduler",
        "steps": 4,
        "guidance": 1.0,
        "size_px": 512,
        "dtype": "float16",
    },
    "sdxl": {
        "model": "stabilityai/stable-diffusion-xl-base-1.0",
        "licence": "CreativeML Open RAIL++-M",
        "variant": "fp16",
        "dtype": "float16",
    },
    "sdxl-turbo": {
        "model": "stabilityai/sdxl-turbo",
        "licence": "Stability AI Community",
        "variant": "fp16",
        "steps": 1,
        "guidance": 0.0,
        "size_px": 512,
        "dtype": "float16",
    },
    "sd35-medium": {
        "model": "stabilityai/stable-diffusion-3.5-medium",
        "licence": "Stability AI Community",
        "steps": 40,
        "guidance": 4.5,
        "dtype": "bfloat16",
    },
    "flux-schnell": {
        "model": "black-forest-labs/FLUX.1-schnell",
        "licence": "Apache-2.0",
        "steps": 4,
        "guidance": 0.0,
        "dtype": "bfloat16",
    },
}
"""Settings by their models' own cards; a value given beside `preset` comes first."""
