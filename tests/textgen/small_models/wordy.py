"""A language model of a few sentences, some of them what no caption may be."""

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

    def generate(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[str]:
        time.sleep(self._pause)
        return [
            SAYS[seed % len(SAYS)].format(c=prompt.split(":")[0])
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]


def build(config: Config) -> Wordy:
    return Wordy(config)
