"""Commands that judge models."""

import typer

from synthclip.cli.core import Out, Overrides, RecipeArgument, run_stages


def register(app: typer.Typer) -> None:
    app.command("eval")(evaluate)


def evaluate(recipe: RecipeArgument, overrides: Overrides = None, out: Out = None) -> None:
    """Evaluate the trained model on held-out captions and images."""
    run_stages(recipe, overrides, out, ("eval",))
