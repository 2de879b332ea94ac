"""Judges paintings before they are kept: blank, near-duplicate, not what the caption says."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from synthclip.errors import SynthClipError, first_line
from synthclip.models import cuda_or_cpu
from synthclip.recipe.imagegen import LOCAL, FiltersConfig
from synthclip.samples.pictures import perceptual_hash

Images = NDArray[np.uint8]


@dataclass
class Verdict:
    """What the filters found of one image."""

    scores: dict[str, float] = field(default_factory=dict)
    reason: str | None = None
    """Why it is refused; None where it is kept."""
    other_texts: tuple[str, ...] = ()
    """Further captions, of what a vision model sees in it."""
    unusable: list[str] = field(default_factory=list)
    """Why answers of a vision model could not be used."""


class Filter(Protocol):
    def judge(self, images: Images, captions: Sequence[str], verdicts: Sequence[Verdict]) -> None:
        """Add to the verdicts. uint8 [B, H, W, 3] in RGB; what is refused already may be skipped."""
        ...


def load_filters(config: FiltersConfig) -> Callable[[], list[Filter]]:
    """Load what the recipe's filters need, once a worker; each call then gives the filters of one shard,
    the cheap first, which know nothing of other shards: what is refused does not depend on the worker."""
    clip: list[Filter] = []
    if config.clip_model is not None:
        clip = [ClipScore(config.clip_model, config.min_clip_score)]

    def of_one_shard() -> list[Filter]:
        filters: list[Filter] = [Contrast(config.min_contrast)]
        if config.max_duplicate_bits is not None:
            filters.append(Duplicates(config.max_duplicate_bits))
        return filters + clip

    return of_one_shard


class Contrast:
    """Refuses blank and near-uniform images: `contrast` is the standard deviation of the luminance."""

    def __init__(self, minimum: float) -> None:
        self._minimum = minimum

    def judge(self, images: Images, captions: Sequence[str], verdicts: Sequence[Verdict]) -> None:
        import cv2

        for image, verdict in zip(images, verdicts, strict=True):
            _, deviation = cv2.meanStdDev(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))
            verdict.scores["contrast"] = float(deviation[0, 0])
            if verdict.reason is None and verdict.scores["contrast"] < self._minimum:
                verdict.reason = "blank"


class Duplicates:
    """Refuses an image whose perceptual hash is near to that of an image kept before."""

    def __init__(self, max_bits: int) -> None:
        self._max_bits = max_bits
        self._kept = np.empty(1024, np.uint64)
        self._count = 0

    def judge(self, images: Images, captions: Sequence[str], verdicts: Sequence[Verdict]) -> None:
        for image, verdict in zip(images, verdicts, strict=True):
            if verdict.reason is not None:
                continue
            hashed = perceptual_hash(image)
            if self._count:
                distances = np.bitwise_count(self._kept[: self._count] ^ hashed)
                verdict.scores["duplicate_bits"] = float(distances.min())
                if verdict.scores["duplicate_bits"] <= self._max_bits:
                    verdict.reason = "duplicate"
                    continue
            if self._count == len(self._kept):
                self._kept = np.concatenate([self._kept, np.empty_like(self._kept)])
            self._kept[self._count] = hashed
            self._count += 1


class ClipScore:
    """Refuses images that a CLIP finds unlike their captions.

    `clip_score` is the cosine similarity of the two embeddings: CLIPScore (Hessel et al., 2021, section 3)
    without its factor of 2.5 and its cut at zero.
    """

    def __init__(self, model: str, minimum: float) -> None:
        from synthclip.models import open_clip

        name, pretrained = (model, None) if ":" in model else model.rpartition("/")[::2]
        try:
            self._model, self._transform = open_clip.create_model_from_pretrained(name, pretrained=pretrained)
            self._tokenizer = open_clip.get_tokenizer(name)
        except (OSError, RuntimeError, ValueError, KeyError) as error:
            reason = first_line(error)
            raise SynthClipError(
                f"images.filters.clip_model: {model}: cannot be loaded: {reason}; give "
                f"NAME/PRETRAINED of open_clip, hf-hub:OWNER/NAME or {LOCAL}PATH"
            ) from None
        self._device = cuda_or_cpu()
        self._model.eval().to(self._device)
        self._minimum = minimum

    def judge(self, images: NDArray[np.uint8], captions: Sequence[str], verdicts: Sequence[Verdict]) -> None:
        at = [number for number, verdict in enumerate(verdicts) if verdict.reason is None]
        if not at:
            return
        scores = self.scores(images[at], [captions[number] for number in at])
        for number, score in zip(at, scores, strict=True):
            verdicts[number].scores["clip_score"] = float(score)
            if score < self._minimum:
                verdicts[number].reason = "clip score"

    def scores(self, images: NDArray[np.uint8], captions: Sequence[str]) -> NDArray[np.float32]:
        """Cosine similarities, float32 [B], of uint8 [B, H, W, 3] in RGB and their captions."""
        import torch
        from PIL import Image

        pixels = torch.stack([self._transform(Image.fromarray(image)) for image in images])
        with torch.inference_mode():
            image: Any = self._model.encode_image(pixels.to(self._device), normalize=True)
            text: Any = self._model.encode_text(
                self._tokenizer(list(captions)).to(self._device), normalize=True
            )
            return np.asarray((image * text).sum(-1).float().cpu().numpy(), np.float32)
