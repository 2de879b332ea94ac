"""What the language model is asked: which template a caption gets, and the prompt it makes."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from synthclip import keys
from synthclip.textgen.config import Template


class Prompts:
    """The recipe's templates, compiled. All that is drawn follows from concept, attempt and seed."""

    def __init__(self, templates: Sequence[Template], seed: int) -> None:
        self._names = [template.name for template in templates]
        self._compiled = [template.compile() for template in templates]
        weights = np.array([template.weight for template in templates])
        self._edges: NDArray[np.float64] = np.cumsum(weights) / weights.sum()
        self._seed = seed

    def draw(self, concept: str, attempt: int) -> tuple[str, str, int]:
        """(prompt, template name, seed for the model) of one attempt at a concept."""
        share = keys.uniform(keys.text_id(concept), stream="template", seed=self._seed, index=attempt)
        chosen = min(int(np.searchsorted(self._edges, share, side="right")), len(self._names) - 1)
        prompt = self._compiled[chosen].render(concept=concept)
        return (
            prompt,
            self._names[chosen],
            keys.seed_of(concept, stream="caption", seed=self._seed, index=attempt),
        )
