"""Imports point downward only: whoever knows the layers knows where a line belongs."""

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "synthclip"
COMPOSITOR = SOURCE.parent / "synthclip_compositor"

LAYERS = [
    ["errors", "keys"],
    ["schema"],
    ["recipe"],
    ["samples"],
    ["run"],
    ["models"],
    ["backends"],
    ["textgen"],
    ["imagegen"],
    ["evaluation"],
    ["training"],
    ["interop", "plan"],
    ["report"],
    ["sweeps"],
    ["view"],
    ["cli"],
    [""],
]
"""From the bottom up; a module may import its own room and the rooms of the layers below."""

VENDORS_OUTSIDE_BACKENDS = {"xllamacpp", "diffusers", "vllm"}


def modules() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


def dotted(path: Path) -> str:
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def rank(module: str) -> tuple[int, str]:
    """The layer and the room of a module of the package."""
    room = module.split(".")[0]
    return next((level, room) for level, rooms in enumerate(LAYERS) if room in rooms or rooms == [""])


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            assert node.module
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def in_type_checking(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            for inner in ast.walk(node):
                if isinstance(inner, ast.ImportFrom) and inner.module:
                    names.add(inner.module)
                    names.update(f"{inner.module}.{alias.name}" for alias in inner.names)
    return names


@pytest.mark.parametrize("path", modules(), ids=dotted)
def test_imports_point_downward(path: Path) -> None:
    level, room = rank(dotted(path))
    for name in set(imports(path)) - in_type_checking(path):
        if name != "synthclip" and name.startswith("synthclip."):
            other, other_room = rank(name.removeprefix("synthclip."))
            assert other < level or other_room == room, (
                f"{dotted(path)} imports {name}, which is not below it"
            )


def test_the_compositor_imports_only_what_any_backend_may() -> None:
    """It is a package of its own, as a stranger's backend is."""
    allowed = {"errors", "recipe", "backends"}
    for path in COMPOSITOR.glob("*.py"):
        for name in imports(path):
            package, _, inside = name.partition(".")
            assert package != "synthclip" or inside.split(".")[0] in allowed, f"{path.name} imports {name}"


def test_no_modules_import_each_other() -> None:
    """However late an import stands, a circle means that some line is in the wrong file."""
    known = {f"synthclip.{dotted(path)}" for path in modules()}
    graph: dict[str, set[str]] = {}
    for path in modules():
        wanted = [
            node.module if f"{node.module}.{alias.name}" not in known else f"{node.module}.{alias.name}"
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        ]
        own = f"synthclip.{dotted(path)}"  # a package's face may hand on what stands in it
        graph[own] = {name for name in wanted if name in known and not name.startswith(f"{own}.")}
    TopologicalSorter(graph).prepare()


@pytest.mark.parametrize("path", modules(), ids=dotted)
def test_vendors_stay_in_backends(path: Path) -> None:
    if dotted(path).startswith("backends"):
        return
    roots = {name.split(".")[0] for name in imports(path)}
    assert not roots & VENDORS_OUTSIDE_BACKENDS


@pytest.mark.parametrize("path", [*modules(), *COMPOSITOR.glob("*.py")], ids=lambda path: path.stem)
def test_files_fit_in_the_head(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400
