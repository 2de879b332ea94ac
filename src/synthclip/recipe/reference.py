"""What each value of a recipe means: for `synthclip show --explain`, for editors and for docs/recipe.md.

All of it is read from the sections' fields and the docstrings below them.
"""

import re
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import yaml
from pydantic.fields import FieldInfo

from synthclip.errors import SynthClipError
from synthclip.recipe import Recipe, inspect_recipe
from synthclip.recipe.backends import BackendConfig, CustomCode, Kind, Painters, backend_names, config_class
from synthclip.recipe.document import BACKEND_KINDS
from synthclip.recipe.section import Section, meaning, nearest, sections_in
from synthclip.recipe.variety import names_of

_BOUNDS = {
    "minimum": "at least",
    "exclusiveMinimum": "above",
    "exclusiveMaximum": "below",
    "maximum": "at most",
}
_KINDS = {"integer": "integer", "number": "number", "string": "text", "boolean": "true or false"}
_LISTS = {"integer": "integers", "number": "numbers", "text": "texts", "section": "sections"}


@dataclass(frozen=True)
class Entry:
    """One key of a recipe."""

    key: str
    """Dotted, as an override names it; N stands for the number of an entry of a list."""
    kind: str
    """What it may be, such as `integer, at least 2`."""
    default: str
    """In YAML; `required` where there is none."""
    meaning: str
    runtime: bool = False
    """Whether it leaves the result as it is."""
    backend: str = ""
    """The backend that has this key, where each has its own."""
    value: str | None = None
    """In a given recipe, in YAML."""

    @property
    def holds_others(self) -> bool:
        """Whether it is a section, or a list of sections, whose keys follow."""
        return "section" in self.kind

    @property
    def changed(self) -> bool:
        """Whether the given recipe has another value than the default."""
        return self.value not in (None, self.default) and not self.holds_others


def entries(at: Section | type[Section] = Recipe, prefix: str = "") -> Iterator[Entry]:
    """Every key below a section, in order; of a section that holds values, with these."""
    section, given = (at, False) if isinstance(at, type) else (type(at), True)
    schema = section.model_json_schema()
    for name, field in section.model_fields.items():
        key, extra = f"{prefix}{name}", field.json_schema_extra
        value = getattr(at, name) if given else None
        entry = Entry(
            key,
            _kind(schema["properties"].get(name, {}), schema.get("$defs", {})),
            "required" if field.is_required() else _yaml(field.get_default(call_default_factory=True)),
            meaning(section, name),
            runtime=isinstance(extra, dict) and bool(extra.get("runtime")),
            value=_yaml(value) if given else None,
        )
        yield entry
        yield from _inside(key, value) if given else _possible(entry, field)
    if isinstance(at, CustomCode):
        for name, value in (at.model_extra or {}).items():
            yield Entry(
                f"{prefix}{name}", "any", "unknown", "A key of code that is not imported.", value=_yaml(value)
            )


def _inside(key: str, value: Any) -> Iterator[Entry]:
    if isinstance(value, Painters):
        for at, (painter, weight) in enumerate(zip(value.painters, value.weights, strict=True)):
            yield from entries(painter, f"{key}.{at}.")
            shown = meaning(Painters, "weights")
            yield Entry(f"{key}.{at}.weight", "number, above 0", "1.0", shown, value=_yaml(weight))
    elif isinstance(value, Section):
        yield from entries(value, f"{key}.")
    elif isinstance(value, tuple):
        for at, item in enumerate(value):
            yield from entries(item, f"{key}.{at}.") if isinstance(item, Section) else ()


def _possible(entry: Entry, field: FieldInfo) -> Iterator[Entry]:
    key, section = entry.key, next(sections_in(field.annotation), None)
    if key in BACKEND_KINDS:
        for name in backend_names(BACKEND_KINDS[key]):
            for one in entries(config_class(BACKEND_KINDS[key], name), f"{key}."):
                yield replace(one, backend=name)
    elif section is not None and not issubclass(section, BackendConfig):
        yield from entries(section, f"{key}.N." if "list" in entry.kind else f"{key}.")


def explained(words: Sequence[str], *, trust: bool = False, width: int = 80) -> str:
    """The text of `synthclip show --explain [RECIPE] [KEY=VALUE]... [KEY]...`.

    Raises SynthClipError for a recipe that cannot be read, and a key that there is none of.
    """
    asked = [word for word in words if "=" not in word]
    overrides = [word for word in words if "=" in word]
    found = list(entries())
    known = [entry.key for entry in found]
    if asked and re.sub(r"\.\d+(?=\.|$)", ".N", asked[0]) not in known:
        found = list(entries(inspect_recipe(asked.pop(0), overrides, trust=trust)))
        known = [entry.key for entry in found]
    elif overrides:
        raise SynthClipError(f"{overrides[0]}: an override needs a recipe before it")
    else:
        asked = [re.sub(r"\.\d+(?=\.|$)", ".N", key) for key in asked]
    for key in asked:
        if key not in known:
            raise SynthClipError(f"unknown key {key!r}{nearest(key, known)}")
    shown = [entry for entry in found if not asked or _below(entry.key, asked)]
    lines = [line for entry in shown for line in _lines(entry, width)]
    if any(entry.changed for entry in shown):
        lines.append("* is not the default")
    return "\n".join(lines)


def _below(key: str, asked: Sequence[str]) -> bool:
    return any(key == above or key.startswith(f"{above}.") for above in asked)


def _lines(entry: Entry, width: int) -> Iterator[str]:
    if entry.holds_others:
        yield f"\n{entry.key}:"
        about = entry.meaning
    else:
        mark = "* " if entry.changed else ""
        yield f"{mark}{entry.key}: {entry.default if entry.value is None else entry.value}"
        default = (
            f", {'' if entry.default == 'required' else 'default '}{entry.default}" if entry.changed else ""
        )
        of = f", backend {entry.backend}" if entry.backend else ""
        about = f"{entry.meaning} ({entry.kind}{default}{of})"
    yield from textwrap.wrap(about, width, initial_indent="    ", subsequent_indent="    ")


def json_schema() -> dict[str, Any]:
    """A JSON schema of recipe files, for editors: every key of this package's backends, with its meaning."""
    schema = Recipe.model_json_schema()
    definitions = schema["$defs"]
    of: dict[Kind, list[dict[str, Any]]] = {}
    for kind in BACKEND_KINDS.values():
        foreign = {"properties": {"backend": {"type": "string", "pattern": "[.]"}}, "required": ["backend"]}
        of[kind] = [{"type": "object", **foreign}]
        for name in backend_names(kind):
            made = _backend_schema(kind, name)
            definitions |= made.pop("$defs", {}) | {f"{kind}-{name}": made}
            of[kind].append({"$ref": f"#/$defs/{kind}-{name}"})
    painter = {"anyOf": [*of["t2i"], {"type": "array", "items": {"anyOf": of["t2i"]}, "minItems": 1}]}
    for key, choices in (("llm", {"anyOf": of["llm"]}), ("text_to_image", painter)):
        schema["properties"][key].pop("$ref")
        schema["properties"][key] |= choices
    heldout = definitions["ImagesConfig"]["properties"]["heldout_painter"]
    heldout["anyOf"] = [*painter["anyOf"], {"type": "null"}]
    vision = definitions["VisionModelConfig"]["properties"]["llm"]
    vision.pop("$ref")
    vision["anyOf"] = of["llm"]
    training = schema["properties"]["training"]
    training |= {"anyOf": [{"$ref": training.pop("$ref")}, {"const": "paper"}]}
    captions = definitions["CaptionsConfig"]["properties"]
    inside: dict[Literal["templates", "axes"], str] = {"templates": "items", "axes": "additionalProperties"}
    for what, inner in inside.items():
        captions[what][inner] = {"anyOf": [captions[what][inner], {"enum": sorted(names_of(what))}]}
    suite = definitions["InTrainingEvalConfig"]["properties"]["suite"]
    suite |= {"anyOf": [{"type": "array", "items": suite.pop("items")}, {"type": "string"}]}
    for key in ("type", "minItems"):
        suite.pop(key)
    schema["required"].remove("name")  # without one, a recipe is named by its file
    definitions.pop("BackendConfig")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "SynthCLIP recipe"}


def _backend_schema(kind: Kind, name: str) -> dict[str, Any]:
    config = config_class(kind, name)
    schema = config.model_json_schema()
    schema["properties"]["backend"] = {"const": name}
    if "preset" in schema["properties"]:
        schema["required"] = ["backend"]
    if kind == "t2i":
        weight = {"type": "number", "exclusiveMinimum": 0, "description": meaning(Painters, "weights")}
        schema["properties"]["weight"] = weight
    return {**schema, "title": name}


def _kind(schema: dict[str, Any], definitions: dict[str, Any]) -> str:
    """A JSON schema in a few words."""
    if "$ref" in schema:
        return _kind(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_kind(one, definitions) for one in schema["anyOf"]))
    if "enum" in schema or "const" in schema:
        return "one of " + ", ".join(map(str, schema["enum"])) if "enum" in schema else str(schema["const"])
    if schema.get("type") == "array":
        parts = schema.get("prefixItems") or [schema.get("items", {})]
        inner = _kind(parts[0], definitions)
        many = f"{len(parts)} " if "prefixItems" in schema else ""
        return f"list of {many}{_LISTS.get(inner, inner)}"
    if schema.get("type") == "object":
        values = schema.get("additionalProperties")
        return f"mapping of names to {_kind(values, definitions)}" if isinstance(values, dict) else "section"
    bounds = [f"{word} {schema[name]:g}" for name, word in _BOUNDS.items() if name in schema]
    return ", ".join([_KINDS.get(schema.get("type", ""), str(schema.get("type", "any"))), *bounds])


def _yaml(value: Any) -> str:
    """A value on one line of YAML."""
    if isinstance(value, Section):
        return ""
    if isinstance(value, tuple):
        value = [item.results() if isinstance(item, Section) else item for item in value]
    dumped = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**6, sort_keys=False)
    return dumped.removesuffix("...\n").strip()
