"""The command line: parsing only. What a command does is imported when it runs, so that help is quick."""

import sys
from typing import Annotated, NoReturn

import typer

import synthclip
from synthclip.cli import interop, judging, pipeline, start, sweeps
from synthclip.errors import SynthClipError, install_command

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)

app.command()(start.init)
app.command()(pipeline.show)
app.command()(pipeline.plan)
app.command("run")(pipeline.run_all)
app.command()(pipeline.status)
app.command()(pipeline.verify)
app.command("concepts", help="Build the concept bank.")(pipeline.stage_command("concepts"))
app.command()(pipeline.captions)
app.command("match", help="Find concepts in the captions.")(pipeline.stage_command("match"))
app.command("balance", help="Select captions so that concepts are balanced.")(
    pipeline.stage_command("balance")
)
app.command("images", help="Paint the selected captions.")(pipeline.stage_command("images"))
app.command("teacher", help="Compute a teacher's features of the training pairs.")(
    pipeline.stage_command("teacher")
)
app.command()(pipeline.train)
app.command("eval")(judging.evaluate)
app.command("report", help="Write the report, one HTML file.")(pipeline.stage_command("report"))
app.command()(judging.view)
app.command()(judging.trace)
app.command()(judging.repaint)
app.command()(interop.materialize)
app.command()(judging.compare)
app.command()(sweeps.sweep)
app.command()(sweeps.scaling)
app.command()(sweeps.audition)
app.command()(judging.leaks)
app.command()(judging.weakest)
app.add_typer(interop.imports, name="import", help="Import data from other tools.")
app.add_typer(interop.exports, name="export", help="Export a run in the formats of other tools.")
app.add_typer(interop.fetch, name="fetch", help="Download official data from the Hugging Face hub.")
app.add_typer(interop.push, name="push", help="Upload to the Hugging Face hub, with a card.")


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"synthclip {synthclip.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_print_version, help="Show the version and exit."),
    ] = False,
) -> None:
    """Train CLIP without a single real picture.

    Captions come from a language model, images from a text-to-image model.
    """


def main() -> None:
    """The entry point: an error that a user can fix is printed without a traceback; exit code 2."""
    try:
        app()
    except SynthClipError as error:
        _refuse(str(error))
    except OSError as error:  # a path too long, a full disk behind standard output
        _refuse(f"{error.filename or 'output'}: {error.strerror or error}")
    except RecursionError:
        _refuse("a file is nested too deeply to be read")
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        if package == "synthclip":
            raise
        # Backends name their own extra; what else is imported late comes with training.
        _refuse(f"this needs {package}, which is not installed: {install_command('train')}")


def _refuse(why: str) -> NoReturn:
    for line in why.splitlines():
        # A name in it may be a stranger's: no control sequence reaches the terminal.
        shown = "".join(one if one.isprintable() else repr(one)[1:-1] for one in line)
        typer.echo(f"synthclip: {shown}", err=True)
    sys.exit(2)
