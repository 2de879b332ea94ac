"""Which painter teaches? The same captions by each; models judged on pictures of painters new to them."""

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from synthclip import samples, schema
from synthclip.errors import SynthClipError
from synthclip.recipe import inspect_recipe
from synthclip.recipe.backends import BackendConfig
from synthclip.recipe.document import parse_yaml
from synthclip.recipe.training import HELDOUT
from synthclip.samples.pictures import decode, perceptual_hash
from synthclip.sweeps.painters import OTHERS
from synthclip.sweeps.results import Finding, Found, span
from synthclip.sweeps.runs import Swept
from synthclip.sweeps.variants import Sweep, make_sweep, split_values

TOGETHER = "all together"
OWN = "own pictures"
_IMAGES = 512
"""Images of a painter that its variety is measured on."""


def audition_sweep(
    recipe: str,
    painters: Sequence[str],
    guidance: str | None = None,
    unseen: str | None = None,
    **options: Any,
) -> Sweep:
    """A sweep with a variant for each painter, and for each of the values of `guidance` (`2,7.5`) of it.

    A painter is the name of a diffusers preset, or `NAME=PRESET`, or `NAME={key: value, …}`: the keys of
    `text_to_image`, those of the recipe's own backend where none is named. What has a dot before its `=` is a
    value of the recipe. `unseen`, a painter too, paints the held-out captions once more and trains nobody;
    then a variant with all painters joins. `options` that are not None are keys of the sweep.

    Raises SynthClipError where there are fewer than two painters, or one is none.
    """
    shared = [text for text in painters if "." in text.partition("=")[0]]
    named: dict[str, list[str]] = {}
    for text in painters:
        if text not in shared:
            name, values = _painter(text)
            if name in named:
                raise SynthClipError(f"{text}: another painter has the name {name!r}: choose another")
            named[name] = values
    if len(named) < 2 and guidance is None:
        raise SynthClipError(
            "an audition needs two painters or more, such as sdxl-turbo z-image-turbo, or "
            "'lines={backend: compositor, artist: openmoji-black}'"
        )
    if unseen is not None:
        config = _loaded(recipe, [*shared, *_painter(f"unseen={unseen}")[1]], "--unseen")
        shared.append(f"images.heldout_painter={_as_json(config)}")
    variants = dict(_variants(named, guidance))
    if inspect_recipe(recipe, shared).images.heldout_painter is not None and len(named) > 1:
        together = [_loaded(recipe, [*shared, *values], name) for name, values in named.items()]
        variants[TOGETHER] = [f"text_to_image=[{', '.join(map(_as_json, together))}]"]
    asked: dict[str, Any] = {
        "recipe": recipe,
        "about": "What each painter's pictures teach about pictures of painters that a model never saw.",
        "overrides": shared,
        "variants": variants,
        "judges": [name for name, _ in _variants(named, (guidance or "").partition(",")[0] or None)],
        "seeds": 3,
        "equal": "samples",
        "baselines": ("untrained",),
    }
    return make_sweep("audition", asked | {key: value for key, value in options.items() if value is not None})


def _painter(text: str) -> tuple[str, list[str]]:
    """The name of a painter, and what it changes in a recipe."""
    name, equals, value = text.partition("=")
    said = parse_yaml(value if equals else name, text)
    if isinstance(said, str):
        said = {"backend": "diffusers", "preset": said}
    if not isinstance(said, dict) or not said:
        raise SynthClipError(f"{text}: a painter is a preset, or NAME={{key: value, …}}")
    if "backend" in said:
        return name, [f"text_to_image={json.dumps(said)}"]
    return name, [f"text_to_image.{key}={json.dumps(value)}" for key, value in said.items()]


def _variants(named: Mapping[str, list[str]], guidance: str | None) -> Iterator[tuple[str, list[str]]]:
    for name, values in named.items():
        if guidance is None:
            yield name, values
        else:
            for value in split_values(guidance):
                yield f"{name} guidance={value}", [*values, f"text_to_image.guidance={value}"]


def _loaded(recipe: str, overrides: Sequence[str], label: str) -> BackendConfig:
    try:
        return inspect_recipe(recipe, overrides).text_to_image
    except SynthClipError as error:
        raise SynthClipError("\n".join(f"{label}: {line}" for line in str(error).splitlines())) from None


def _as_json(config: BackendConfig) -> str:
    return json.dumps(config.model_dump(mode="json"))


@dataclass(frozen=True)
class Rank:
    """What is known of a painter after an audition."""

    variant: str
    figures: Mapping[str, Finding]
    """Zero-shot top-1 by data set, what there is: `schema.HELDOUT_PAINTER`, `OTHERS`, `OWN`, public ones."""
    variety: float | None
    """How much the images of one caption differ: see `variety`."""
    device_hours: float | None


def ranking(swept: Swept, found: Found) -> list[Rank]:
    """The painters, and the baselines, the best first: by the pictures of the painter that trains nobody
    where there is one, else by the other painters' pictures."""
    base = swept.sweep.base_name
    first = {one.variant: swept.path(one) for one in reversed(swept.runs)}
    ranks = []
    for variant in dict.fromkeys(one.variant for one in found.findings):
        own = HELDOUT if variant == base else f"{HELDOUT} of {variant}"
        figures: dict[str, Finding] = {}
        for one in found.findings:
            if (one.variant, one.task, one.metric) == (variant, "zero_shot", "top1"):
                name = OWN if one.dataset == own else one.dataset
                if name != HELDOUT and " of " not in name:
                    figures[name] = one
        hours = next((one.device_hours for one in found.findings if one.variant == variant), None)
        ranks.append(Rank(variant, figures, variety(first[variant]) if variant in first else None, hours))
    unseen = any(schema.HELDOUT_PAINTER in one.figures for one in ranks)
    by = schema.HELDOUT_PAINTER if unseen else OTHERS
    return sorted(ranks, key=lambda one: -one.figures[by].value if by in one.figures else 0.0)


def variety(run: Path) -> float | None:
    """How much the images of one caption differ: the share of the bits of their perceptual hashes that two of
    them do not have in common, on average. None where no caption has two images."""
    sidecars = schema.split_tables(run / "images", schema.SPLITS[0])
    hashes: dict[int, list[int]] = {}
    for row in itertools.islice(samples.images(sidecars, ["caption_id"]), _IMAGES):
        hashes.setdefault(row["caption_id"], []).append(int(perceptual_hash(decode(row["jpeg"]))))
    pairs = (pair for own in hashes.values() for pair in itertools.combinations(own, 2))
    differ = [(one ^ other).bit_count() / 64 for one, other in pairs]
    return float(np.mean(differ)) if differ else None


def ranking_rows(ranks: Sequence[Rank], price: float | None = None) -> tuple[list[str], list[list[str]]]:
    """(columns, a row of texts for each painter)."""
    sets = [schema.HELDOUT_PAINTER, OTHERS, OWN]
    sets += sorted({name for one in ranks for name in one.figures} - set(sets))
    sets = [name for name in sets if any(name in one.figures for one in ranks)]
    titles = ["unseen painter" if name == schema.HELDOUT_PAINTER else name for name in sets]
    columns = ["painter", *(text for title in titles for text in (title, "95 %")), "variety", "device-hours"]
    rows = []
    for one in ranks:
        row = [one.variant]
        for name in sets:
            figure = one.figures.get(name)
            row += (
                ["", ""]
                if figure is None
                else [
                    f"{100 * figure.value:.1f}",
                    span(figure.ci95_low, figure.ci95_high),
                ]
            )
        row += ["" if one.variety is None else f"{one.variety:.2f}"]
        row += ["" if one.device_hours is None else f"{one.device_hours:.3f}"]
        if price is not None:
            row += ["" if one.device_hours is None else f"{one.device_hours * price:,.2f}"]
        rows.append(row)
    return [*columns, *([] if price is None else ["cost"])], rows


def ranking_table(ranks: Sequence[Rank], price: float | None = None) -> Table:
    """For the terminal."""
    columns, rows = ranking_rows(ranks, price)
    table = Table(box=None, pad_edge=False)
    for at, column in enumerate(columns):
        table.add_column(column, justify="right" if at else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table
