"""stable-diffusion.cpp in this process: GGUF and single files, on the CPU, Apple's GPUs, or what the build of
the package `cyllama` is for. No torch.

A picture depends on its prompt, its seed, the build and the kind of processor.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from synthclip.backends import Painted
from synthclip.backends.painters import terms_note
from synthclip.backends.single_files import SINGLE_FILES, digests, part_digests, single_file
from synthclip.errors import SynthClipError, first_line, needs_extra
from synthclip.recipe.backends import BackendConfig
from synthclip.recipe.section import nearest, runtime
from synthclip.run.threads import cores

_BITS = {"f16": 16.0, "q8_0": 8.5, "q5_0": 5.5, "q4_0": 4.5, "q4_k": 4.5, None: 32.0}
"""Of a weight in memory, of 32 at most in the file."""
_ERROR = 3
"""The library's level of log lines that say what failed."""


class Config(BackendConfig):
    packages: ClassVar[dict[str, str]] = {"cyllama": "sdcpp"}
    model: str | None = None
    """A file with a complete model (.gguf, .safetensors, .ckpt), on the hub as OWNER/NAME/FILE."""
    parts: dict[str, str] = Field({})
    """Files of a model that comes in several: diffusion_model, vae, clip_l, clip_g, t5xxl, llm, taesd, ..."""
    steps: int = Field(20, ge=1)
    """Evaluations of the denoiser; 1 to 8 for models that are distilled for few."""
    guidance: float = Field(7.0, ge=0)
    """How strongly a picture follows its prompt; 1 for models that are distilled for few steps."""
    size_px: int = Field(512, ge=64, multiple_of=64)
    """Side of what the model paints."""
    sampler: str | None = None
    """Such as euler, euler_a, dpmpp2m or lcm; None takes the model's own, as for the scheduler."""
    scheduler: str | None = None
    """Such as discrete, karras or sgm_uniform."""
    quantize: Literal["f16", "q8_0", "q5_0", "q4_0", "q4_k"] | None = None
    """Bits that the weights are brought to when they are loaded."""
    licence: str | None = None
    """The licence that its pictures carry."""
    tiled: bool = False
    """Decode in tiles: less memory for large pictures."""
    flash_attention: bool = runtime(False)
    """Less memory and, on a GPU, less time."""

    @model_validator(mode="after")
    def _names_files(self) -> "Config":
        if not self.model and not self.parts.get("diffusion_model"):
            raise ValueError("give model, or parts with diffusion_model")
        for source in (self.model, *self.parts.values()):
            if source and not source.endswith(SINGLE_FILES):
                raise ValueError(f"{source!r} is none of {', '.join(SINGLE_FILES)}")
        return self

    def inputs(self) -> dict[str, str]:
        found = digests("text_to_image.model", self.model) if self.model else {}
        return found | part_digests(self.parts)

    def notes(self) -> list[str]:
        return terms_note(self.main)

    def check(self) -> None:
        """Ask the hub for the sizes of the files, and compare them with what is free here."""
        from synthclip.backends.fitting import refuse_too_large

        named = {"model": self.model} | {f"parts.{name}": source for name, source in self.parts.items()}
        for key, source in named.items():
            if source:
                refuse_too_large(
                    f"text_to_image.{key}",
                    source,
                    None,
                    None,
                    share=_BITS[self.quantize] / 32,
                    device="cpu",
                    remedy="take a smaller model, or fewer bits (text_to_image.quantize)",
                )

    @property
    def main(self) -> str:
        """The file with the denoiser."""
        return self.model or self.parts["diffusion_model"]


def build(config: Config) -> "StableDiffusionCpp":
    return StableDiffusionCpp(config)


class StableDiffusionCpp:
    batch_size = 1

    def __init__(self, config: Config) -> None:
        with needs_extra("sdcpp", "text_to_image.backend=sdcpp"):
            import cyllama.sd as library
        self._config = config
        self._sampler = _member(library.SampleMethod, config.sampler, "sampler")
        self._scheduler = _member(library.Scheduler, config.scheduler, "scheduler")
        parameters = _parameters(config, library)
        failed: list[str] = []
        library.set_log_callback(
            lambda level, text: failed.append(str(text)) if int(level) >= _ERROR else None
        )
        try:
            self._context = library.SDContext(parameters)
        except (RuntimeError, OSError, ValueError) as error:
            reason = failed[-1].partition(" - ")[2].strip() if failed else first_line(error)
            raise SynthClipError(
                f"text_to_image.model: {config.main}: stable-diffusion.cpp cannot load it: {reason}"
            ) from None
        files = dict.fromkeys((config.main, *sorted(config.parts.values())))
        self.name = " + ".join(source.rpartition("/")[2] for source in files)
        self.licence = config.licence or f"see {config.main.rpartition('/')[2]}"

    def generate(self, prompts: Sequence[str], seeds: Sequence[int]) -> Painted:
        """Images uint8 [B, H, W, 3] in RGB. Raises SynthClipError where the library fails."""
        images = [self._one(prompt, seed) for prompt, seed in zip(prompts, seeds, strict=True)]
        return Painted(np.stack(images))

    def _one(self, prompt: str, seed: int) -> NDArray[np.uint8]:
        config = self._config
        try:
            painted = self._context.generate(
                prompt=prompt,
                width=config.size_px,
                height=config.size_px,
                seed=seed % 2**63,  # a negative one stands for one of the clock
                sample_steps=config.steps,
                cfg_scale=config.guidance,
                sample_method=self._sampler,
                scheduler=self._scheduler,
                vae_tiling=config.tiled,
            )
        except RuntimeError as error:
            raise SynthClipError(
                f"text_to_image: {self.name}: stable-diffusion.cpp: {first_line(error)}: check "
                "text_to_image.size_px, or take tiled=true or fewer bits (quantize)"
            ) from None
        image: NDArray[np.uint8] = np.array(painted[0].to_numpy(), np.uint8)[..., :3]
        return image


def _parameters(config: Config, library: Any) -> Any:
    """Raises SynthClipError where a part is none of the library's."""
    parameters = library.SDContextParams()
    if config.model:
        parameters.model_path = str(single_file(config.model))
    known = sorted(name.removesuffix("_path") for name in dir(parameters) if name.endswith("_path"))
    for name, source in config.parts.items():
        if name not in known:
            raise SynthClipError(f"text_to_image.parts: no part is called {name!r}{nearest(name, known)}")
        setattr(parameters, f"{name}_path", str(single_file(source)))
    parameters.n_threads = cores()
    parameters.free_params_immediately = False  # the context paints more than one picture
    parameters.flash_attn = parameters.diffusion_flash_attn = config.flash_attention
    if config.quantize:
        parameters.wtype = library.SDType[config.quantize.upper()]
    return parameters


def _member(kind: Any, name: str | None, key: str) -> Any:
    """A name of the recipe as the library's; None stays None."""
    if name is None:
        return None
    known = {member.name.lower(): member for member in kind if member.name != "COUNT"}
    if name not in known:
        raise SynthClipError(f"text_to_image.{key}: there is no {name!r}{nearest(name, sorted(known))}")
    return known[name]
