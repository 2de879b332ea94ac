"""The command line: parsing only. What a command does is imported when it runs.

Every module here has `register(app)`, which adds the commands of one room.
"""

import sys
from typing import NoReturn

import typer

from synthclip.cli import core, evaluation, groups, imagegen, interop, plan, textgen, training
from synthclip.errors import SynthClipError

app = typer.Typer(
    help="Train CLIP without a single real picture: captions, images, training, evaluation.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for room in (groups, core, evaluation, imagegen, interop, plan, textgen, training):
    room.register(app)


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
