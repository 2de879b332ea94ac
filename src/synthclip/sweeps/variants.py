"""What a sweep asks: named variants of one recipe, from a grid on the command line or from a file."""

import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from synthclip.errors import SynthClipError
from synthclip.recipe import Recipe, load_recipe
from synthclip.recipe.document import parse_yaml
from synthclip.recipe.section import Section, nearest

Equal = Literal["epochs", "samples", "cost"]
Baseline = Literal["untrained", "pixels", "random"]

_SEEDS = ("seed", "training.seed", "balance.heldout_seed")
"""The keys that a sweep sets itself."""
_NAME = re.compile(r"\w[\w .,=+-]{0,79}")


class Sweep(Section):
    """A sweep: the keys of its file, and what the Python call takes.

    >>> Sweep(recipe="demo", variants={"t=8": {"balance.t": 8}, "t=32": {"balance.t": 32}}, seeds=3)
    """

    recipe: str
    """A bundled name, a YAML file or a run directory."""
    about: str = ""
    """What the sweep finds out, for its page."""
    overrides: tuple[str, ...] = ()
    """Of all variants; like each variant's, a mapping of dotted keys to values, or texts `key=value`."""
    variants: dict[str, tuple[str, ...]] = Field(min_length=1)
    base: str | None = None
    """The variant that the others are compared with, and whose held-out set judges all; null: the first."""
    seeds: int = Field(1, ge=1)
    """Trainings of each variant, with `training.seed` counted up."""
    data_seeds: int = Field(1, ge=1)
    """Data sets of each variant, with the recipe's `seed` counted up; each is trained on with all `seeds`."""
    equal: Equal = "epochs"
    """What the variants have in common: `epochs` are those of their recipes, `samples` the base's samples
    seen, `cost` the base's device-hours as `synthclip plan` estimates captions, images and training. The last
    two change a variant's epochs, and with them its warm-up and its evaluations."""
    baselines: tuple[Baseline, ...] = ()
    """`untrained`: the base's model before its first step. `pixels`: a linear probe of 8 x 8 pixels, on data
    sets with a training split. `random`: the base with as many captions drawn at random, not balanced."""
    judges: tuple[str, ...] = ()
    """Further variants whose held-out sets judge every model, each as a data set `heldout of VARIANT`."""
    suite: tuple[str, ...] = ()
    """Public data sets that judge every model, as `synthclip eval --suite` names them."""
    data: str | None = None
    """The folder of these data sets."""

    @field_validator("overrides", mode="before")
    @classmethod
    def _as_texts(cls, value: Any) -> Any:
        return _texts(value)

    @field_validator("variants", mode="before")
    @classmethod
    def _each_as_texts(cls, value: Any) -> Any:
        named = isinstance(value, Mapping)
        return {str(name): _texts(overrides or ()) for name, overrides in value.items()} if named else value

    @field_validator("suite", mode="before")
    @classmethod
    def _with_commas(cls, value: Any) -> Any:
        return [name.strip() for name in value.split(",")] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _is_consistent(self) -> "Sweep":
        for name in self.variants:
            if not _NAME.fullmatch(name):
                raise ValueError(
                    f"variant {name!r}: a name has up to 80 letters, digits, spaces and . , _ = + -, and "
                    "begins with a letter or digit"
                )
        for name in (*([] if self.base is None else [self.base]), *self.judges):
            if name not in self.variants:
                raise ValueError(f"no variant {name!r}{nearest(name, list(self.variants))}")
        if "random" in self.baselines and "random" in self.variants:
            raise ValueError("variant 'random': the baseline has this name: choose another")
        if (self.data is None) != (not self.suite):
            raise ValueError("suite and data go together: data sets, and the folder that holds them")
        if "pixels" in self.baselines and not self.suite:
            raise ValueError("the baseline pixels needs suite and data: data sets with a training split")
        return self

    @property
    def base_name(self) -> str:
        return self.base or next(iter(self.variants))

    def all_variants(self) -> dict[str, tuple[str, ...]]:
        """The overrides of each variant, the base first, those of baselines that are variants last."""
        base = self.base_name
        found = {base: self.variants[base], **self.variants}
        if "random" in self.baselines:
            found["random"] = (*self.variants[base], "balance.sample=random")
        return {name: (*self.overrides, *overrides) for name, overrides in found.items()}

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=100)


def _texts(overrides: Any) -> Any:
    if not isinstance(overrides, Mapping):
        return [overrides] if isinstance(overrides, str) else overrides
    return [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in overrides.items()]


@dataclass(frozen=True)
class Run:
    """One run of a sweep: a variant with its seeds, counted from 0."""

    variant: str
    data_seed: int
    seed: int
    recipe: Recipe

    @property
    def name(self) -> str:
        """The name of its folder."""
        data = f".d{self.data_seed}" if self.data_seed else ""
        return f"{self.variant}{data}.s{self.seed}"

    @property
    def replicate(self) -> tuple[int, int]:
        return self.data_seed, self.seed


def bundled_sweeps() -> list[str]:
    """The names of the sweeps that come with the package."""
    files = resources.files("synthclip.sweeps") / "bundled"
    return sorted(Path(entry.name).stem for entry in files.iterdir() if entry.name.endswith(".yaml"))


def read_sweep(source: str, arguments: Sequence[str] = (), **options: Any) -> Sweep:
    """A sweep by name, by its file, or of a recipe with a grid; `options` that are not None replace its keys.

    Each argument is `key=value`, which all variants share, or `key=value,value,…`, an axis of the grid: the
    variants are all combinations, the first values the base. Raises SynthClipError where there is none.
    """
    path = Path(source)
    label = source if path.is_file() else f"sweep {source}"
    if source in bundled_sweeps() and not path.is_file():
        packaged = resources.files("synthclip.sweeps") / "bundled" / f"{source}.yaml"
        raw = parse_yaml(packaged.read_text(encoding="utf-8"), label)
    else:
        raw = parse_yaml(path.read_text(encoding="utf-8-sig"), source) if path.is_file() else None
    shared, variants = grid(arguments)
    if isinstance(raw, dict) and "variants" in raw:
        if variants and len(variants) > 1:
            raise SynthClipError(f"{label}: names its variants: give values that all share, not a grid")
        raw["overrides"] = [*(_texts(raw.get("overrides")) or ()), *shared]
    else:
        if len(variants) < 2:
            raise SynthClipError(
                f"{source}: nothing to compare: give a grid such as 'balance.t=8,32', a file with variants, "
                f"or a bundled sweep ({', '.join(bundled_sweeps())})"
            )
        raw = {"recipe": source, "overrides": shared, "variants": variants}
    return make_sweep(label, raw | {key: value for key, value in options.items() if value is not None})


def make_sweep(label: str, raw: Mapping[str, Any]) -> Sweep:
    """Raises SynthClipError with a line for each problem."""
    try:
        return Sweep.model_validate(raw)
    except ValidationError as error:
        lines = []
        for one in error.errors(include_url=False):
            where = ".".join(map(str, one["loc"]))
            message = one["msg"].removeprefix("Value error, ")
            if one["type"] == "extra_forbidden":
                message = f"unknown key{nearest(where, list(Sweep.model_fields))}"
            lines.append(f"{label}: {where}: {message}" if where else f"{label}: {message}")
        raise SynthClipError("\n".join(lines)) from None


def grid(arguments: Sequence[str]) -> tuple[list[str], dict[str, tuple[str, ...]]]:
    """What all variants share, and the variants by name: every combination of the axes' values."""
    shared: list[str] = []
    axes: dict[str, list[str]] = {}
    for argument in arguments:
        key, equals, text = argument.partition("=")
        values = split_values(text)
        if not equals or len(values) < 2:
            shared.append(argument)
            continue
        if key in axes:
            raise SynthClipError(f"{argument!r}: {key} is an axis already: give all its values at once")
        if "" in values:
            raise SynthClipError(f"{argument!r}: an empty value between commas")
        axes[key] = values
    leaves = [key.rpartition(".")[2] for key in axes]
    short = dict(zip(axes, leaves, strict=True)) if len(set(leaves)) == len(leaves) else {k: k for k in axes}
    variants: dict[str, tuple[str, ...]] = {}
    for combination in itertools.product(*axes.values()):
        chosen = dict(zip(axes, combination, strict=True))
        name = ",".join(f"{short[key]}={_plain(value)}" for key, value in chosen.items())
        if name in variants:
            raise SynthClipError(f"two variants would be named {name!r}: give them names in a file")
        variants[name] = tuple(f"{key}={value}" for key, value in chosen.items())
    return shared, variants if axes else {}


def _plain(value: str) -> str:
    return re.sub(r"[^\w.+-]+", "-", value).strip("-") or "empty"


def split_values(text: str) -> list[str]:
    """The values between the commas that stand outside brackets and quotes, as YAML reads them."""
    values, start, depth, quote, before, escaped = [], 0, 0, "", ",", False
    for at, char in enumerate(text):
        if quote:
            quote = "" if char == quote and not escaped else quote
            escaped = char == "\\" and quote == '"' and not escaped
        elif char in "'\"" and before in ",[{:":  # elsewhere it is an apostrophe
            quote = char
        elif char == "," and not depth:
            values.append(text[start:at].strip())
            start = at + 1
        else:
            depth += (char in "[{") - (char in "]}")
        before = before if char.isspace() else char
    return [*values, text[start:].strip()]


def runs_of(sweep: Sweep, *, trust: bool = False) -> list[Run]:
    """Every run, those of the first seeds first, the base before the others.

    Raises SynthClipError with a line for each variant that no recipe comes of, that equals another, or that
    would train on what judges all.
    """
    recipes: dict[str, Recipe] = {}
    problems: list[str] = []
    for name, overrides in sweep.all_variants().items():
        keys = {override.partition("=")[0].strip() for override in overrides}
        if taken := sorted(keys.intersection(_SEEDS)):
            problems.append(f"variant {name!r}: {taken[0]} is set by seeds and data_seeds")
            continue
        try:
            recipes[name] = load_recipe(sweep.recipe, overrides, trust=trust)
        except SynthClipError as error:
            problems += [f"variant {name!r}: {line}" for line in str(error).splitlines()]
    problems += _equal(recipes)
    base = recipes.get(sweep.base_name)
    if base is not None:
        problems += [
            f"variant {name!r}: balance.heldout={recipe.balance.heldout} keeps less from training than the "
            f"base's {base.balance.heldout}: it would train on what judges it"
            for name, recipe in recipes.items()
            if recipe.balance.heldout < base.balance.heldout
        ]
    if problems:
        raise SynthClipError("\n".join(problems))
    return [
        Run(name, data_seed, seed, _seeded(sweep, name, recipes[name], data_seed, seed, trust=trust))
        for data_seed in range(sweep.data_seeds)
        for seed in range(sweep.seeds)
        for name in recipes
    ]


def _equal(recipes: Mapping[str, Recipe]) -> Iterator[str]:
    sections = [name for name in Recipe.model_fields if name != "engine"]
    seen: dict[str, str] = {}
    for name, recipe in recipes.items():
        values = json.dumps(
            {section: recipe.section_results(section) for section in sections}, sort_keys=True
        )
        if values in seen:
            yield f"variants {seen[values]!r} and {name!r} are equal: leave one out"
        seen.setdefault(values, name)


def _seeded(sweep: Sweep, name: str, recipe: Recipe, data_seed: int, seed: int, *, trust: bool) -> Recipe:
    """The first run of a variant has the recipe's own seeds. Other data keep the draw of what is held out."""
    own = [f"training.seed={recipe.training_seed + seed}"] if seed or data_seed else []
    if data_seed:
        own += [f"seed={recipe.seed + data_seed}", f"balance.heldout_seed={recipe.heldout_seed}"]
    return load_recipe(sweep.recipe, [*sweep.all_variants()[name], *own], trust=trust)
