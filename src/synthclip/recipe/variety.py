"""Templates and axes that come with the package, taken by their names."""

import re
from functools import cache
from importlib import resources
from typing import Any, Literal

import yaml

from synthclip.recipe.section import nearest

_NAMES = re.compile(r"\{\{\s*(\w+)")


def named(values: dict[str, Any]) -> dict[str, Any]:
    """The values of a recipe's section `captions`, where templates and axes may be names, spelled out.

    An axis that such a template names, and that the section does not give, is taken too. Raises ValueError
    for a name that is not known.
    """
    templates, axes = values.get("templates"), values.get("axes") or {}
    names = [one for one in templates if isinstance(one, str)] if isinstance(templates, list | tuple) else []
    if not isinstance(axes, dict) or not (names or any(isinstance(one, str) for one in axes.values())):
        return values
    bundle = _bundle()
    for name in names:
        _known("template", name, bundle["templates"])
    wanted = {name: bundle["templates"][name] for name in names}
    taken = {axis for text in wanted.values() for axis in _NAMES.findall(text) if axis in bundle["axes"]}
    spelled = {axis: axis for axis in sorted(taken - axes.keys())} | axes
    for name in spelled.values():
        if isinstance(name, str):
            _known("axis", name, bundle["axes"])
    about = bundle["about"]
    return {
        **values,
        "templates": [
            {"name": one, "text": wanted[one].replace("{{ about }}", about)} if isinstance(one, str) else one
            for one in templates or ()
        ],
        "axes": {axis: bundle["axes"][one] if isinstance(one, str) else one for axis, one in spelled.items()},
    }


def names_of(what: Literal["templates", "axes"]) -> list[str]:
    """The names that `named` knows."""
    return list(_bundle()[what])


def _known(kind: str, name: str, known: dict[str, Any]) -> None:
    if name not in known:
        raise ValueError(f"no {kind} {name!r} comes with the package{nearest(name, sorted(known))}")


@cache
def _bundle() -> dict[str, Any]:
    text = (resources.files("synthclip.recipe") / "variety.yaml").read_text(encoding="utf-8")
    found: dict[str, Any] = yaml.safe_load(text)
    return found
