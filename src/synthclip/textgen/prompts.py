"""What the language model is asked: the template and the axis values that a caption draws."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from synthclip import keys
from synthclip.recipe.textgen import CaptionsConfig, Template


@dataclass(frozen=True)
class Prompt:
    """One question to the model."""

    text: str
    prefill: str
    """How the caption begins, for a model that goes on from it."""
    template: Template
    seed: int

    @property
    def prefilled(self) -> str:
        """The prompt with the caption's beginning at its end."""
        gap = " " if self.prefill and not self.text[-1:].isspace() else ""
        return f"{self.text}{gap}{self.prefill}"


class Prompts:
    """The recipe's templates, compiled. All that is drawn follows from concept, attempt and seed."""

    def __init__(self, config: CaptionsConfig, seed: int) -> None:
        self._templates = config.templates
        self._compiled = [template.compile(config.axes) for template in config.templates]
        weights = np.array([template.weight for template in config.templates])
        self._edges: NDArray[np.float64] = np.cumsum(weights) / weights.sum()
        self._axes = config.axes
        self._seed = seed

    def draw(self, concept: str, attempt: int) -> Prompt:
        """The prompt of one attempt at a concept."""
        chosen = int(
            np.searchsorted(self._edges[:-1], self._share(concept, "template", attempt), side="right")
        )
        drawn = {
            axis: values[int(self._share(concept, f"axis {axis}", attempt) * len(values))]
            for axis, values in self._axes.items()
        }
        text, prefill = (part.render(concept=concept, **drawn) for part in self._compiled[chosen])
        prefill = " ".join(prefill.split())
        seed = keys.seed_of(concept, stream="caption", seed=self._seed, index=attempt)
        return Prompt(text, prefill, self._templates[chosen], seed)

    def _share(self, concept: str, stream: str, attempt: int) -> float:
        """A number in [0, 1)."""
        return float(keys.uniform(keys.text_id(concept), stream=stream, seed=self._seed, index=attempt))
