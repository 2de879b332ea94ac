"""Commands that take over official captions, matches and selections, and write them."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from synthclip.cli import groups
from synthclip.cli.core import Out, Overrides, RunArgument, run_stages

Files = Annotated[
    Path,
    typer.Argument(
        metavar="DIR|FILE", help="A folder of <index>.json as the original writes them, or a file."
    ),
]
RecipeName = Annotated[
    str,
    typer.Argument(metavar="RECIPE", help="The recipe to go on with: a bundled name or a YAML file."),
]
Target = Annotated[Path, typer.Argument(metavar="TARGET", help="Where to write.")]

_IMPORTS = {
    "captions": ("Take over captions, JSON lists of strings, and match and balance them.", ()),
    "matches": (
        "Take over captions with the ids of their entries, and balance them.",
        ("match.imported=true",),
    ),
    "selection": ("Take over a curated list of captions, all of it.", ("balance.t=null",)),
}
_EXPORTS = {
    "captions": "Write the captions as TARGET/<index>.json.",
    "matches": "Write the captions with the ids of their concepts as TARGET/<index>.json.",
    "selection": "Write the captions selected for training as one JSON list.",
    "counts": "Write how many captions match each concept, as entry_count.npy.",
}


def register(app: typer.Typer) -> None:
    for name, (told, overrides) in _IMPORTS.items():
        groups.imports.command(name, help=told)(_import_command(overrides))
    for name, told in _EXPORTS.items():
        groups.exports.command(name, help=told)(_export_command(name))


def _import_command(chosen: tuple[str, ...]) -> Callable[..., None]:
    def command(files: Files, recipe: RecipeName, overrides: Overrides = None, out: Out = None) -> None:
        taken = [f"captions.imported={files.resolve()}", *chosen, *(overrides or [])]
        run_stages(recipe, taken, out, ("concepts", "captions", "match", "balance"))

    return command


def _export_command(name: str) -> Callable[..., None]:
    def command(directory: RunArgument, target: Target) -> None:
        from synthclip.store import RunDirectory
        from synthclip.textgen import official

        count = getattr(official, f"export_{name}")(RunDirectory(directory), target)
        typer.echo(f"{target}: {count} {'concepts' if name == 'counts' else 'captions'}")

    return command
