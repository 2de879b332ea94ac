"""What the language model's tokens come to, noted in the run's log while the work goes on."""

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

from synthclip.backends import LLM, Tokens
from synthclip.recipe import Recipe
from synthclip.recipe.backends import BackendConfig
from synthclip.run.store import RunDirectory

_NOTE_SECONDS = 10.0
TOKENS_PER_WORD = 4 / 3
CHARS_PER_TOKEN = 4


def cost_of(config: BackendConfig | None, tokens: Mapping[str, float]) -> float | None:
    """Of tokens `read` and `written` at the recipe's prices; None where it has none."""
    prices: Any = getattr(config, "prices", None)
    if prices is None:
        return None
    return float(tokens["read"] * prices.input + tokens["written"] * prices.output) / 1e6


def caption_tokens(recipe: Recipe, asked: float) -> dict[str, float]:
    """What `asked` captions may take: tokens `read` and `written`, of a model that does not think."""
    words = (recipe.captions.min_words + recipe.captions.max_words) / 2
    written = min(words * TOKENS_PER_WORD, getattr(recipe.llm, "max_tokens", None) or math.inf)
    prompt = max(len(template.text) for template in recipe.captions.templates) / CHARS_PER_TOKEN
    return {"read": asked * prompt / recipe.captions.per_request, "written": asked * written}


def spent_and_planned(recipe: Recipe, concepts: int, spent: Mapping[str, float]) -> str:
    """What a model has `read` and `written`, and its `cost`, beside what was to be expected of `concepts`."""
    planned = caption_tokens(recipe, concepts * recipe.captions.per_concept)
    money = cost_of(recipe.llm, planned)
    return said_of(spent, planned if money is None else planned | {"cost": money})


def said_of(spent: Mapping[str, float], planned: Mapping[str, float] | None = None) -> str:
    """Tokens `read` and `written`, and their `cost`, in words; beside what was to be expected of them."""

    def plan(name: str, shown: Callable[[float], str]) -> str:
        return f" (plan: {shown(planned.get(name, 0))})" if planned else ""

    said = [f"{spent[name]:,.0f} tokens {name}{plan(name, rounded)}" for name in ("read", "written")]
    if "cost" in spent:
        said.append(f"{spent['cost']:,.2f} spent{plan('cost', '{:,.2f}'.format)}")
    return ", ".join(said)


def rounded(number: float) -> str:
    """Three digits and a unit, such as `1.23M`."""
    for unit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= unit:
            return f"{number / unit:.3g}{letter}"
    return f"{number:.0f}"


class Account:
    """Adds what a model reads and writes to `metrics.jsonl`, as it happens and also where a shard fails.

    Use as a context manager around one shard. No model, or one that counts no tokens, has nothing to note.
    """

    def __init__(
        self, run: RunDirectory, stage: str, shard: str, llm: LLM | None, config: BackendConfig | None
    ) -> None:
        self._run, self._names, self._config = run, {"stage": stage, "shard": shard}, config
        self._tokens: Tokens | None = getattr(llm, "tokens", None)

    def __enter__(self) -> "Account":
        self._noted = dict(vars(self._tokens or Tokens()))
        self._noted_at = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        self._note()

    def note(self) -> None:
        """Called as often as one likes; writes a line now and then."""
        if time.monotonic() - self._noted_at >= _NOTE_SECONDS:
            self._note()

    def _note(self) -> None:
        now = dict(vars(self._tokens or Tokens()))
        fresh = {name: now[name] - self._noted[name] for name in now}
        self._noted, self._noted_at = now, time.monotonic()
        if any(fresh.values()):
            cost = cost_of(self._config, fresh)
            money = {} if cost is None else {"cost": round(cost, 9)}
            self._run.log(event="tokens", **self._names, **fresh, **money)
