"""Any text-to-image pipeline of the library diffusers, from the Hugging Face hub or a folder.

The noise comes from a generator of its own for each image, on the CPU, so it depends on the seed alone. What
a GPU makes of it can differ in the last bits with the batch size, the driver and `compile`: pictures are
equal to the eye, not byte for byte, between such machines.
"""

import inspect
import logging
import math
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from synthclip.backends import Painted
from synthclip.backends.diffusers_loading import SINGLE_FILES, denoiser, load
from synthclip.backends.painters import PRESETS, terms_note
from synthclip.errors import SynthClipError, first_line
from synthclip.keys import quick_digest
from synthclip.recipe.backends import BackendConfig
from synthclip.recipe.section import later, nearest, runtime

if TYPE_CHECKING:
    import torch

_FIRST_BATCH = 32
_LEAST_VERSION = (0, 42)
"""Of diffusers: what the presets are tested with."""
_ONE_BY_ONE = ("CogView4Pipeline", "Kandinsky5T2IPipeline")
"""Their denoisers attend to the padding of a prompt too, which reaches to the longest of its batch."""
_LOG = logging.getLogger("synthclip.backends")


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
    guidance: float | None = Field(None, ge=0)
    """How strongly a picture follows its prompt, under whatever name the pipeline has for it."""
    size_px: int | None = Field(None, ge=16, multiple_of=8)
    """Side of what the model paints. Some pipelines paint at their own size all the same."""
    arguments: dict[str, Any] = later({})
    """Further arguments of the pipeline's call, by diffusers' names."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
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
        return {**PRESETS[preset].values(), **value, "preset": preset}

    def inputs(self) -> dict[str, str]:
        """Of local files, the digests of configuration and weights; the hub's go by revision."""
        _refuse_old_library()
        found = _digests("text_to_image.model", self.model, needs_index=True)
        for name, source in [*self.parts.items(), *([("base", self.base)] if self.base else [])]:
            part = _digests(f"text_to_image.parts.{name}", source, needs_index=False)
            found |= {f"{name}/{file}": value for file, value in part.items()}
        return found

    def notes(self) -> list[str]:
        return terms_note(self.model)

    def check(self) -> None:
        """Ask the hub for the model's size, and compare it with what is free here."""
        from synthclip.backends.diffusers_loading import refuse_too_large

        refuse_too_large(self)


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


def _digests(key: str, source: str, *, needs_index: bool) -> dict[str, str]:
    """File -> digest of a local model, nothing of the hub's. Raises SynthClipError where it is neither."""
    path = Path(source).expanduser()
    is_file = path.suffix in SINGLE_FILES
    if path.is_file() and is_file:
        return {path.name: quick_digest(path)}
    if not path.is_dir():
        levels = source.count("/")
        if (
            path.is_absolute()
            or source.startswith((".", "~"))
            or not (levels == 1 or (levels > 1 and is_file))
        ):
            raise SynthClipError(
                f"{key}: {source}: no such folder or file, and no repository of the hub (OWNER/NAME): "
                "give either"
            )
        return {}
    if needs_index and not (path / "model_index.json").is_file():
        raise SynthClipError(
            f"{key}: {path}: holds no model_index.json: give a folder that diffusers' save_pretrained wrote"
        )
    files = [file for file in sorted(path.rglob("*")) if file.suffix in (".json", ".safetensors", ".bin")]
    return {file.relative_to(path).as_posix(): quick_digest(file) for file in files}


def build(config: Config) -> "Diffusers":
    return Diffusers(config)


class Diffusers:
    """A loaded pipeline."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._pipeline, revision = load(config)
        self.name = f"{_shown(config.model)}@{revision}"
        for added in (config.adapter, *sorted(set(config.parts.values()))):
            self.name += f" + {_shown(added)}" if added else ""
        self.licence = config.licence or f"see {config.model}"
        self.batch_size = _FIRST_BATCH if config.batch_size == "auto" else config.batch_size
        if type(self._pipeline).__name__ in _ONE_BY_ONE:
            self.batch_size = 1
        self._saving = False
        self._readers = _readers(self._pipeline)
        self._constant = _constant_arguments(config, self._pipeline)
        self._empty_prompt = _empty_prompt(config, self._pipeline)

    def generate(self, prompts: Sequence[str], seeds: Sequence[int]) -> Painted:
        """Images uint8 [B, H, W, 3] in RGB. Refuses as `nan` what is not finite, as `unsafe` what the
        safety checker refuses. Raises SynthClipError where memory does not hold one image."""

        images: list[NDArray[np.uint8]] = []
        refused: dict[int, str] = {}
        done = 0
        while done < len(prompts):
            part = slice(done, done + self.batch_size)
            try:
                painted, bad = self._paint(prompts[part], seeds[part])
            except RuntimeError as error:
                if "out of memory" not in str(error):
                    raise
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
        if "negative_prompt" in arguments:
            arguments["negative_prompt"] = [arguments["negative_prompt"]] * len(prompts)
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
            images = _pictures(output)[:count]
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

        if torch.accelerator.is_available():
            torch.accelerator.empty_cache()
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
        """The end of the prompt that no text encoder reads, as far as its tokenizer tells."""
        tails = []
        for tokenizer, limit in self._readers:
            try:
                ids = tokenizer(prompt, truncation=False, add_special_tokens=False, verbose=False).input_ids
                tails.append(str(tokenizer.decode(ids[limit:])))
            except Exception as error:  # a picture that is painted is worth more than this report
                _LOG.warning("text_to_image: cut prompts go unreported: %s: %s", type(error).__name__, error)
                self._readers = []
                return ""
        return min(tails, key=len, default="")


def _constant_arguments(config: Config, pipeline: Any) -> dict[str, Any]:
    """What every call of the pipeline is given; what is None is left to the pipeline."""
    accepted = inspect.signature(pipeline.__call__).parameters
    given = {"num_inference_steps": config.steps, "height": config.size_px, "width": config.size_px}
    known = {name: value for name, value in given.items() if value is not None and name in accepted}
    known |= _guidance(config, pipeline, accepted)
    if config.size_px is not None and "use_resolution_binning" in accepted:
        known["use_resolution_binning"] = False  # which paints at the trained size, and resizes
    if unknown := sorted(set(config.arguments) - set(accepted)):
        raise SynthClipError(
            f"text_to_image.arguments: {type(pipeline).__name__} takes no {unknown[0]!r}"
            f"{nearest(unknown[0], sorted(accepted))}"
        )
    return known | config.arguments


def _guidance(config: Config, pipeline: Any, accepted: Mapping[str, Any]) -> dict[str, Any]:
    """`guidance` under the pipeline's name for it. Raises SynthClipError where it would be ignored."""
    given, kind = config.guidance, type(pipeline).__name__
    if "true_cfg_scale" in accepted and not denoiser(pipeline).config.get("guidance_embeds"):
        # Its other argument, guidance_scale, is an input of a denoiser that this one does not have.
        scale = accepted["true_cfg_scale"].default if given is None else given
        return {"true_cfg_scale": scale} | ({"negative_prompt": " "} if scale > 1 else {})
    if given is not None and given > 1 and pipeline.config.get("is_distilled"):
        raise SynthClipError(
            f"text_to_image.guidance: {config.model} is distilled for use without it: leave it out, or give 1"
        )
    if given is None:
        return {}
    if "guidance_scale" not in accepted:
        raise SynthClipError(f"text_to_image.guidance: {kind} has none: leave it out")
    return {"guidance_scale": given}


def _pictures(output: Any) -> "torch.Tensor":
    """[B, 3, H, W] in [0, 1] of what a pipeline returns, whatever it calls it."""
    import torch

    images = getattr(output, "images", None)
    images = getattr(output, "image", None) if images is None else images
    if isinstance(images, list):
        images = np.stack([np.asarray(image, np.float32) / 255 for image in images])
    if isinstance(images, np.ndarray):
        images = torch.from_numpy(images).movedim(-1, -3)
    if images is not None and images.ndim == 5 and images.shape[1] == 1:
        images = images[:, 0]
    if images is None or images.ndim != 4:
        raise SynthClipError(f"text_to_image: its output, {type(output).__name__}, holds no single pictures")
    return images


def _empty_prompt(config: Config, pipeline: Any) -> "dict[str, torch.Tensor]":
    """The text that guidance leads away from, [1, T, D], and its summary, [1, D], as arguments of the
    pipelines that would encode it again in every batch; the others encode none, or take zeros for it."""
    import torch
    from diffusers import StableDiffusion3Pipeline, StableDiffusionPipeline, StableDiffusionXLPipeline

    if (config.guidance is not None and config.guidance <= 1) or "negative_prompt" in config.arguments:
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
    """A hub's name as it is, of a local model the last part: where it lies is no part of a data set."""
    return Path(model).name if Path(model).expanduser().exists() else model


def _readers(pipeline: Any) -> list[tuple[Any, int]]:
    """Each tokenizer of the pipeline, and how many tokens of a prompt its encoder reads.

    Where a chat template goes around the prompt, as many fewer are read.
    """
    longest = inspect.signature(pipeline.__call__).parameters.get("max_sequence_length")
    readers = []
    for name, tokenizer in pipeline.components.items():
        if not name.startswith("tokenizer") or tokenizer is None:
            continue
        tokenizer = getattr(tokenizer, "tokenizer", tokenizer)  # of a processor of pictures and texts
        is_clip = "CLIP" in type(tokenizer).__name__
        limit = tokenizer.model_max_length if is_clip or longest is None else longest.default
        readers.append((tokenizer, int(limit) - tokenizer.num_special_tokens_to_add()))
    return readers
