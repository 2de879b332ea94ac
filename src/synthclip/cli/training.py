"""Commands that train."""

from typing import Annotated

import typer

from synthclip.cli.core import Out, Overrides, RecipeArgument, run_stages


def register(app: typer.Typer) -> None:
    app.command()(train)


def train(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    out: Out = None,
    gpus: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Train on so many GPUs of this machine, one process each."),
    ] = None,
) -> None:
    """Train CLIP on the shards; what was stopped goes on from its last checkpoint."""
    asked = [] if gpus is None else [f"training.processes={gpus}"]
    run_stages(recipe, [*(overrides or []), *asked], out, ("train",))
