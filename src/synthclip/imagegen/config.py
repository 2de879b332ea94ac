"""The recipe's section for ImageGen."""

from pydantic import Field

from synthclip.config import Section


class ImagesConfig(Section):
    per_caption: int = Field(1, ge=1, le=100)
    """Images of each caption, each with a seed of its own."""
    size_px: int = Field(256, ge=16)
    """Side of the stored JPEG; what the model paints is resized to it with antialiasing."""
    jpeg_quality: int = Field(95, ge=1, le=100)
    heldout_per_caption: int = Field(1, ge=1, le=100)
    """Images of each held-out caption."""
