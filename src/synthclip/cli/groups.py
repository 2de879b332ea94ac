"""Commands with commands of their own, which more than one room fills."""

import typer

imports = typer.Typer(no_args_is_help=True)
exports = typer.Typer(no_args_is_help=True)


def register(app: typer.Typer) -> None:
    app.add_typer(imports, name="import", help="Bring what other tools made into a run.")
    app.add_typer(exports, name="export", help="Write a run's results in other tools' formats.")
