"""The base of every typed section of a recipe."""

import difflib
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator


def runtime(default: Any, **constraints: Any) -> Any:
    """A field that changes how fast or where work is done, never its result: it makes no stage stale."""
    return Field(default, json_schema_extra={"runtime": True}, **constraints)


def nearest(name: str, known: list[str]) -> str:
    """`; did you mean …?` with the nearest known name, else the known names."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known: {', '.join(sorted(known))}" if known else ""


class Section(BaseModel):
    """Frozen and typed; an unknown key is refused with the nearest known one."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, value: Any) -> Any:
        if isinstance(value, dict):
            known = list(cls.model_fields)
            for key in value:
                if key not in known:
                    raise ValueError(f"unknown key {key!r}{nearest(str(key), known)}")
        return value

    def results(self) -> dict[str, Any]:
        """The values that decide what is written, as plain JSON types: runtime fields left out."""
        kept: dict[str, Any] = {}
        for name, field in type(self).model_fields.items():
            extra = field.json_schema_extra
            if isinstance(extra, dict) and extra.get("runtime"):
                continue
            kept[name] = _plain(getattr(self, name))
        return kept


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
