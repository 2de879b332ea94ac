"""A painter: every caption becomes a disc whose colour and place its seed draws."""

from collections.abc import Sequence

import numpy as np

from synthclip.backends import Painted
from synthclip.recipe.backends import BackendConfig


class Config(BackendConfig):
    size_px: int = 64
    """Side of the pictures."""


class Discs:
    name = "discs"
    licence = "CC0-1.0"
    batch_size = 32

    def __init__(self, config: Config) -> None:
        self._size_px = config.size_px

    def generate(self, prompts: Sequence[str], seeds: Sequence[int]) -> Painted:
        return Painted(np.stack([self._disc(seed) for seed in seeds]))

    def _disc(self, seed: int) -> np.ndarray:
        drawn, size = np.random.default_rng(seed), self._size_px
        y, x = np.mgrid[:size, :size] - drawn.integers(size // 4, 3 * size // 4, (2, 1, 1))
        inside = y**2 + x**2 < drawn.integers(size // 6, size // 3) ** 2
        ground, colour = drawn.integers(0, 256, (2, 3), np.uint8)
        return np.where(inside[..., None], colour, ground)


def build(config: Config) -> Discs:
    return Discs(config)
