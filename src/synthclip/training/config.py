"""The recipe's sections for training."""

from typing import Literal

from pydantic import Field

from synthclip.config import Section, runtime


class VisionConfig(Section):
    """The image tower, in open_clip's terms."""

    image_size_px: int = Field(224, ge=16)
    layers: int | tuple[int, int, int, int] = 12
    """One number: a ViT of so many layers. Four: a ResNet of so many blocks a stage."""
    width: int = 768
    patch_size_px: int | None = 16


class TextConfig(Section):
    """The text tower, in open_clip's terms."""

    context_length: int = 77
    width: int = 512
    heads: int = 8
    layers: int = 12


class ModelConfig(Section):
    name: str | None = None
    """A model known by name (`synthclip-vitb16` is the paper's); None builds it from `vision` and `text`."""
    embed_dim: int = 512
    vision: VisionConfig = VisionConfig()
    text: TextConfig = TextConfig()


class TrainingConfig(Section):
    epochs: float = Field(40, gt=0)
    batch_size: int = Field(4096, ge=2)
    """Pairs a step, over all processes."""
    lr: float = Field(5e-4, gt=0)
    lr_start: float = Field(1e-6, ge=0)
    lr_end: float = Field(1e-5, ge=0)
    warmup_epochs: float = Field(1, ge=0)
    weight_decay: float = Field(0.5, ge=0)
    beta1: float = 0.9
    beta2: float = 0.98
    eps: float = 1e-8
    crop_scale: tuple[float, float] = (0.5, 1.0)
    """RandomResizedCrop's range of area."""
    precision: Literal["fp32", "fp16", "bf16"] = "fp32"
    checkpoint_minutes: float = runtime(5.0, gt=0)
    data_threads: int | Literal["auto"] = runtime("auto")
