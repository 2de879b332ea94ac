"""Commands that bring in, and hand on, models and data in the formats of others."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from synthclip.cli import groups

ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A run, an open_clip folder, an official checkpoint_best.pt, NAME:TAG, or hf-hub:ORG/REPO.",
    ),
]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A run, or what `import synthci` wrote.")]
NewFolder = Annotated[Path, typer.Argument(metavar="DIR", help="A folder that is new or empty.")]
Repo = Annotated[str, typer.Argument(metavar="ORG/NAME", help="The repository on the Hugging Face hub.")]
Private = Annotated[bool, typer.Option("--private", help="Where the repository is new, make it private.")]

fetch = typer.Typer(no_args_is_help=True)
push = typer.Typer(no_args_is_help=True)


def register(app: typer.Typer) -> None:
    groups.imports.command("synthci")(import_synthci)
    groups.exports.command("model")(export_model)
    groups.exports.command("images")(export_images)
    app.add_typer(fetch, name="fetch", help="Download official data from the hub.")
    app.add_typer(push, name="push", help="Upload to the hub, with a card written from the run.")


def import_synthci(
    source: Annotated[Path, typer.Argument(metavar="DIR", help="The downloaded official files.")],
    out: Annotated[Path, typer.Option("--out", metavar="SHARDS", help="Where images/train/<n>.tar go.")],
) -> None:
    """Turn SynthCI-30M's zips and CSV into shards; go on where a stopped import was."""
    from synthclip.errors import SynthClipError
    from synthclip.interop.synthci import import_synthci

    summary = import_synthci(source, out)
    typer.echo(f"{summary.images} images in {out}/images/train")
    for reason, count in summary.rejected.items():
        typer.echo(f"passed over: {count} ({reason})")
    if summary.rejected:
        typer.echo(f"each is named in {out}/images/rejected")
    if summary.rows_without_zip:
        typer.echo(f"rows whose zip is not here: {summary.rows_without_zip}")
    if summary.broken:
        raise SynthClipError(
            f"{source}: not whole, or not named by a number: {', '.join(summary.broken)}; the others are "
            "imported: fetch these again and repeat the command"
        )


@fetch.callback()
def _fetch() -> None:
    """Keeps `synthci` a command of its own while it is the only one."""


@fetch.command("synthci")
def fetch_synthci(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the files go.")] = Path("synthci"),
    part: Annotated[
        list[int] | None, typer.Option("--part", metavar="N", help="A zip by its number; repeat for more.")
    ] = None,
) -> None:
    """Download SynthCI-30M, whole or some parts; go on where a cut download was."""
    from synthclip.interop.hub import fetch_synthci

    count = fetch_synthci(out, part or ())
    typer.echo(f"{count} zips in {out}; next: synthclip import synthci {out} --out SHARDS")


def export_model(
    model: ModelArgument,
    folder: NewFolder,
    format: Annotated[
        Literal["open_clip", "official", "hf", "onnx"], typer.Option("--format", help="Whose format.")
    ] = "open_clip",
) -> None:
    """Write a model for open_clip, the official code, transformers or onnxruntime, and check it."""
    from synthclip.interop.export import export_model

    difference = export_model(model, folder, format)
    typer.echo(f"{folder}: embeddings differ by at most {difference:.1e}")


def export_images(
    run: RunArgument,
    folder: NewFolder,
    format: Annotated[
        Literal["synthci", "parquet"], typer.Option("--format", help="Whose format.")
    ] = "parquet",
) -> None:
    """Write images and captions as the official zips and CSV, or as Hugging Face Parquet."""
    from synthclip.interop.images import export_images

    typer.echo(f"{folder}: {export_images(run, folder, format)} images")


@push.command("images")
def push_images(run: RunArgument, repo: Repo, private: Private = False) -> None:
    """Upload a run's shards as a data set."""
    from synthclip.interop.hub import push_images

    typer.echo(push_images(run, repo, private=private))


@push.command("model")
def push_model(model: ModelArgument, repo: Repo, private: Private = False) -> None:
    """Upload a model as an open_clip folder."""
    from synthclip.interop.hub import push_model

    typer.echo(push_model(model, repo, private=private))
