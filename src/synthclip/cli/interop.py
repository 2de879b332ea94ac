"""Commands that import and export data and models: other tools' formats, the Hugging Face hub."""

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Literal

import typer

from synthclip.cli.pipeline import (
    Out,
    Overrides,
    RunArgument,
    Trust,
    run_stages,
    show_plan,
    stoppable,
    table_console,
)

ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A run, an open_clip folder, an official checkpoint_best.pt, NAME:TAG, or hf-hub:ORG/REPO.",
    ),
]
NewFolder = Annotated[Path, typer.Argument(metavar="DIR", help="A new or empty folder.")]
Repo = Annotated[str, typer.Argument(metavar="ORG/NAME", help="The repository on the hub.")]
Seeds = Annotated[
    Path, typer.Argument(metavar="SEEDS", help="The folder of `synthclip export seeds`, or a file in it.")
]
Private = Annotated[bool, typer.Option("--private", help="Make a new repository private.")]

Files = Annotated[
    Path, typer.Argument(metavar="DIR|FILE", help="A folder of the official <index>.json, or one file.")
]
RecipeName = Annotated[
    str, typer.Argument(metavar="RECIPE", help="The recipe to use: a bundled name or a YAML file.")
]
Target = Annotated[Path, typer.Argument(metavar="TARGET", help="The folder or file to write.")]

imports = typer.Typer(no_args_is_help=True)
exports = typer.Typer(no_args_is_help=True)
fetch = typer.Typer(no_args_is_help=True)
push = typer.Typer(no_args_is_help=True)

_IMPORTS = {
    "captions": ("Import captions (JSON lists), then match and balance them.", ()),
    "matches": ("Import captions with their concept ids, then balance them.", ("match.imported=true",)),
    "selection": ("Import selected captions; all of them are kept.", ("balance.t=null",)),
}
_EXPORTS = {
    "captions": "Export the captions as TARGET/<index>.json.",
    "matches": "Export captions and concept ids as TARGET/<index>.json.",
    "selection": "Export the captions selected for training as one JSON list.",
    "counts": "Export the captions per concept as entry_count.npy.",
}


def _import_command(chosen: tuple[str, ...]) -> Callable[..., None]:
    def command(
        files: Files, recipe: RecipeName, overrides: Overrides = None, out: Out = None, trust: Trust = False
    ) -> None:
        from synthclip.textgen import official

        official.files(files)  # refuses a wrong path before anything is made
        values = [f"captions.imported={files.resolve()}", *chosen, *(overrides or [])]
        run_stages(recipe, values, out, ("concepts", "captions", "match", "balance"), trust)

    return command


def _export_command(name: str) -> Callable[..., None]:
    def command(directory: RunArgument, target: Target) -> None:
        from synthclip.run.store import RunDirectory
        from synthclip.textgen import official

        count = getattr(official, f"export_{name}")(RunDirectory(directory), target)
        typer.echo(f"{target}: {count} {'concepts' if name == 'counts' else 'captions'}")

    return command


for _name, (_help, _overrides) in _IMPORTS.items():
    imports.command(_name, help=_help)(_import_command(_overrides))
for _name, _help in _EXPORTS.items():
    exports.command(_name, help=_help)(_export_command(_name))


@imports.command("synthci")
def import_synthci(
    source: Annotated[Path, typer.Argument(metavar="DIR", help="The official files.")],
    out: Annotated[Path, typer.Option("--out", metavar="SHARDS", help="The folder to write shards to.")],
) -> None:
    """Import SynthCI-30M (zips and CSV) as shards; resumable."""
    from synthclip.errors import SynthClipError
    from synthclip.imagegen.imported import import_synthci

    summary = import_synthci(source, out)
    typer.echo(f"{summary.images} images in {out}/images/train")
    for reason, count in summary.rejected.items():
        typer.echo(f"skipped: {count} ({reason})")
    if summary.rejected:
        typer.echo(f"details: {out}/images/rejected")
    if summary.rows_without_zip:
        typer.echo(f"rows whose zip is missing: {summary.rows_without_zip}")
    if summary.broken:
        raise SynthClipError(
            f"{source}: incomplete, or not named by a number: {', '.join(summary.broken)}; the others are "
            "imported: download these again and repeat the command"
        )


@fetch.command("model")
def fetch_model(
    name: Annotated[str, typer.Argument(metavar="NAME", help="An official model, or OWNER/REPO.")],
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="The download folder.")] = None,
) -> None:
    """Download a model."""
    from synthclip.interop.hub import fetch_model

    model = fetch_model(name, out or Path("models") / name.rpartition("/")[2])
    typer.echo(f"{model}; next: synthclip eval {model} --suite quick --data ROOT --download")


@fetch.command("seeds")
def fetch_seeds(
    repo: Repo,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The download folder.")] = Path("seeds"),
) -> None:
    """Download seeds, to paint with `materialize`; resumable."""
    from synthclip.interop.hub import fetch_seeds

    typer.echo(f"{fetch_seeds(repo, out)}; next: synthclip materialize {out} --out RUN")


@fetch.command("synthci")
def fetch_synthci(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The download folder.")] = Path("synthci"),
    part: Annotated[
        list[int] | None, typer.Option("--part", metavar="N", help="The number of a zip; repeatable.")
    ] = None,
) -> None:
    """Download SynthCI-30M or some of its zips; resumable."""
    from synthclip.interop.hub import fetch_synthci

    count = fetch_synthci(out, part or ())
    typer.echo(f"{count} zips in {out}; next: synthclip import synthci {out} --out SHARDS")


@exports.command("model")
def export_model(
    model: ModelArgument,
    folder: NewFolder,
    format: Annotated[
        Literal["open_clip", "official", "hf", "onnx"], typer.Option("--format", help="The format to write.")
    ] = "open_clip",
) -> None:
    """Export a model for other libraries, and check its embeddings."""
    from synthclip.interop.export import export_model

    difference = export_model(model, folder, format)
    typer.echo(f"{folder}: embeddings differ by at most {difference:.1e}")


@exports.command("images")
def export_images(
    run: RunArgument,
    folder: NewFolder,
    format: Annotated[
        Literal["synthci", "parquet"], typer.Option("--format", help="The format to write.")
    ] = "parquet",
) -> None:
    """Export images and captions as Parquet, or as zips and CSV."""
    from synthclip.interop.images import export_images

    typer.echo(f"{folder}: {export_images(run, folder, format)} images")


@exports.command("card")
def export_card(
    run: RunArgument,
    folder: NewFolder,
    repo: Annotated[
        str | None,
        typer.Option(
            "--repo", metavar="ORG/NAME|URL", help="Where the data will be; default: the recipe's name."
        ),
    ] = None,
) -> None:
    """Write a data card and Croissant metadata."""
    from synthclip.interop.croissant import data_set_files
    from synthclip.recipe import saved_recipe_name
    from synthclip.run.durable import new_folder

    with new_folder(folder) as partial:
        for name, text in data_set_files(run, repo or saved_recipe_name(run) or run.name).items():
            (partial / name).write_text(text, encoding="utf-8")
    typer.echo(f"{folder}: README.md and croissant.json, for {run}/images")


@exports.command("seeds")
def export_seeds(
    run: RunArgument,
    folder: Annotated[Path, typer.Argument(metavar="SEEDS", help="The folder to write.")],
) -> None:
    """Export images as captions, seeds and models; resumable."""
    from synthclip.interop.seeds import export_seeds

    with stoppable():
        count = export_seeds(run, folder)
    typer.echo(f"{folder}: seeds of {count} images; next: synthclip materialize {folder} --out RUN")


def materialize(
    seeds: Seeds,
    overrides: Overrides = None,
    out: Out = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Only estimate time and disk, for this machine.")
    ] = False,
    trust: Trust = False,
) -> None:
    """Paint exported seeds again, and compare.

    The exit code is 1 where an image is different or refused.
    """
    from rich.table import Table

    from synthclip.imagegen.seeds import Compared, materialize, recipe_of

    if plan or out is None:
        recipe = recipe_of(seeds, overrides or [], trust=trust)
        out = out or Path("runs") / recipe.name
    if plan:
        from synthclip.plan import make_plan
        from synthclip.training.flops import devices_here

        show_plan(make_plan(recipe, devices_here()))
        return
    with stoppable():
        done = materialize(seeds, out, overrides or [], trust=trust)
    table = Table(box=None, pad_edge=False)
    table.add_column("split")
    columns = [field.name for field in fields(Compared)[1:]]
    for name in columns:
        table.add_column(name, justify="right")
    for split in done.splits:
        table.add_row(split.split, *(f"{getattr(split, name):,}" for name in columns))
    console = table_console()
    console.print(table)
    for line in done.differences:
        console.print(f"other than before: {line}")
    console.print(f"{out}/compared.json; image by image: {out}/images/compared")
    if not done.as_expected:
        raise typer.Exit(1)


@push.command("images")
def push_images(run: RunArgument, repo: Repo, private: Private = False) -> None:
    """Upload a run's images and captions as a data set."""
    from synthclip.interop.hub import push_images

    typer.echo(push_images(run, repo, private=private))


@push.command("seeds")
def push_seeds(folder: Seeds, repo: Repo, private: Private = False) -> None:
    """Upload exported seeds as a data set."""
    from synthclip.interop.hub import push_seeds

    typer.echo(push_seeds(folder, repo, private=private))


@push.command("model")
def push_model(model: ModelArgument, repo: Repo, private: Private = False) -> None:
    """Upload a model as an open_clip folder."""
    from synthclip.interop.hub import push_model

    typer.echo(push_model(model, repo, private=private))
