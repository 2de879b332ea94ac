"""The recipe: one YAML file that describes a whole run, typed and checked."""

import difflib
import re
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError, model_validator

from synthclip.errors import SynthClipError
from synthclip.recipe.backends import LLMConfig, TextToImageConfig
from synthclip.recipe.engine import EngineConfig
from synthclip.recipe.evaluation import EvaluationConfig
from synthclip.recipe.imagegen import ImagesConfig
from synthclip.recipe.section import Section, nearest
from synthclip.recipe.textgen import BalanceConfig, CaptionsConfig, ConceptsConfig, MatchConfig
from synthclip.recipe.training import ModelConfig, TrainingConfig, check_resolutions

SAVED_AS = "recipe.yaml"
"""The resolved recipe's file in a run directory."""


class Recipe(Section):
    """All that decides a run. Everything but `engine` and the fields marked as runtime decides its result."""

    name: str = Field(min_length=1)
    """A run directory holds one recipe, known by this name."""
    seed: int = 0
    concepts: ConceptsConfig = ConceptsConfig()
    llm: LLMConfig
    captions: CaptionsConfig
    match: MatchConfig = MatchConfig()
    balance: BalanceConfig = BalanceConfig()
    text_to_image: TextToImageConfig
    images: ImagesConfig = ImagesConfig()
    model: ModelConfig = ModelConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    engine: EngineConfig = EngineConfig()

    @model_validator(mode="after")
    def _is_consistent(self) -> "Recipe":
        check_resolutions(self.model, self.training)
        return self

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


def load_recipe(source: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe: a bundled name, a YAML file, or a run directory, then apply `key=value` overrides.

    A dotted key reaches into sections and, by number, into lists; the value is read as YAML.
    Raises SynthClipError with one line that names the recipe, the key and the remedy.
    """
    label, text, default_name = _read(source)
    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise SynthClipError(f"{label}{where}: not YAML: {problem}") from None
    if not isinstance(raw, dict):
        raise SynthClipError(f"{label}: not a recipe: expected keys such as 'concepts' and 'llm' at the top")
    raw.setdefault("name", default_name)
    for override in overrides:
        _override(raw, override)
    try:
        return Recipe.model_validate(raw)
    except ValidationError as error:
        raise SynthClipError(f"{label}: {_first_line(error)}") from None


def load_held(directory: Path) -> Recipe:
    """The recipe that a run directory holds. Raises SynthClipError where that is no run directory."""
    if not directory.is_dir():
        raise SynthClipError(f"{directory}: no such run directory")
    return load_recipe(directory)


def held_name(directory: Path) -> str | None:
    """The name of the recipe that a run directory holds, None where it holds none.

    Reads no more than the name, so that a run of an older recipe format is still recognised.
    """
    path = directory / SAVED_AS
    if not path.is_file():
        return None
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        raw = None
    if not isinstance(raw, dict) or "name" not in raw:
        raise SynthClipError(f"{path}: damaged: restore it, or choose another --out")
    return str(raw["name"])


def _read(source: str | Path) -> tuple[str, str, str]:
    """A label for messages, the YAML, and the name that a recipe without one gets."""
    path = Path(source)
    if path.is_dir():
        if not (path / SAVED_AS).is_file():
            raise SynthClipError(f"{path}: not a run directory: it holds no {SAVED_AS}")
        path = path / SAVED_AS
    if path.is_file():
        try:
            return str(path), path.read_text(encoding="utf-8"), path.stem
        except (OSError, UnicodeDecodeError) as error:
            raise SynthClipError(f"{path}: cannot be read: {error}") from None
    names = bundled()
    if str(source) in names:
        packaged = resources.files("synthclip.recipe") / "presets" / f"{source}.yaml"
        return f"recipe {source}", packaged.read_text(encoding="utf-8"), str(source)
    raise SynthClipError(f"{source}: no such recipe or file{nearest(str(source), names)}")


def _override(raw: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise SynthClipError(f"override {override!r}: expected key=value, such as captions.per_concept=4")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise SynthClipError(f"override {override!r}: the value is not YAML: quote it") from None
    if isinstance(value, str):
        # YAML 1.1 reads neither 1e-4 nor 3_000_000 the way that people mean them.
        for number in (int, float):
            try:
                value = number(value)
                break
            except ValueError:
                continue
    node: Any = raw
    for part in parts[:-1]:
        node = _step(node, part, override)
    last = parts[-1]
    if isinstance(node, list):
        _step(node, last, override)
        node[int(last)] = value
    else:
        node[last] = value


def _step(node: Any, part: str, override: str) -> Any:
    """Into a mapping (made where it is missing) or a list."""
    if isinstance(node, dict):
        if node.get(part) is None:
            node[part] = {}
        inner = node[part]
        if isinstance(inner, dict | list):
            return inner
        raise SynthClipError(f"override {override!r}: {part!r} is a value, not a section")
    if part.isdecimal() and int(part) < len(node):
        return node[int(part)]
    raise SynthClipError(f"override {override!r}: {part!r} is no position in a list of {len(node)}")


def _first_line(error: ValidationError) -> str:
    """The first problem in one line: dotted key, what is wrong, the value."""
    first, *others = error.errors(include_url=False)
    key = ".".join(str(part) for part in first["loc"] if not str(part).startswith("function-"))
    message = first["msg"].removeprefix("Value error, ").removeprefix("Input ")
    # Of the words of Python that pydantic uses, those that a writer of YAML does not know.
    message = message.partition(", unable to parse")[0].partition(" after validation")[0]
    message = message.removeprefix("Tuple ").replace("valid tuple", "list")
    message = re.sub(r"valid dictionary or instance of \w+", "section of keys", message)
    if message.startswith("unknown key "):
        wrong = message.split("'")[1]
        if found := _elsewhere(wrong, cutoff=0.7 if "did you mean" not in message else 0.95):
            message = f"unknown key {wrong!r}; did you mean {found!r}?"
    # A list with a bad item is told of once more, as too short without it.
    count = sum(other["loc"] != first["loc"][: len(other["loc"])] for other in others)
    more = f" (and {count} more)" if count else ""
    value = first.get("input")
    shown = f", not {value!r}" if isinstance(value, str | int | float | bool) and key else ""
    return f"{key + ': ' if key else ''}{message}{shown}{more}"


def _elsewhere(wrong: str, cutoff: float) -> str | None:
    """Where a key of that name really stands, in another section than the one it was looked for in."""
    by_leaf = {dotted.rsplit(".", 1)[-1]: dotted for dotted in _dotted(Recipe)}
    close = difflib.get_close_matches(wrong, list(by_leaf), n=1, cutoff=cutoff)
    return by_leaf[close[0]] if close else None


def _dotted(section: type[Section], prefix: str = "") -> Iterator[str]:
    for name, field in section.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Section) and len(kind.model_fields) > 1:
            yield from _dotted(kind, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"
