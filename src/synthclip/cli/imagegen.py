"""Commands for one image of a run."""

from pathlib import Path
from typing import Annotated

import typer

from synthclip.cli.core import RunArgument

Key = Annotated[str, typer.Argument(metavar="KEY", help="The image's name in its tar, without .jpg.")]


def register(app: typer.Typer) -> None:
    app.command()(repaint)
    app.command()(trace)


def repaint(
    directory: RunArgument,
    key: Key,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="The JPEG; KEY.jpg unless given.")
    ] = None,
) -> None:
    """Paint one image again, and say whether it is byte for byte what the run holds."""
    from synthclip.imagegen.provenance import repaint as repaint_image

    repainted = repaint_image(directory, key)
    target = out or Path(f"{key}.jpg")
    target.write_bytes(repainted.jpeg)
    told = "the same bytes" if repainted.same else "not the same bytes: another machine, model or version"
    typer.echo(f"{target}: {told} as in {directory}")


def trace(directory: RunArgument, key: Key) -> None:
    """Show where an image comes from: caption, concept, prompt, models and their revisions."""
    from synthclip.imagegen.provenance import trace as trace_image

    for line in trace_image(directory, key).lines():
        typer.echo(line)
