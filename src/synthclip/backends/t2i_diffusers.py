"""Any text-to-image pipeline of the library diffusers, from the Hugging Face hub or a folder.

The noise comes from a generator of its own for each image, on the CPU, so it depends on the seed alone. What
a GPU makes of it can differ in the last bits with the batch size, the driver and `compile`: pictures are
equal to the eye, not byte for byte, between such machines.
"""

import inspect
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from synthclip.backends import Painted
from synthclip.backends.diffusers_config import Config
from synthclip.backends.diffusers_loading import denoiser, load
from synthclip.errors import SynthClipError, first_line
from synthclip.recipe.section import nearest

if TYPE_CHECKING:
    import torch

__all__ = ["Config", "Diffusers", "build"]

_FIRST_BATCH = 32
_ONE_BY_ONE = ("CogView4Pipeline", "Kandinsky5T2IPipeline")
"""Their denoisers attend to the padding of a prompt too, which reaches to the longest of its batch."""
_REWRITES = ("enable_prompt_rewrite", "use_pe")
"""Arguments that let a language model of the pipeline paint another prompt than the caption: off."""
_LOG = logging.getLogger("synthclip.backends")


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
        if config.cache is not None or type(self._pipeline).__name__ in _ONE_BY_ONE:
            self.batch_size = 1  # the cache looks at the mean change of a batch
        self._sliced = self._saving = False
        self._constant = _constant_arguments(config, self._pipeline)
        self._readers = _readers(self._pipeline, self._constant.get("max_sequence_length"))
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
        """Decode image by image; then half the batch; at one image, what saves memory at the price of much
        time; then there is nothing left."""
        import torch

        vae: Any = getattr(self._pipeline, "vae", None)
        if torch.accelerator.is_available():
            torch.accelerator.empty_cache()
        if not self._sliced and hasattr(vae, "enable_slicing"):
            self._sliced = True
            vae.enable_slicing()
        elif self.batch_size > 1:
            self.batch_size = math.ceil(self.batch_size / 2)
        elif not self._saving:
            self._saving = True
            for part, method in ((self._pipeline, "enable_attention_slicing"), (vae, "enable_tiling")):
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
    known |= {name: False for name in _REWRITES if name in accepted}
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


def _readers(pipeline: Any, longest: int | None) -> list[tuple[Any, int]]:
    """Each tokenizer of the pipeline, and how many tokens of a prompt its encoder reads: `longest`, or the
    pipeline's own limit.

    Where a chat template goes around the prompt, as many fewer are read.
    """
    if longest is None and (
        own := inspect.signature(pipeline.__call__).parameters.get("max_sequence_length")
    ):
        longest = own.default
    readers = []
    for name, tokenizer in pipeline.components.items():
        if not name.startswith("tokenizer") or tokenizer is None:
            continue
        tokenizer = getattr(tokenizer, "tokenizer", tokenizer)  # of a processor of pictures and texts
        is_clip = "CLIP" in type(tokenizer).__name__
        limit = tokenizer.model_max_length if is_clip or longest is None else longest
        readers.append((tokenizer, int(limit) - tokenizer.num_special_tokens_to_add()))
    return readers
