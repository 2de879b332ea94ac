"""Whose pictures a model of a sweep was trained on, and what it knows of the others'."""

import json
from collections.abc import Mapping, Sequence

import numpy as np

from synthclip.evaluation.results import Items, Key
from synthclip.recipe import Recipe
from synthclip.recipe.backends import BackendConfig, CustomCode
from synthclip.recipe.training import HELDOUT
from synthclip.sweeps.variants import Run

OTHERS = "other painters"
"""The data set of the held-out pictures by those painters of a sweep that a model was not trained on."""
_TASK = "zero_shot"
_METRICS = ("top1", "top5")
_SETTINGS = ("guidance", "steps", "size_px")
"""With another of these a painter is still the same."""


def trained_on(recipe: Recipe) -> frozenset[str]:
    """The painters whose pictures a recipe trains on."""
    return frozenset(map(_identity, recipe.text_to_image.members))


def _identity(config: BackendConfig) -> str:
    values = config.model_dump() if isinstance(config, CustomCode) else config.results()
    return json.dumps({k: v for k, v in values.items() if k not in _SETTINGS}, sort_keys=True, default=str)


def judging_painters(runs: Sequence[Run], base: str, judges: Sequence[str]) -> dict[str, frozenset[str]]:
    """Who painted each held-out set that judges the models of a sweep, by the set's name there;
    nothing where the same painted all."""
    recipes = {one.variant: one.recipe for one in runs}
    sets = {HELDOUT: trained_on(recipes[base])}
    sets |= {f"{HELDOUT} of {name}": trained_on(recipes[name]) for name in judges if name != base}
    return sets if len(set(sets.values())) > 1 else {}


def by_others(
    items: Mapping[Key, Items], sets: Mapping[str, frozenset[str]], own: frozenset[str]
) -> dict[Key, Items]:
    """What a model that was trained on pictures of `own` knows of the other painters' pictures.

    An item is a caption that each of the sets has pictures of, its value the mean over the other painters, so
    that models are compared by the same captions.
    """
    foreign = [name for name, painters in sets.items() if not painters & own]
    found: dict[Key, Items] = {}
    for metric in _METRICS:
        values = {name: _by_caption(items.get((name, _TASK, metric), {})) for name in sets}
        common = set.intersection(*map(set, values.values())) if values else set()
        if foreign and common:
            means = {one: float(np.mean([values[name][one] for name in foreign])) for one in sorted(common)}
            found[OTHERS, _TASK, metric] = {one: (value, None) for one, value in means.items()}
    return found


def _by_caption(items: Items) -> dict[str, float]:
    """The mean over a caption's pictures; a picture's name begins with its caption's (`keys.image_key`)."""
    values: dict[str, list[float]] = {}
    for item, (value, _) in items.items():
        values.setdefault(item.partition("_")[0], []).append(value)
    return {caption: float(np.mean(own)) for caption, own in values.items()}
