"""The pipeline's commands: run, one for each stage, status, show."""

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from synthclip.recipe import Recipe

RecipeArgument = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE",
        help="A bundled recipe (demo, one-gpu, synthci-30m), a YAML file, or a run directory.",
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE", help="Values that replace the recipe's, such as captions.per_concept=4."
    ),
]
Out = Annotated[
    Path | None, typer.Option("--out", metavar="DIR", help="The run directory; runs/<recipe> unless given.")
]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")]

_STAGES = {
    "concepts": "Build the concept bank.",
    "match": "Find the bank's concepts in the captions.",
    "balance": "Select captions so that concepts are balanced.",
    "images": "Paint the selected captions into shards.",
    "report": "Write the report, one HTML file.",
}


def register(app: typer.Typer) -> None:
    app.command("run")(run_all)
    for name, help_ in _STAGES.items():
        app.command(name, help=help_)(_stage_command(name))
    app.command()(status)
    app.command()(show)


def run_all(recipe: RecipeArgument, overrides: Overrides = None, out: Out = None) -> None:
    """Run every stage; what is current already is not made again."""
    from synthclip.run.pipeline import STAGES

    run_stages(recipe, overrides, out, tuple(STAGES))


def run_stages(recipe: str, overrides: list[str] | None, out: Path | None, stages: tuple[str, ...]) -> None:
    """What `run` and every stage's command do."""
    from synthclip.run.pipeline import run

    resolved, directory = read_recipe(recipe, overrides, out)
    with stoppable():
        run(resolved, directory, stages=stages)
    if "report" in stages:
        typer.echo(directory / "report.html")


def read_recipe(recipe: str, overrides: list[str] | None, out: Path | None) -> tuple["Recipe", Path]:
    """The resolved recipe, and the run directory meant."""
    from synthclip.recipe import load_recipe

    resolved = load_recipe(recipe, overrides or [])
    if out is None:
        out = Path(recipe) if Path(recipe).is_dir() else Path("runs") / resolved.name
    return resolved, out


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Ctrl-C, or a scheduler's SIGTERM, ends work with a word and exit code 130."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        typer.echo("synthclip: stopped; the same command goes on from here", err=True)
        raise typer.Exit(130) from None


def _stage_command(name: str) -> Callable[..., None]:
    def command(recipe: RecipeArgument, overrides: Overrides = None, out: Out = None) -> None:
        run_stages(recipe, overrides, out, (name,))

    return command


def status(directory: RunArgument) -> None:
    """Show how a run stands: per stage the shards done, rows, rejects by reason, time."""
    from synthclip.run.pipeline import status as status_of
    from synthclip.run.progress import Console

    Console(sys.stdout).status(status_of(directory))


def show(recipe: RecipeArgument, overrides: Overrides = None) -> None:
    """Print the resolved recipe, every value written out."""
    from synthclip.recipe import load_recipe

    typer.echo(load_recipe(recipe, overrides or []).to_yaml(), nl=False)
