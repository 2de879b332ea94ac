"""The command line: parsing only. What a command does is imported when it runs.

Every module here has `register(app)`, which adds the commands of one room.
"""

import sys
from typing import Annotated, NoReturn

import typer

import synthclip
from synthclip.cli import core, evaluation, groups, imagegen, interop, plan, textgen, training
from synthclip.errors import SynthClipError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for room in (groups, core, evaluation, imagegen, interop, plan, textgen, training):
    room.register(app)

_ORDER = (
    *("show", "plan", "run", "status"),
    *("concepts", "captions", "match", "balance", "images", "train", "eval", "report"),
    *("trace", "repaint", "compare", "leaks", "weakest"),
)
"""As `--help` lists them: a whole run, its stages in their order, what looks at one; groups follow."""
app.registered_commands.sort(
    key=lambda command: _ORDER.index(command.name or getattr(command.callback, "__name__", ""))
)


def _tell_version(asked: bool) -> None:
    if asked:
        typer.echo(f"synthclip {synthclip.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_tell_version, help="Show the version and exit."),
    ] = False,
) -> None:
    """Train CLIP without a single real picture: captions, images, training, evaluation."""


def main() -> None:
    """The entry point: what a user can mend is one line and exit code 2."""
    try:
        app()
    except SynthClipError as error:
        _refuse(str(error))
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        if package == "synthclip":
            raise
        # Backends name their own extra; what else is imported late comes with training.
        _refuse(f"this needs {package}, which is not installed: pip install 'synthclip[train]'")


def _refuse(why: str) -> NoReturn:
    typer.echo(f"synthclip: {why}", err=True)
    sys.exit(2)
