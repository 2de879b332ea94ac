"""The base of every typed section of a recipe."""

import ast
import difflib
import inspect
import re
import textwrap
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import pairwise, zip_longest
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema


def runtime(default: Any, **constraints: Any) -> Any:
    """A field that changes how fast or where work is done, never its result: it makes no stage stale."""
    return Field(default, json_schema_extra={"runtime": True}, **constraints)


def later(default: Any, **constraints: Any) -> Any:
    """A field of a newer version: while it has its default it is no part of `results`, so that runs made
    without it stay current."""
    return Field(default, json_schema_extra={"later": True}, **constraints)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean …?` with the nearest known name, nothing where none is near."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


def nearest(name: str, known: list[str]) -> str:
    """As `did_you_mean`; where none is near, all the known names."""
    return did_you_mean(name, known) or (f"; known: {', '.join(sorted(known))}" if known else "")


def differences(old: Any, new: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(dotted key, old value, new value) for every value in which two nested mappings differ.

    Lists are compared position by position, after what both begin and what both end with.
    """
    inside: list[tuple[Any, Any, Any]] | None = None
    if isinstance(old, dict) and isinstance(new, dict):
        inside = [(key, old.get(key), new.get(key)) for key in sorted(old.keys() | new.keys())]
    elif isinstance(old, list) and isinstance(new, list):
        inside = list(_entries(old, new))
    if inside is not None:
        for key, before, after in inside:
            yield from differences(before, after, f"{prefix}.{key}" if prefix else str(key))
    elif old != new:
        yield prefix, old, new


def _entries(old: list[Any], new: list[Any]) -> Iterator[tuple[int, Any, Any]]:
    """(position, old entry, new entry) of what differs in two lists; None stands for no entry."""
    shorter = min(len(old), len(new))
    first = next((at for at in range(shorter) if old[at] != new[at]), shorter)
    last = next((at for at in range(shorter - first) if old[-1 - at] != new[-1 - at]), shorter - first)
    pairs = zip_longest(old[first : len(old) - last], new[first : len(new) - last])
    yield from ((at, before, after) for at, (before, after) in enumerate(pairs, first))


class Section(BaseModel):
    """Frozen and typed; unknown keys are refused."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        validate_default=True,
        allow_inf_nan=False,
    )

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """With the meaning of each field."""
        made = handler(schema)
        for name, value in handler.resolve_ref_schema(made).get("properties", {}).items():
            value.setdefault("description", meaning(cls, name))
        return made

    def results(self) -> dict[str, Any]:
        """The values that decide what is written, as plain JSON types: without runtime fields, and
        without `later` ones at their defaults."""
        kept: dict[str, Any] = {}
        for name, field in type(self).model_fields.items():
            extra, value = field.json_schema_extra, getattr(self, name)
            marks = extra if isinstance(extra, dict) else {}
            if not marks.get("runtime") and not (marks.get("later") and value == field.default):
                kept[name] = _plain(value)
        return kept


def meaning(section: type[Section], name: str) -> str:
    """The docstring of a field, a base's where the class changes only the default; empty if there is none."""
    found = (_docstrings(base).get(name) for base in section.__mro__ if base is not Section)
    text = next(filter(None, found), "")
    return re.sub(r"\bNone\b", "null", " ".join(text.split()))


@cache
def _docstrings(section: type) -> dict[str, str]:
    """The string below each annotated name. Read when asked for: pydantic would with every start."""
    if not issubclass(section, Section):
        return {}
    tree = ast.parse(textwrap.dedent(inspect.getsource(section)))
    lines = tree.body[0].body  # type: ignore[attr-defined]
    return {
        field.target.id: str(below.value.value)
        for field, below in pairwise(lines)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(below, ast.Expr)
        and isinstance(below.value, ast.Constant)
    }


def sections_in(annotation: Any) -> Iterator[type[Section]]:
    """The sections that a field's type holds, by itself or in a list or a union."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    for argument in get_args(annotation):
        yield from sections_in(argument)


def _plain(value: Any) -> Any:
    if isinstance(value, Section):
        return value.results()
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    return str(value)


def dotted_keys(section: type[Section], prefix: str = "") -> Iterator[str]:
    """The dotted keys of a section and of the sections in it."""
    for name, field in section.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Section) and len(kind.model_fields) > 1:
            yield from dotted_keys(kind, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"
