"""The recipe: one YAML file that describes a whole run, typed and checked."""

import difflib
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from synthclip.errors import SynthClipError
from synthclip.recipe.backends import (
    TRUST,
    LLMConfig,
    TextToImageConfig,
    config_class,
    what_needs_trust,
)
from synthclip.recipe.document import BACKEND_KINDS, apply_override, names_backend, parse_yaml
from synthclip.recipe.engine import EngineConfig
from synthclip.recipe.imagegen import ImagesConfig
from synthclip.recipe.section import Section, did_you_mean, dotted_keys, nearest, sections_in
from synthclip.recipe.textgen import BalanceConfig, CaptionsConfig, ConceptsConfig, MatchConfig
from synthclip.recipe.training import EvaluationConfig, ModelConfig, TrainingConfig, check_resolutions

RECIPE_FILE = "recipe.yaml"
"""The resolved recipe's file in a run directory."""

_MAX_RECIPE_BYTES = 4 * 2**20


class Recipe(Section):
    """All that decides a run. Everything but `engine` and the fields marked as runtime decides its result."""

    name: str = Field(max_length=100, pattern=r"^\w[\w .+-]*$")
    """A run directory holds one recipe, known by this name. It is a folder's name too."""
    seed: int = 0
    """Every random draw follows from it: captions, images, order and weights."""
    concepts: ConceptsConfig = ConceptsConfig()
    """Where the concepts come from."""
    llm: LLMConfig
    """The language model that writes captions: its `backend`, and the keys of that backend."""
    captions: CaptionsConfig
    """How captions are written, and which are refused."""
    match: MatchConfig = MatchConfig()
    """How concepts are found in captions."""
    balance: BalanceConfig = BalanceConfig()
    """Which captions are selected."""
    text_to_image: TextToImageConfig
    """The model that paints: its `backend`, and the keys of that backend; or a list of several, each with a
    `weight` (1 unless given), of which every image is painted by one."""
    images: ImagesConfig = ImagesConfig()
    """How many images, how they are stored, and which are refused."""
    model: ModelConfig = ModelConfig()
    """The architecture of the CLIP that is trained."""
    training: TrainingConfig = TrainingConfig()
    """How it is trained; `training: paper` stands for the defaults."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """How held-out data is evaluated after the training."""
    engine: EngineConfig = EngineConfig()
    """Where the work runs: this machine, Ray or SLURM."""

    @model_validator(mode="after")
    def _is_consistent(self) -> "Recipe":
        check_resolutions(self.model, self.training)
        return self

    @property
    def training_seed(self) -> int:
        return self.seed if self.training.seed is None else self.training.seed

    @property
    def heldout_seed(self) -> int:
        return self.seed if self.balance.heldout_seed is None else self.balance.heldout_seed

    def section_results(self, section: str) -> Any:
        """The values of a section that decide a result, as plain JSON types."""
        value = getattr(self, section)
        return value.results() if isinstance(value, Section) else value

    def to_yaml(self) -> str:
        """The resolved recipe, every value written out; it loads again to an equal recipe."""
        plain = self.model_dump(mode="json")
        return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=100)


def bundled() -> list[str]:
    """The names of the recipes that come with the package."""
    files = resources.files("synthclip.recipe") / "presets"
    return sorted(Path(entry.name).stem for entry in files.iterdir() if entry.name.endswith(".yaml"))


def load_recipe(source: str | Path, overrides: Sequence[str] = (), *, trust: bool = False) -> Recipe:
    """Read a recipe: a bundled name, a YAML file, or a run directory, then apply `key=value` overrides.

    A dotted key reaches into sections and, by number, into lists; the value is read as YAML. Another
    `backend` starts its section anew: the keys of the backend before it are dropped.

    A recipe or run of a stranger runs no code: what would, such as a backend by its dotted path, is refused
    unless an override names it or `trust` is given (docs/promises.md).
    Raises SynthClipError with a line for each problem, which names the recipe, the key and the remedy.
    """
    label, raw = _raw(source, overrides)
    if not trust:
        typed = {override.partition("=")[0].strip() for override in overrides}
        refused = [
            f"{label}: {key}: {why}: {TRUST}"
            for key, why in what_needs_trust(raw)
            if not typed & {key, key.rpartition(".")[0]}
        ]
        if refused:
            raise SynthClipError("\n".join(refused))
    return _validated(label, raw, trust=True)


def inspect_recipe(source: str | Path, overrides: Sequence[str] = (), *, trust: bool = False) -> Recipe:
    """As `load_recipe`, to look at: without `trust` a backend by its dotted path stays the values of the
    file (`CustomCode`), and none of its code is imported, so that the recipe cannot be run."""
    label, raw = _raw(source, overrides)
    return _validated(label, raw, trust=trust)


def _raw(source: str | Path, overrides: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """A label for messages, and the recipe as it is written, overrides applied."""
    label, text, default_name = _read(source)
    raw = parse_yaml(text, label)
    if not isinstance(raw, dict):
        raise SynthClipError(f"{label}: not a recipe: expected keys such as 'concepts' and 'llm' at the top")
    raw.setdefault("name", default_name)
    for override in sorted(overrides, key=lambda text: not names_backend(text)):
        apply_override(raw, override)
    return label, raw


def _validated(label: str, raw: dict[str, Any], *, trust: bool) -> Recipe:
    try:
        return Recipe.model_validate(raw, context={"trust": trust})
    except ValidationError as error:
        raise SynthClipError("\n".join(f"{label}: {line}" for line in _problems(error, raw))) from None


def load_saved_recipe(directory: Path, *, trust: bool = False) -> Recipe:
    """The recipe of a run directory, to look at. Raises SynthClipError where that is no run directory."""
    if not directory.is_dir():
        raise SynthClipError(f"{directory}: no such run directory")
    return inspect_recipe(directory, trust=trust)


def saved_recipe_name(directory: Path) -> str | None:
    """The name of a run directory's recipe, None where the directory holds none.

    Reads no more than the name, so that a run of an older recipe format is still recognised.
    """
    path = directory / RECIPE_FILE
    if not path.is_file():
        return None
    try:
        raw = parse_yaml(path.read_text(encoding="utf-8"), str(path))
    except (SynthClipError, UnicodeDecodeError):
        raw = None
    if not isinstance(raw, dict) or "name" not in raw:
        raise SynthClipError(f"{path}: damaged: restore it, or choose another --out")
    return str(raw["name"])


def _read(source: str | Path) -> tuple[str, str, str]:
    """A label for messages, the YAML, and the name that a recipe without one gets."""
    path = Path(source)
    try:
        if path.is_dir():
            if not (path / RECIPE_FILE).is_file():
                raise SynthClipError(f"{path}: not a run directory: it holds no {RECIPE_FILE}")
            path = path / RECIPE_FILE
        if path.is_file():
            if path.stat().st_size > _MAX_RECIPE_BYTES:
                raise SynthClipError(f"{path}: too large for a recipe")
            return str(path), path.read_text(encoding="utf-8-sig"), path.stem
    except OSError as error:
        raise SynthClipError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise SynthClipError(f"{path}: not UTF-8 (byte {error.start}): convert the file") from None
    if path.exists():
        raise SynthClipError(f"{path}: neither a file nor a folder: expected a recipe or a run directory")
    names = bundled()
    if str(source) in names:
        packaged = resources.files("synthclip.recipe") / "presets" / f"{source}.yaml"
        return f"recipe {source}", packaged.read_text(encoding="utf-8"), str(source)
    raise SynthClipError(f"{source}: no such recipe or file{nearest(str(source), names)}")


_MESSAGES = {
    "missing": "is required",
    "bool_parsing": "must be true or false",
    "bool_type": "must be true or false",
    "finite_number": "must be a finite number",
    "float_parsing": "must be a number",
    "float_type": "must be a number",
    "greater_than": "must be greater than {gt:g}",
    "greater_than_equal": "must be at least {ge:g}",
    "int_from_float": "must be an integer",
    "int_parsing": "must be an integer",
    "int_type": "must be an integer",
    "invalid_key": "has a key that is no text",
    "less_than": "must be less than {lt:g}",
    "less_than_equal": "must be at most {le:g}",
    "literal_error": "must be {expected}",
    "string_pattern_mismatch": "must begin with a letter or digit, and hold only these, spaces and . _ + -",
    "string_too_long": "must have at most {max_length} characters",
    "string_too_short": "must not be empty",
    "string_type": "must be text",
    "too_long": "must have at most {max_length} items",
    "too_short": "must have {min_length} or more items",
    **dict.fromkeys(("list_type", "tuple_type"), "must be a list"),
    **dict.fromkeys(("dict_type", "model_type", "model_attributes_type"), "must be a section of keys"),
}
"""What is said of each kind of problem, with the names of its context."""


def _problems(error: ValidationError, raw: dict[str, Any]) -> list[str]:
    """Every problem as one line: dotted key, what is wrong, the value."""
    found: dict[str, list[ErrorDetails]] = {}
    details = error.errors(include_url=False)
    for one in details:
        # A list with a bad item is reported a second time, as too short without it.
        if not any(other["loc"][: len(one["loc"])] == one["loc"] for other in details if other is not one):
            found.setdefault(".".join(_path(one, raw)), []).append(one)
    return [_line(key, alternatives, raw) for key, alternatives in found.items()]


def _path(problem: ErrorDetails, raw: Any) -> Iterator[str]:
    """The keys and indices of a problem, without pydantic's names for the members of a union."""
    for part in problem["loc"]:
        if isinstance(raw, dict) and (part in raw or problem["type"] == "missing"):
            yield str(part)
            raw = raw.get(part)
        elif isinstance(raw, list) and isinstance(part, int):
            yield str(part)
            raw = raw[part] if part < len(raw) else None


def _line(key: str, alternatives: list[ErrorDetails], raw: dict[str, Any]) -> str:
    kind, value = alternatives[0]["type"], alternatives[0]["input"]
    if kind == "extra_forbidden":
        return _unknown_key(key, raw)
    messages: list[str] = []
    for one in alternatives:
        context = one.get("ctx", {})
        template = _MESSAGES.get(one["type"], one["msg"].removeprefix("Input "))
        message = str(context["error"]) if one["type"] == "value_error" else template.format(**context)
        messages.append(message if not messages else message.removeprefix("must be "))
    said = " or ".join(dict.fromkeys(messages))
    if not key or kind == "missing" or not isinstance(value, str | int | float | bool):
        return f"{key}: {said}" if key else said
    shown = repr(value)
    return f"{key}: {said}, not {shown if len(shown) <= 60 else shown[:57] + '…'}"


def _unknown_key(key: str, raw: dict[str, Any]) -> str:
    """With the nearest key of that section or, where one is nearer, of another."""
    *above, wrong = key.split(".")
    known = list(_section_at(above, raw).model_fields)
    near = did_you_mean(wrong, known)
    by_leaf = {dotted.rsplit(".", 1)[-1]: dotted for dotted in dotted_keys(Recipe)}
    if elsewhere := difflib.get_close_matches(wrong, list(by_leaf), n=1, cutoff=0.95 if near else 0.7):
        near = f"; did you mean {by_leaf[elsewhere[0]]!r}?"
    where = f"{'.'.join(above)}: " if above else ""
    return f"{where}unknown key {wrong!r}{near or nearest(wrong, known)}"


def _section_at(path: Sequence[str], raw: dict[str, Any]) -> type[Section]:
    found: type[Section] = Recipe
    for part in path:
        if part in BACKEND_KINDS and found is Recipe:
            found = config_class(BACKEND_KINDS[part], str(raw[part]["backend"]))
        elif part == "heldout_painter":
            found = config_class("t2i", str(raw["images"][part]["backend"]))
        elif part == "llm":  # of images.vision
            found = config_class("llm", str(raw["images"]["vision"][part]["backend"]))
        elif part in found.model_fields:
            found = next(sections_in(found.model_fields[part].annotation), found)
    return found
