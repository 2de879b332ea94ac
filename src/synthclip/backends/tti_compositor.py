"""A compositor of OpenMoji glyphs: it stands in for a diffusion model where none can be had."""

from pydantic import Field

from synthclip.backends import BackendConfig


class Config(BackendConfig):
    size_px: int = Field(128, ge=32)
