"""Write the pages that follow from the code: `python docs/generate.py`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.main

from synthclip.cli import app
from synthclip.recipe.reference import Entry, entries

DOCS = Path(__file__).parent
_GENERATED = "<!-- Written by docs/generate.py: change the code, then run it. -->"


def pages() -> dict[str, str]:
    """The text of each generated page, by its file's name."""
    return {"recipe.md": "\n".join(_recipe()), "commands.md": "\n".join(_commands())}


def _recipe() -> Iterator[str]:
    yield _GENERATED
    yield "# Recipe reference\n"
    yield (
        "Every key of a recipe. `synthclip show --explain training.lr` prints the same on a terminal, "
        "`synthclip show --explain demo` with the values of a recipe; those that it changes are marked.\n\n"
        "An override names a key by its dots: `training.lr=1e-3`. `N` stands for the number of an entry of a "
        "list, from 0: `captions.templates.0.weight=2`. Keys marked *runtime* change how fast or where the "
        "work is done, never its result: changing one makes nothing stale.\n\n"
        "For completion and checks in an editor, write the schema beside your recipe, and name it in the "
        "recipe's first line; VS Code (extension YAML) and all editors with yaml-language-server read it:\n\n"
        "```\nsynthclip show --schema > recipe.schema.json\n```\n\n"
        "```yaml\n# yaml-language-server: $schema=./recipe.schema.json\n```\n"
    )
    heads: dict[tuple[str, str], Entry | None] = {("", ""): None}
    rows: dict[tuple[str, str], list[Entry]] = {}
    for entry in entries():
        place = (entry.key.rpartition(".")[0].removesuffix(".N"), entry.backend)
        if entry.holds_others:
            heads[entry.key, ""] = entry
            rows.setdefault((entry.key, ""), [])
        else:
            rows.setdefault(place, []).append(entry)
    for (section, backend), inside in rows.items():
        if not inside:
            continue
        head = heads.get((section, ""))
        yield f"## {section or 'At the top'}{f', backend {backend}' if backend else ''}\n"
        if head and not backend:
            yield f"{head.meaning}{' A list of sections.' if 'list' in head.kind else ''}\n"
        yield "| key | default | meaning |\n| --- | --- | --- |"
        yield from map(_row, inside)
        yield ""


def _row(entry: Entry) -> str:
    kind = f"{entry.kind}; *runtime*" if entry.runtime else entry.kind
    return _cells(f"`{entry.key.rpartition('.')[2]}`", f"`{entry.default}`", f"{entry.meaning} ({kind})")


def _cells(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _commands() -> Iterator[str]:
    yield _GENERATED
    yield "# Commands\n"
    yield (
        "`synthclip COMMAND --help` prints the same. `synthclip --install-completion` completes commands and "
        "options in bash, zsh, fish and PowerShell. Errors that you can fix are one line, with exit code 2; "
        "a run that is stopped by Ctrl-C ends with 130, and the same command resumes it.\n"
    )
    waiting: list[tuple[str, Any]] = [("synthclip", typer.main.get_command(app))]
    while waiting:
        words, command = waiting.pop(0)
        inner = [(f"{words} {name}", one) for name, one in getattr(command, "commands", {}).items()]
        waiting[:0] = inner
        if not inner:
            yield from _command(words, command)


def _command(words: str, command: Any) -> Iterator[str]:
    parameters = [one for one in command.params if one.name != "help"]
    arguments = [one for one in parameters if one.param_type_name == "argument"]
    shown = [one.metavar if one.required else f"[{one.metavar}]" for one in arguments]
    yield f"## {words}\n"
    text = command.help.partition("\b")
    yield f"{' '.join(text[0].split())}\n"
    if text[2]:
        yield "```\n" + "\n".join(line.strip() for line in text[2].strip().splitlines()) + "\n```\n"
    yield f"`{' '.join([words, *shown])}`\n"
    yield "| | |\n| --- | --- |"
    for one in parameters:
        name = one.metavar if one in arguments else one.opts[0]
        name += "" if one in arguments or one.is_flag else f" {one.metavar}"
        yield _cells(f"`{name}`", (one.help or "").replace("<", "&lt;"))
    yield ""


if __name__ == "__main__":
    for name, text in pages().items():
        (DOCS / name).write_text(text, encoding="utf-8")
