"""The command that writes a first recipe."""

from pathlib import Path
from typing import Annotated

import typer

from synthclip.errors import SynthClipError


def init(
    concepts: Annotated[
        Path, typer.Argument(metavar="FILE", help="A text file with a concept on each line.")
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="RECIPE", help="Default: FILE with .yaml."),
    ] = None,
) -> None:
    """Write a first recipe for a list of concepts."""
    from synthclip.cli.pipeline import show_plan
    from synthclip.plan import make_plan
    from synthclip.plan.first_recipe import first_recipe
    from synthclip.plan.machine import look
    from synthclip.recipe import load_recipe
    from synthclip.training.flops import devices_here

    if not concepts.is_file():
        raise SynthClipError(f"{concepts}: no such file: give a text file with a concept on each line")
    target = out or concepts.with_suffix(".yaml")
    if target.exists():
        raise SynthClipError(f"{target}: exists: remove it, or choose another --out")
    machine = look()
    made = first_recipe(concepts, machine, target.stem)
    target.write_text(made.yaml, encoding="utf-8")
    recipe = load_recipe(target)
    for line in (*machine.lines(), "", *made.chosen):
        typer.echo(line)
    typer.echo("")
    try:
        show_plan(make_plan(recipe, devices_here()))
    except SynthClipError as error:  # a model whose size is not known
        typer.echo(f"what it takes cannot be said: {error}")
    typer.echo(f"\nwritten: {target}")
    for command in made.missing:
        typer.echo(f"missing: {command}")
    typer.echo(f"next: synthclip run {target}")
