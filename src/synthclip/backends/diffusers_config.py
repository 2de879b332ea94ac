"""The recipe's values of the backend `diffusers`."""

from importlib.metadata import PackageNotFoundError, version
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from synthclip.backends.painters import PRESETS, terms_note
from synthclip.backends.single_files import digests, part_digests
from synthclip.errors import SynthClipError
from synthclip.recipe.backends import BackendConfig
from synthclip.recipe.section import later, nearest, runtime

_LEAST_VERSION = (0, 42)
"""Of diffusers: what the presets are tested with."""
_BYTES = {"int8": 1.1, "torchao-int8": 1.1, "torchao-fp8": 1.1, "nf4": 0.6, None: 2.0}
"""Of one weight in 16 bits, or quantised, scales included."""


class Config(BackendConfig):
    packages: ClassVar[dict[str, str]] = {"torch": "diffusers", "diffusers": "diffusers"}
    gpus: ClassVar[int] = 1
    preset: str | None = None
    """A set of the values below for a known model: `backends/painters.py`, docs/models.md. With neither
    preset nor model it is sd15-paper."""
    model: str
    """A repository of the Hugging Face hub, a folder in diffusers' layout, or a single file of weights
    (.safetensors, .ckpt, .gguf), on the hub as OWNER/NAME/FILE."""
    base: str | None = later(None)
    """For a single file: the repository or folder of the pipeline that it belongs to. None: of .safetensors
    and .ckpt, as diffusers finds it by the names of the weights."""
    parts: dict[str, str] = later({})
    """Components of the pipeline from elsewhere: name -> repository, folder or single file."""
    revision: str | None = None
    """Commit, tag or branch on the hub."""
    variant: str | None = None
    """Which weight files, such as fp16."""
    licence: str | None = None
    """The licence that its pictures carry."""
    adapter: str | None = None
    """A LoRA, by repository, folder or file, fused into the weights."""
    scheduler: str | None = None
    """A scheduler class of diffusers; None keeps the model's own, as for the numbers below."""
    scheduler_values: dict[str, Any] = later({})
    """What is changed in the scheduler's configuration, by diffusers' names."""
    steps: int | None = Field(None, ge=1)
    """Denoising steps."""
    guidance: float | None = Field(None, ge=0)
    """How strongly a picture follows its prompt, under whatever name the pipeline has for it."""
    size_px: int | None = Field(None, ge=16, multiple_of=8)
    """Side of what the model paints. Some pipelines paint at their own size all the same."""
    arguments: dict[str, Any] = later({})
    """Further arguments of the pipeline's call, by diffusers' names."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Arithmetic of the pipeline."""
    quantize: Literal["int8", "nf4", "torchao-int8", "torchao-fp8"] | None = later(None)
    """Fewer bits for the weights of denoiser and text encoders: by bitsandbytes, or by torchao. Weights that
    are quantised in their repository need none of it."""
    cache: float | None = later(None, gt=0)
    """Leave out blocks of the denoiser in steps that change less than this: diffusers' first-block cache;
    0.05 to 0.2, for transformers of 20 steps and more."""
    safety_checker: bool = False
    """Let the model's own checker refuse images, where it comes with one."""
    device: str = runtime("auto")
    """Such as cuda, cuda:1, mps (Apple) or cpu."""
    offload: Literal["model", "sequential"] | None = runtime(None)
    """Keep on the GPU only the component, or the layer, that works: slower, and fits smaller GPUs."""
    batch_size: int | Literal["auto"] = runtime("auto")
    """Prompts at once; halved where the memory does not hold them."""
    compile: bool = runtime(False)
    """torch.compile the denoiser: a minute or more at the start of each worker."""

    @model_validator(mode="before")
    @classmethod
    def _apply_preset(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        preset = value.get("preset") or (None if value.get("model") else "sd15-paper")
        if preset is None:
            return value
        if preset not in PRESETS:
            raise ValueError(f"unknown preset {preset!r}{nearest(str(preset), sorted(PRESETS))}")
        known = PRESETS[preset].values()
        merged = {  # of what is a mapping, the recipe's entries come on top of the preset's
            key: {**there, **value[key]}
            for key, there in known.items()
            if isinstance(there, dict) and isinstance(value.get(key), dict)
        }
        return {**known, **value, **merged, "preset": preset}

    def inputs(self) -> dict[str, str]:
        """Of local files, the digests of configuration and weights; the hub's go by revision."""
        _refuse_old_library()
        found = digests("text_to_image.model", self.model, needs_index=True)
        return found | part_digests(self.parts | ({"base": self.base} if self.base else {}))

    def notes(self) -> list[str]:
        return terms_note(self.model)

    def check(self) -> None:
        """Ask the hub for the model's size, and compare it with what is free here."""
        from synthclip.backends.fitting import refuse_too_large

        # Weights may be stored in 32 bits and read in 16; a GGUF file is read as it is.
        share = _BYTES[self.quantize] / 4 * (2 if self.dtype == "float32" else 1)
        refuse_too_large(
            "text_to_image.model",
            self.model,
            self.revision,
            self.variant,
            share=1.0 if self.model.endswith(".gguf") else share,
            device="cpu" if self.offload else "cuda" if self.device == "auto" else self.device,
            remedy="take a smaller model, text_to_image.quantize=nf4, or text_to_image.offload=model",
        )


def _refuse_old_library() -> None:
    try:
        found = version("diffusers")
    except PackageNotFoundError:  # a machine that only looks at the run
        return
    if tuple(int(part) for part in found.split(".")[:2]) < _LEAST_VERSION:
        least = ".".join(map(str, _LEAST_VERSION))
        raise SynthClipError(
            f"text_to_image: diffusers {found} is too old, {least} is needed: "
            f"pip install -U 'diffusers>={least}'"
        )
