"""The arithmetic of text-to-image models, by their names."""

from dataclasses import dataclass
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
    guided_twice: bool = True
    """Whether a step with guidance evaluates the empty prompt too; a distilled model takes it as an input."""

    def image(self, size_px: int | None, steps: int | None, guidance: float | None) -> float:
        """FLOPs of one image."""
        area = ((size_px or self.size_px) / self.size_px) ** 2
        scale = self.guidance if guidance is None else guidance
        evaluations = (steps or self.steps) * (2 if scale > 1 and self.guided_twice else 1)
        return area * (evaluations * self.evaluation + self.decoder)


# Counted by torch's FlopCounterMode for these shapes. Evaluations of Z-Image, Lumina2 and HiDream are
# two FLOPs a parameter and token, and attention; decoders other than the usual one are assumed. The first
# name that a model's name holds counts.
_DECODER = 1.047e13
_DIFFUSION = {
    "stable-diffusion-v1": Diffusion(8.03e11, 2.51e12, 512, 50, 7.5),
    "LCM_Dreamshaper": Diffusion(8.03e11, 2.51e12, 512, 4, 8.5, guided_twice=False),
    "sd-turbo": Diffusion(8.0e11, 2.51e12, 512, 1, 0.0),
    "stable-diffusion-xl": Diffusion(6.76e12, _DECODER, 1024, 50, 5.0),
    "sdxl": Diffusion(6.76e12, _DECODER, 1024, 50, 5.0),
    "stable-diffusion-3.5-medium": Diffusion(1.125e13, _DECODER, 1024, 40, 4.5),
    "stable-diffusion-3.5-large": Diffusion(3.11e13, _DECODER, 1024, 28, 3.5),
    "FLUX.1": Diffusion(6.95e13, _DECODER, 1024, 4, 0.0, guided_twice=False),
    "FLUX.2-klein": Diffusion(3.48e13, _DECODER, 1024, 4, 1.0),
    "FLUX.2": Diffusion(2.83e14, _DECODER, 1024, 50, 4.0, guided_twice=False),
    "Z-Image": Diffusion(5.6e13, _DECODER, 1024, 9, 0.0),
    "Qwen-Image": Diffusion(1.30e14, 2e13, 1328, 50, 4.0),
    "Sana_Sprint": Diffusion(2.97e12, 2.5e12, 1024, 2, 4.5, guided_twice=False),
    "SANA": Diffusion(2.97e12, 2.5e12, 1024, 20, 4.5),
    "PixArt": Diffusion(6.63e12, _DECODER, 1024, 20, 4.5),
    "Lumina": Diffusion(2.7e13, _DECODER, 1024, 50, 4.0),
    "HiDream": Diffusion(1e14, _DECODER, 1024, 16, 0.0),
    "Kandinsky-5": Diffusion(4.67e13, _DECODER, 1024, 50, 3.5),
    "CogView4": Diffusion(5.73e13, _DECODER, 1024, 50, 3.5),
    "AuraFlow": Diffusion(4.40e13, _DECODER, 1024, 50, 3.5),
    "Chroma": Diffusion(7.46e13, _DECODER, 1024, 40, 3.0),
}


def diffusion_image(config: BackendConfig) -> float:
    """FLOPs of one image of a diffusion model, by its name. Raises SynthClipError where that is not known."""
    model = str(getattr(config, "model", ""))
    sent: dict[str, Any] = getattr(config, "extra_body", {})  # to a server
    for part, known in _DIFFUSION.items():
        if part.lower() in model.lower():
            size_px, steps, guidance = (
                getattr(config, name, None) for name in ("size_px", "steps", "guidance")
            )
            return known.image(size_px, steps or sent.get("num_inference_steps"), guidance)
    raise SynthClipError(
        f"text_to_image.model {model!r}: its arithmetic is not known: give --image-flops, or measure with "
        "--probe"
    )
