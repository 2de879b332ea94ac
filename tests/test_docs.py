"""The documentation says what the code does: its commands parse, its keys exist, its Python runs."""

import ast
import importlib
import importlib.util
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

import synthclip
from synthclip.cli import app
from synthclip.recipe import Recipe, bundled, load_recipe
from synthclip.recipe.reference import explained

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted([ROOT / "README.md", *DOCS.rglob("*.md")])
_NEEDS_MORE = re.compile(r"\b(load_model|sweep)\(")
"""Calls that need a trained model, or minutes."""
_NO_OVERRIDES = ("sweep", "scaling")
"""Commands whose KEY=VALUE is a list of values to try; they have tests of their own."""


def blocks(language: str) -> Iterator[tuple[str, str]]:
    """Every fenced block of a language, with its page."""
    for page in PAGES:
        for found, text in re.findall(r"^```(\w*)\n(.*?)^```", page.read_text("utf-8"), re.S | re.M):
            if found == language:
                yield page.relative_to(ROOT).as_posix(), text


def commands() -> Iterator[tuple[str, list[str]]]:
    for page, text in blocks(""):
        for line in text.replace("\\\n", " ").splitlines():
            if line.startswith("synthclip "):
                yield page, shlex.split(line, comments=True)[1:]


def test_every_command_parses_and_its_keys_exist() -> None:
    checked = 0
    for page, words in commands():
        command: Any = typer.main.get_command(app)
        said = f"{page}: synthclip {' '.join(words)}"
        path = []
        while hasattr(command, "commands"):
            assert words[0] in command.commands, said
            path.append(words[0])
            command, words = command.commands[words[0]], words[1:]
        if ">" in words:
            words = words[: words.index(">")]
        try:
            values = command.make_context(path[-1], list(words)).params
        except Exception as error:
            raise AssertionError(f"{said}: {error}") from error
        overrides = values.get("overrides") or []
        if path[0] == "show" and values["explain"]:
            explained([word for word in (values["recipe"], *overrides) if word])
        elif overrides and path[0] not in _NO_OVERRIDES:
            recipe = values["recipe"] if values.get("recipe") in bundled() else "one-gpu"
            try:
                load_recipe(recipe, [word.replace("mypackage.plain", "compositor") for word in overrides])
            except Exception as error:
                raise AssertionError(f"{said}: {error}") from error
        checked += 1
    assert checked > 40


def test_every_piece_of_a_recipe_loads(tmp_path: Path) -> None:
    plain = load_recipe("demo").to_yaml()
    for page, text in blocks("yaml"):
        for piece in yaml.safe_load_all(text):
            if not isinstance(piece, dict) or not piece.keys() <= Recipe.model_fields.keys():
                continue
            whole = yaml.safe_load(plain)
            for section, values in piece.items():
                added = isinstance(values, dict) and "backend" not in values
                whole[section] = {**whole[section], **values} if added else values
            (tmp_path / "demo.yaml").write_text(yaml.safe_dump(whole))
            try:
                load_recipe(tmp_path / "demo.yaml")
            except Exception as error:
                raise AssertionError(f"{page}: {text}{error}") from error


@pytest.mark.parametrize(("page", "text"), list(blocks("python")))
def test_python_imports_what_is_there_and_runs_where_it_needs_no_model(page: str, text: str) -> None:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(str(node.module))
            assert all(hasattr(module, name.name) for name in node.names), page
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            assert node.value.id != "synthclip" or node.attr in synthclip.__all__, page
    if not _NEEDS_MORE.search(text):
        names: dict[str, Any] = {"__name__": "page"}
        exec(compile(text, page, "exec"), names)
        if "build" in names:
            painted = names["build"](names["Config"](backend="plain")).generate(["a", "b"], [1, 2])
            assert painted.images.shape == (2, 64, 64, 3)


def test_pages_made_from_the_code_are_up_to_date() -> None:
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    for name, text in generate.pages().items():
        found = (DOCS / name).read_text(encoding="utf-8")
        assert found == text, f"docs/{name} is out of date: run `python docs/generate.py`"


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    pytest.importorskip("material")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site/guides/concepts/index.html").is_file()
