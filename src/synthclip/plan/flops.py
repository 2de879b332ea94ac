"""How much arithmetic the models of a recipe do: FLOPs, two for a multiply-add."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from synthclip.errors import SynthClipError
from synthclip.recipe.backends import BackendConfig


@dataclass(frozen=True)
class Diffusion:
    """A text-to-image model at its native size, with its own default settings."""

    evaluation: float
    """FLOPs of one evaluation of the denoiser for one image."""
    decoder: float
    """FLOPs of decoding the latent."""
    size_px: int
    steps: int
    guidance: float

    def image(self, size_px: int | None, steps: int | None, guidance: float | None) -> float:
        """FLOPs of one image. With guidance above 1 every step evaluates the empty prompt too."""
        area = ((size_px or self.size_px) / self.size_px) ** 2
        scale = self.guidance if guidance is None else guidance
        evaluations = (steps or self.steps) * (2 if scale > 1 else 1)
        return area * (evaluations * self.evaluation + self.decoder)


def transformer(parameters: float, tokens: float) -> float:
    """FLOPs of a forward pass: two for each parameter and token (Kaplan et al., 2020, section 2.1)."""
    return 2 * parameters * tokens


# Counted by torch's FlopCounterMode on models of these shapes.
_DIFFUSION = {
    "stable-diffusion-v1": Diffusion(8.03e11, 2.51e12, 512, 50, 7.5),
    "xl": Diffusion(6.76e12, 1.047e13, 1024, 50, 5.0),
    "stable-diffusion-3.5-medium": Diffusion(1.125e13, 1.047e13, 1024, 40, 4.5),
    "FLUX.1": Diffusion(6.95e13, 1.047e13, 1024, 4, 0.0),
}


def diffusion_image(config: BackendConfig) -> float:
    """FLOPs of one image of a `diffusers` backend. Raises SynthClipError for a model that is not known."""
    model = str(getattr(config, "model", ""))
    for part, known in _DIFFUSION.items():
        if part in model:
            settings: Any = config
            return known.image(settings.size_px, settings.steps, settings.guidance)
    raise SynthClipError(
        f"text_to_image.model {model!r}: its arithmetic is not known: give --image-flops, or measure with "
        "--probe"
    )


def llm_parameters(config: BackendConfig) -> float:
    """The parameters of a language model, by its name. Raises SynthClipError where that does not tell."""
    name = Path(str(getattr(config, "model", ""))).name
    match = re.search(r"(?<![\w.])(\d+(?:\.\d+)?)([MB])(?![a-z])", name, re.IGNORECASE)
    if match is None:
        raise SynthClipError(f"llm.model {name!r}: its name tells no size: give --llm-params, such as 7e9")
    return float(match[1]) * (1e9 if match[2].upper() == "B" else 1e6)
