"""Any text-to-image pipeline of the library diffusers, from the Hugging Face hub or a folder.

The noise comes from a generator of its own for each image, on the CPU, so it depends on the seed alone. What
a GPU makes of it can differ in the last bits with the batch size, the driver and `compile`: pictures are
equal to the eye, not byte for byte, between such machines.
"""

import inspect
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from synthclip.backends import Painted, loading
from synthclip.errors import SynthClipError, first_line, needs_extra
from synthclip.keys import digest, quick_digest
from synthclip.recipe.backends import BackendConfig
from synthclip.recipe.section import nearest, runtime

if TYPE_CHECKING:
    import torch

_FIRST_BATCH = 32

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


class Config(BackendConfig):
    packages: ClassVar[dict[str, str]] = {"torch": "diffusers", "diffusers": "diffusers"}
    gpus: ClassVar[int] = 1
    preset: str | None = None
    """A set of the values below: sd15-paper, sd15-lcm, sdxl, sdxl-turbo, sd35-medium, flux-schnell. With
    neither preset nor model it is sd15-paper."""
    model: str
    """A repository of the Hugging Face hub, or a folder in diffusers' layout."""
    revision: str | None = None
    """Commit, tag or branch on the hub."""
    variant: str | None = None
    """Which weight files, such as fp16."""
    licence: str | None = None
    """The licence that its pictures carry."""
    adapter: str | None = None
    """A LoRA, by repository or folder, fused into the weights."""
    scheduler: str | None = None
    """A scheduler class of diffusers; None keeps the model's own, as for the numbers below."""
    steps: int | None = Field(None, ge=1)
    guidance: float | None = Field(None, ge=0)
    size_px: int | None = Field(None, ge=16, multiple_of=8)
    """Side of what the model paints."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    safety_checker: bool = False
    """Let the model's own checker refuse images, where it comes with one."""
    device: str = runtime("auto")
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
        return {**PRESETS[preset], **value, "preset": preset}

    def inputs(self) -> dict[str, str]:
        """Of a folder, the digests of its configuration and weights; the hub's models go by revision."""
        folder = Path(self.model).expanduser()
        if not folder.is_dir():
            if folder.is_absolute() or self.model.startswith((".", "~")) or self.model.count("/") != 1:
                raise SynthClipError(
                    f"text_to_image.model: {self.model}: no such folder, and no repository of the hub "
                    "(OWNER/NAME): give either"
                )
            return {}
        if not (folder / "model_index.json").is_file():
            raise SynthClipError(
                f"text_to_image.model: {folder}: holds no model_index.json: give a folder that "
                "diffusers' save_pretrained wrote"
            )
        files = [
            path for path in sorted(folder.rglob("*")) if path.suffix in (".json", ".safetensors", ".bin")
        ]
        return {path.relative_to(folder).as_posix(): quick_digest(path) for path in files}


def build(config: Config) -> "Diffusers":
    return Diffusers(config)


class Diffusers:
    """A loaded pipeline."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._pipeline, revision = _load(config)
        self.name = f"{_shown(config.model)}@{revision}"
        if config.adapter:
            self.name += f" + {_shown(config.adapter)}"
        self.licence = config.licence or f"see {config.model}"
        self.batch_size = _FIRST_BATCH if config.batch_size == "auto" else config.batch_size
        self._saving = False
        self._readers = _readers(self._pipeline)
        self._constant = _constant_arguments(config)
        self._empty_prompt = _empty_prompt(config, self._pipeline)

    def generate(self, prompts: Sequence[str], seeds: Sequence[int]) -> Painted:
        """Images uint8 [B, H, W, 3] in RGB. Refuses as `nan` what is not finite, as `unsafe` what the
        safety checker refuses. Raises SynthClipError where memory does not hold one image."""
        import torch

        images: list[NDArray[np.uint8]] = []
        refused: dict[int, str] = {}
        done = 0
        while done < len(prompts):
            part = slice(done, done + self.batch_size)
            try:
                painted, bad = self._paint(prompts[part], seeds[part])
            except torch.OutOfMemoryError as error:
                # The error holds the frames that hold the tensors: it must go before memory is freed.
                reason = first_line(error)
            else:
                images.append(painted)
                refused.update({done + at: reason for at, reason in bad.items()})
                done += len(painted)
                continue
            self._back_off(reason)
        cut = {at: unread for at, prompt in enumerate(prompts) if (unread := self._unread(prompt))}
        return Painted(np.concatenate(images), refused, cut)

    def _paint(
        self, prompts: Sequence[str], seeds: Sequence[int]
    ) -> tuple[NDArray[np.uint8], dict[int, str]]:
        import torch

        count = len(prompts)
        if self._config.compile:
            # A batch of another size would be compiled again.
            spare = self.batch_size - count
            prompts, seeds = [*prompts, *[prompts[0]] * spare], [*seeds, *[seeds[0]] * spare]
        arguments = dict(self._constant)
        for name, encoded in self._empty_prompt.items():
            arguments[name] = encoded.expand(len(prompts), *encoded.shape[1:])
        with torch.inference_mode():
            try:
                output = self._pipeline(
                    prompt=list(prompts),
                    generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
                    output_type="pt",
                    **arguments,
                )
            except (ValueError, TypeError, IndexError, AttributeError) as error:
                reason = first_line(error)
                raise SynthClipError(
                    f"text_to_image: {self._config.model}: the pipeline refuses the recipe's values: "
                    f"{reason}: check text_to_image.size_px, steps, guidance and scheduler"
                ) from None
            images = output.images[:count]
            finite = torch.isfinite(images).flatten(1).all(1).tolist()
            rounded = images.float().nan_to_num(0).clamp(0, 1).mul(255).round().to(torch.uint8)
            pixels: NDArray[np.uint8] = rounded.permute(0, 2, 3, 1).cpu().contiguous().numpy()
        unsafe = getattr(output, "nsfw_content_detected", None) or [False] * count
        refused = {at: "nan" for at in range(count) if not finite[at]}
        refused.update({at: "unsafe" for at in range(count) if unsafe[at]})
        return pixels, refused

    def _back_off(self, reason: str) -> None:
        """Half the batch; at one, what saves memory at the price of time; then there is nothing left."""
        import torch

        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if self.batch_size > 1:
            self.batch_size = math.ceil(self.batch_size / 2)
        elif not self._saving:
            self._saving = True
            for part in (self._pipeline, getattr(self._pipeline, "vae", None)):
                for method in ("enable_attention_slicing", "enable_slicing", "enable_tiling"):
                    if hasattr(part, method):
                        getattr(part, method)()
        else:
            raise SynthClipError(
                f"text_to_image: {self._config.model}: out of memory at batch size 1 ({reason}): take a "
                "smaller text_to_image.size_px, dtype float16, or a GPU with more memory"
            )

    def _unread(self, prompt: str) -> str:
        """The end of the prompt that no text encoder reads."""
        tails = []
        for tokenizer, limit in self._readers:
            ids = tokenizer(prompt, truncation=False, verbose=False).input_ids
            tails.append(str(tokenizer.decode(ids[limit - 1 : -1])))
        return min(tails, key=len, default="")


def _load(config: Config) -> tuple[Any, str]:
    """The pipeline on its device, and its revision."""
    with needs_extra("diffusers", "text_to_image.backend=diffusers"):
        import torch

        from synthclip.models import diffusers, transformers
    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
    device = config.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    with loading(f"text_to_image.model: {config.model}"):
        folder, revision = _fetch(config, diffusers.DiffusionPipeline)
        absent = {} if config.safety_checker else _without_safety_checker(folder, diffusers.DiffusionPipeline)
        pipeline = diffusers.AutoPipelineForText2Image.from_pretrained(
            folder, dtype=getattr(torch, config.dtype), variant=config.variant, **absent
        )
        if config.adapter:
            pipeline.load_lora_weights(config.adapter)
            pipeline.fuse_lora()
            pipeline.unload_lora_weights()
        if config.scheduler is not None:
            pipeline.scheduler = _scheduler(config.scheduler, pipeline)
        pipeline.to(device)
    pipeline.set_progress_bar_config(disable=True)
    denoiser = getattr(pipeline, "unet", None) or pipeline.transformer
    if device != "cpu":
        denoiser.to(memory_format=torch.channels_last)
        pipeline.vae.to(memory_format=torch.channels_last)
        # At full size it takes more memory than the denoiser of the whole batch, and little less time.
        pipeline.vae.enable_slicing()
    if config.compile:
        denoiser.compile(fullgraph=True)
    return pipeline, revision


def _fetch(config: Config, pipelines: Any) -> tuple[str, str]:
    """The model's folder and a digest of its files; of a model of the hub, which it downloads, the commit."""
    folder = Path(config.model).expanduser()
    if folder.is_dir():
        return str(folder), digest(json.dumps(config.inputs(), sort_keys=True))[:12]
    absent = {} if config.safety_checker else {"safety_checker": None}
    snapshot = str(
        pipelines.download(config.model, revision=config.revision, variant=config.variant, **absent)
    )
    commit = Path(snapshot).name
    return snapshot, commit if re.fullmatch(r"[0-9a-f]{40}", commit) else config.revision or "main"


def _without_safety_checker(folder: str, pipelines: Any) -> dict[str, Any]:
    if "safety_checker" not in pipelines.load_config(folder):
        return {}
    return {"safety_checker": None, "requires_safety_checker": False}


def _scheduler(name: str, pipeline: Any) -> Any:
    import diffusers

    known = [other for other in dir(diffusers) if other.endswith("Scheduler")]
    if name not in known:
        raise SynthClipError(f"text_to_image.scheduler: diffusers has no {name!r}{nearest(name, known)}")
    return getattr(diffusers, name).from_config(pipeline.scheduler.config)


def _constant_arguments(config: Config) -> dict[str, Any]:
    """What every call of the pipeline is given; what is None is left to the pipeline."""
    given = {
        "num_inference_steps": config.steps,
        "guidance_scale": config.guidance,
        "height": config.size_px,
        "width": config.size_px,
    }
    return {name: value for name, value in given.items() if value is not None}


def _empty_prompt(config: Config, pipeline: Any) -> "dict[str, torch.Tensor]":
    """The text that guidance leads away from, [1, T, D], and its summary, [1, D], as arguments of the
    pipelines that would encode it again in every batch; the others encode none, or take zeros for it."""
    import torch
    from diffusers import StableDiffusion3Pipeline, StableDiffusionPipeline, StableDiffusionXLPipeline

    if config.guidance is not None and config.guidance <= 1:
        return {}
    empty: dict[str, Any] = {"prompt": "", "device": pipeline.device, "num_images_per_prompt": 1}
    names = ["negative_prompt_embeds"]
    if isinstance(pipeline, StableDiffusion3Pipeline):
        empty |= {"prompt_2": "", "prompt_3": ""}
        names.append("negative_pooled_prompt_embeds")
    elif isinstance(pipeline, StableDiffusionXLPipeline):
        if pipeline.config.force_zeros_for_empty_prompt:
            return {}
        names.append("negative_pooled_prompt_embeds")
    elif not isinstance(pipeline, StableDiffusionPipeline):
        return {}
    with torch.inference_mode():
        encoded = pipeline.encode_prompt(**empty, do_classifier_free_guidance=False)
    return dict(zip(names, encoded[::2], strict=True))


def _shown(model: str) -> str:
    """A hub's name as it is, of a folder the last part: where it lies does not belong into a data set."""
    return Path(model).name if Path(model).expanduser().is_dir() else model


def _readers(pipeline: Any) -> list[tuple[Any, int]]:
    """Each tokenizer of the pipeline, and how many tokens its encoder reads."""
    longest = inspect.signature(pipeline.__call__).parameters.get("max_sequence_length")
    readers = []
    for name in ("tokenizer", "tokenizer_2", "tokenizer_3"):
        tokenizer = getattr(pipeline, name, None)
        if tokenizer is None:
            continue
        is_clip = "CLIP" in type(tokenizer).__name__
        limit = tokenizer.model_max_length if is_clip or longest is None else longest.default
        readers.append((tokenizer, int(limit)))
    return readers
