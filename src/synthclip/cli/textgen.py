"""Commands that write captions, and that take over official captions, matches and selections."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from synthclip.cli import groups
from synthclip.cli.core import Out, Overrides, RecipeArgument, RunArgument, read_recipe, run_stages, stoppable
from synthclip.errors import SynthClipError

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
_MOST_NAMED = 10


def register(app: typer.Typer) -> None:
    app.command()(captions)
    for name, (told, overrides) in _IMPORTS.items():
        groups.imports.command(name, help=told)(_import_command(overrides))
    for name, told in _EXPORTS.items():
        groups.exports.command(name, help=told)(_export_command(name))


def captions(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    out: Out = None,
    fill: Annotated[
        bool, typer.Option("--fill", help="Write more for concepts that too few captions match.")
    ] = False,
    at_least: Annotated[
        int | None,
        typer.Option(
            "--at-least", metavar="N", min=1, help="With --fill: matched captions wanted of each concept."
        ),
    ] = None,
    concepts: Annotated[
        Path | None,
        typer.Option(
            "--concepts", metavar="FILE", help="With --fill: only the concepts in here, one a line."
        ),
    ] = None,
    rounds: Annotated[
        int,
        typer.Option(
            "--rounds", metavar="N", min=1, help="With --fill: rounds of writing and matching at most."
        ),
    ] = 5,
) -> None:
    """Write captions with the language model."""
    if not fill:
        if at_least is not None or concepts is not None:
            raise SynthClipError("--at-least and --concepts belong to --fill")
        run_stages(recipe, overrides, out, ("captions",))
        return
    from synthclip.textgen.coverage import fill as fill_concepts

    resolved, directory = read_recipe(recipe, overrides, out)
    with stoppable():
        found = fill_concepts(resolved, directory, at_least=at_least, concepts=concepts, rounds=rounds)
    covered = found.concepts - len(found.lacking)
    typer.echo(
        f"{covered} of {found.concepts} concepts have {at_least or resolved.captions.per_concept} or more "
        f"matched captions; {found.asked} asked for in addition"
    )
    for told, names in (("still lacking", sorted(found.lacking)), ("not in the bank", found.unknown)):
        if names:
            more = ", …" if len(names) > _MOST_NAMED else ""
            typer.echo(f"{told}: {', '.join(names[:_MOST_NAMED])}{more} ({len(names)})")


def _import_command(chosen: tuple[str, ...]) -> Callable[..., None]:
    def command(files: Files, recipe: RecipeName, overrides: Overrides = None, out: Out = None) -> None:
        from synthclip.textgen import official

        official.files(files)  # refuses a wrong path before anything is made
        taken = [f"captions.imported={files.resolve()}", *chosen, *(overrides or [])]
        run_stages(recipe, taken, out, ("concepts", "captions", "match", "balance"))

    return command


def _export_command(name: str) -> Callable[..., None]:
    def command(directory: RunArgument, target: Target) -> None:
        from synthclip.run.store import RunDirectory
        from synthclip.textgen import official

        count = getattr(official, f"export_{name}")(RunDirectory(directory), target)
        typer.echo(f"{target}: {count} {'concepts' if name == 'counts' else 'captions'}")

    return command
