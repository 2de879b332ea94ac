"""The YAML of a recipe before it is checked: read within bounds, and overrides put into it."""

import contextlib
import re
from collections.abc import Hashable
from typing import Any

import yaml

from synthclip.errors import SynthClipError, first_line
from synthclip.recipe.backends import Kind

MAX_YAML_VALUES = 100_000
"""Keys and values of a recipe, aliases counted each time: a file of a few lines can stand for billions."""

BACKEND_KINDS: dict[str, Kind] = {"llm": "llm", "text_to_image": "t2i"}
"""The sections that are read as the `Config` of a backend, and the kind of that backend."""


def parse_yaml(text: str, label: str) -> Any:
    """The value of one YAML document. Raises SynthClipError where it is none, or stands for too much."""
    loader = None
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        if _size(node, {}) > MAX_YAML_VALUES:
            raise SynthClipError(
                f"{label}: more than {MAX_YAML_VALUES:,} values: its aliases repeat too much"
            )
        return loader.construct_document(node)
    except RecursionError:
        raise SynthClipError(f"{label}: nested too deeply for a recipe") from None
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or first_line(error)
        raise SynthClipError(f"{label}{where}: not YAML: {problem}") from None
    finally:
        if loader is not None:
            loader.dispose()


def _size(node: yaml.Node, sizes: dict[int, float]) -> float:
    """How many nodes one node stands for, aliases followed; infinite where it holds itself.

    Raises yaml.YAMLError for a key that stands twice in one mapping.
    """
    if id(node) not in sizes:
        sizes[id(node)] = float("inf")
        inner: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            seen: set[Hashable] = set()
            for key, value in node.value:
                if isinstance(key, yaml.ScalarNode) and key.value in seen:
                    raise yaml.MarkedYAMLError(
                        problem=f"key {key.value!r} stands twice", problem_mark=key.start_mark
                    )
                seen.add(key.value if isinstance(key, yaml.ScalarNode) else id(key))
                inner += (key, value)
        elif isinstance(node, yaml.SequenceNode):
            inner = node.value
        sizes[id(node)] = 1 + sum(_size(child, sizes) for child in inner)
    return sizes[id(node)]


def names_backend(override: str) -> str | None:
    """The section whose backend an override names."""
    section, _, rest = override.partition(".")
    return section if section in BACKEND_KINDS and rest.partition("=")[0].strip() == "backend" else None


def apply_override(raw: dict[str, Any], override: str) -> None:
    """Put one `dotted.key=value` into the values of a recipe.

    Raises SynthClipError where the key leads into a value, or the value is no YAML.
    """
    label = f"override {override!r}"
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise SynthClipError(f"{label}: expected key=value, such as captions.per_concept=4")
    models = raw.get(parts[0])
    if parts[0] in BACKEND_KINDS and isinstance(models, list) and parts[1:] and not parts[1].isdecimal():
        if not names_backend(override):  # a key of several models is set in each
            for at in range(len(models)):
                apply_override(raw, f"{parts[0]}.{at}.{override.partition('.')[2]}")
            return
        raw[parts[0]] = {}
    value = _value(text, label)
    node: Any = raw
    for part in parts[:-1]:
        node = _step(node, part, label)
    last = parts[-1]
    if isinstance(node, list):
        _step(node, last, label)
        node[int(last)] = value
    elif isinstance(node, dict):
        if names_backend(override) and node.get(last) not in (None, value):
            node.clear()
        node[last] = value
    else:
        raise SynthClipError(f"{label}: {parts[-2]!r} is a value, not a section")


def _value(text: str, label: str) -> Any:
    try:
        value = parse_yaml(text, label)
    except SynthClipError as error:
        raise SynthClipError(f"{error}: put quotes around the value") from None
    if isinstance(value, str) and re.fullmatch(r"[+-]?\.?\d[\d_.]*([eE][+-]?\d+)?", value):
        # YAML 1.1 reads neither 1e-4 nor 3_000_000 the way that people mean them.
        for number in (int, float):
            with contextlib.suppress(ValueError):
                return number(value)
    return value


def _step(node: Any, part: str, label: str) -> Any:
    """Into a mapping (made where it is missing) or a list."""
    if isinstance(node, dict):
        if node.get(part) is None:
            node[part] = {}
        inner = node[part]
        if isinstance(inner, dict | list):
            return inner
    elif isinstance(node, list):
        if part.isdecimal() and int(part) < len(node):
            return node[int(part)]
        raise SynthClipError(f"{label}: {part!r}: index out of range (it has {len(node)})")
    raise SynthClipError(f"{label}: {part!r} is a value, not a section")
