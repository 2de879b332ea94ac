"""The command line: parsing only. What a command does is imported when it runs.

Every module here has `register(app)`, which adds the commands of one room.
"""

import sys

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
        typer.echo(f"synthclip: {error}", err=True)
        sys.exit(2)
