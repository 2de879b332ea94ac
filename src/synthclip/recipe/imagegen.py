"""The recipe's section for ImageGen."""

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from synthclip.errors import SynthClipError
from synthclip.keys import quick_digest
from synthclip.recipe.backends import LLMConfig, TextToImageConfig, is_custom
from synthclip.recipe.section import Section, later, runtime

TAR_BYTES = 3500
"""What a sample takes beside its JPEG: headers, padding, caption, JSON, and its row of the sidecar."""

LOCAL = "local-dir:"
"""How open_clip names a model in a folder."""

MAX_VARIANTS = 100
"""Images of one caption at most: what a key has room for."""


class FiltersConfig(Section):
    """Which paintings are refused, and painted again with the next seed."""

    min_contrast: float = Field(2.0, ge=0)
    """Least standard deviation of the luminance, in levels of 255: below it an image is blank."""
    max_duplicate_bits: int | None = Field(None, ge=0, le=31)
    """Refuse an image whose 64-bit perceptual hash is this near to an earlier one of its shard."""
    clip_model: str | None = None
    """Scores image against caption: `NAME/PRETRAINED` of open_clip, `hf-hub:OWNER/NAME`, `local-dir:PATH`."""
    min_clip_score: float = Field(0.0, ge=-1, le=1)
    """Least cosine similarity where `clip_model` is given."""

    def inputs(self) -> dict[str, str]:
        """Digests of the local files the filters consist of. Raises SynthClipError where they are missing."""
        if self.clip_model is None or not self.clip_model.startswith(LOCAL):
            return {}
        folder = Path(self.clip_model.removeprefix(LOCAL))
        files = sorted(path for path in folder.glob("open_clip*") if path.is_file())
        if not files:
            raise SynthClipError(
                f"images.filters.clip_model: {folder}: holds no open_clip_config.json and weights: "
                "give a folder such as a run's train/model"
            )
        return {f"clip_model/{path.name}": quick_digest(path) for path in files}


class VisionModelConfig(Section):
    """A model that looks at every picture that the filters keep."""

    llm: LLMConfig
    """As the recipe's `llm`: a server with OpenAI's API that has a vision model."""
    judge: bool = False
    """Ask whether the picture shows what its caption says, claim by claim: objects, numbers, colours,
    relations. `judge_score` is the share of the claims that it shows."""
    min_judge_score: float = Field(0.0, ge=0, le=1)
    """Refuse a picture with a lower `judge_score`; it is painted again with the next seed."""
    recaption: bool = False
    """Ask for a caption of what is seen, as a second caption of each picture to train on: training draws one
    of the two each time."""
    min_words: int = Field(3, ge=1)
    """Such captions of fewer words are not taken."""
    max_words: int = Field(30, ge=1)
    """Such captions of more words are not taken."""
    max_unusable: float = runtime(0.5, ge=0, le=1)
    """The stage stops where a larger share of a shard's answers cannot be used. Below it, a picture whose
    answer cannot be used is kept without a score, or with its one caption."""

    @model_validator(mode="after")
    def _can_look(self) -> Self:
        if not (self.judge or self.recaption):
            raise ValueError("has nothing to do: set judge or recaption")
        if self.min_judge_score and not self.judge:
            raise ValueError("min_judge_score: needs judge: true")
        if self.min_words > self.max_words:
            raise ValueError("min_words: more than max_words")
        if not (self.llm.sees or is_custom(self.llm.backend)):
            raise ValueError(f"llm: backend {self.llm.backend!r} takes no pictures: choose 'openai'")
        for key, needed in (("chat", True), ("batch", False)):
            if getattr(self.llm, key, needed) != needed:
                raise ValueError(f"llm.{key}: must be {str(needed).lower()} for pictures")
        return self


class ImagesConfig(Section):
    imported: str | None = None
    """Take the images and captions from the official SynthCI-30M files in this folder, and paint none."""
    seeds: str | None = runtime(None)
    """Paint the images of this folder of `synthclip export seeds` again, and no others. What is in it decides
    the result, not where it lies."""
    per_caption: int = Field(1, ge=1, le=MAX_VARIANTS)
    """Images of each caption, each with a seed of its own."""
    heldout_per_caption: int = Field(1, ge=1, le=MAX_VARIANTS)
    """Images of each held-out caption."""
    heldout_painter: TextToImageConfig | None = later(None)
    """A model that paints the held-out captions too, `heldout_per_caption` times each, and nothing to train
    on. Its pictures are a further held-out set: what a CLIP knows of them is not its painters' style."""
    composition: int = later(0, ge=0)
    """How many pairs of captions that differ in how their words belong together (colours, numbers or places
    exchanged) to paint too, to evaluate on alone: does the model bind a colour to its object?"""
    exchanged: int = later(0, ge=0)
    """How many such pairs to paint to train on, `per_caption` times each; a source of kind `exchanged` in
    `training.sources` puts both of a pair into one batch. None of them is in the set of `composition`."""
    captions_per_shard: int | None = Field(None, ge=1)
    """None: as many as fill about `shard_mb`."""
    shard_mb: float = Field(250.0, gt=0)
    """Size of a tar, in MB of a million bytes."""
    size_px: int = Field(256, ge=16)
    """Side of the stored JPEG; what the model paints is cut to a square and resized with antialiasing."""
    jpeg_quality: int = Field(95, ge=1, le=100)
    """Quality of the stored JPEG, from 1 to 100."""
    filters: FiltersConfig = FiltersConfig()
    """Which paintings are refused."""
    retries: int = Field(2, ge=0, le=20)
    """How often a refused painting is tried again, each time with the next seed."""
    vision: VisionModelConfig | None = later(None)
    """A model that looks at the pictures: does one show what its caption says, and what does it show?"""
    max_lost: float = Field(0.5, ge=0, le=1)
    """The stage stops where a larger share of a shard's images was refused for good."""

    def inputs(self) -> dict[str, str]:
        """Digests of the local files that decide which paintings are kept. Raises SynthClipError where one is
        missing."""
        seen = {} if self.vision is None else self.vision.llm.inputs()
        return self.filters.inputs() | {f"vision/{name}": known for name, known in seen.items()}

    @property
    def jpeg_bytes(self) -> float:
        """Expected size of a stored picture, for photographs: 0.2 bytes a pixel at quality 75 and 2.5 times
        that at 95. Drawings take less."""
        return float(self.size_px**2 * 0.2 * 2.5 ** ((self.jpeg_quality - 75) / 20))

    def shard_captions(self, variants: int) -> int:
        """How many captions with `variants` images each go into a shard."""
        if self.captions_per_shard is not None:
            return self.captions_per_shard
        return max(1, int(self.shard_mb * 1e6 / (variants * (self.jpeg_bytes + TAR_BYTES))))
