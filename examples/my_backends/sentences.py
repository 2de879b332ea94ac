"""A language model that fills templates: captions without any model."""

import random
from collections.abc import Sequence

from synthclip.recipe.backends import BackendConfig


class Config(BackendConfig):
    places: tuple[str, ...] = ("on the beach", "in the forest", "at night", "in the snow", "in the rain")
    """Where things may be."""


class Sentences:
    name = "sentences"
    batch_size = 64
    continues = False

    def __init__(self, config: Config) -> None:
        self._places = config.places

    def generate(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[str]:
        return [
            self._sentence(concept, random.Random(seed)) for concept, seed in zip(prompts, seeds, strict=True)
        ]

    def _sentence(self, concept: str, drawn: random.Random) -> str:
        look, place = drawn.choice(["small", "big", "red", "blue"]), drawn.choice(self._places)
        return f"A {look} {concept} {place}."


def build(config: Config) -> Sentences:
    return Sentences(config)
