"""A language model of a few sentences, some of them what no caption may be."""

import json
import time
from collections.abc import Sequence

from synthclip.recipe.backends import BackendConfig
from synthclip.recipe.section import runtime

SAYS = (
    " {c} sleeps under a tree.",
    " A {c} stands on a hill at night.",
    " A red {c} lies next to a boat.",
    " A small {c} is on the beach with two dogs.",
    "",
    " A \x07{c} with a bell \x00in it.",
    " <script>alert('{c}')</script> in a park.",
    " word" * 10_000,
    "\ud800 {c} is half a character.",
    " Nothing of the kind is here.",
    " First a {c}.\nThen another.",
)


class Config(BackendConfig):
    batch: int = runtime(3, ge=1)
    pause_seconds: float = runtime(0.0, ge=0)


class Wordy:
    name = "wordy"
    continues = True

    def __init__(self, config: Config) -> None:
        self.batch_size = config.batch
        self._pause = config.pause_seconds

    def generate(
        self, prompts: Sequence[str], seeds: Sequence[int], counts: Sequence[int] | None = None
    ) -> list[str]:
        """Lists, of which some are cut short, where more than one caption is asked for."""
        time.sleep(self._pause)
        said = []
        for prompt, seed, count in zip(prompts, seeds, counts or [1] * len(prompts), strict=True):
            concept = prompt.split(":")[0]
            texts = [SAYS[(seed + at) % len(SAYS)].format(c=concept) for at in range(count)]
            said.append(texts[0] if count == 1 else json.dumps(texts)[: -(seed % 3) or None])
        return said


def build(config: Config) -> Wordy:
    return Wordy(config)
