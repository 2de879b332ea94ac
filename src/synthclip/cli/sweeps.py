"""Commands about many runs of one recipe: ablations, and how the error falls with data."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from synthclip.cli.pipeline import Overrides, RecipeArgument, Trust, stoppable, table_console
from synthclip.errors import SynthClipError

if TYPE_CHECKING:
    from synthclip.sweeps.variants import Sweep

Source = Annotated[
    str,
    typer.Argument(metavar="RECIPE|SWEEP", help="A recipe, a bundled sweep, or a YAML file with variants."),
]
Grid = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE", help="An axis, such as 'balance.t=8,32'; one value is shared by all variants."
    ),
]
SweepOut = Annotated[
    Path | None, typer.Option("--out", metavar="DIR", help="The folder; default: sweeps/<name>.")
]
Seeds = Annotated[int | None, typer.Option("--seeds", metavar="N", min=1, help="Trainings per variant.")]
DataSeeds = Annotated[
    int | None, typer.Option("--data-seeds", metavar="N", min=1, help="Data sets per variant.")
]
EqualOption = Annotated[
    Literal["epochs", "samples", "cost"] | None,
    typer.Option("--equal", metavar="WHAT", help="epochs (of each recipe), samples (seen), or cost."),
]
Suite = Annotated[
    str | None, typer.Option("--suite", metavar="NAME", help="Data sets that judge too, as in `eval`.")
]
Data = Annotated[str | None, typer.Option("--data", metavar="ROOT", help="The folder of the data sets.")]
Price = Annotated[float | None, typer.Option("--price", metavar="N", min=0, help="Price of a device-hour.")]


def sweep(
    source: Source,
    grid: Grid = None,
    out: SweepOut = None,
    recipe: Annotated[
        str | None, typer.Option("--recipe", metavar="RECIPE", help="Instead of the sweep's own.")
    ] = None,
    seeds: Seeds = None,
    data_seeds: DataSeeds = None,
    base: Annotated[
        str | None,
        typer.Option("--base", metavar="VARIANT", help="What is compared with; default: the first."),
    ] = None,
    equal: EqualOption = None,
    baseline: Annotated[
        list[str] | None,
        typer.Option("--baseline", metavar="NAME", help="untrained, pixels or random; repeatable."),
    ] = None,
    suite: Suite = None,
    data: Data = None,
    devices: Annotated[
        str | None,
        typer.Option("--devices", metavar="NxNAME", help="For --equal cost, as in `plan`."),
    ] = None,
    price: Price = None,
    trust: Trust = False,
) -> None:
    """Compare variants of a recipe; what they share is made once."""
    from synthclip.sweeps.variants import read_sweep

    options = {
        "recipe": recipe,
        "seeds": seeds,
        "data_seeds": data_seeds,
        "base": base,
        "equal": equal,
        "baselines": baseline,
        "suite": suite,
        "data": data,
    }
    asked = read_sweep(source, grid or [], **options)
    _run(asked, out or Path("sweeps") / Path(source).stem, devices, price, trust)


def scaling(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    out: SweepOut = None,
    shares: Annotated[
        str, typer.Option("--shares", metavar="LIST", help="Of the captions trained on, as in 1/4,1/2,1.")
    ] = "1/16,1/8,1/4,1/2,1",
    seeds: Seeds = None,
    data_seeds: DataSeeds = None,
    equal: EqualOption = None,
    suite: Suite = None,
    data: Data = None,
    price: Price = None,
    trust: Trust = False,
) -> None:
    """Train on shares of the data; fit a law to the errors."""
    from synthclip.sweeps.target import scaling_sweep

    options = {"seeds": seeds, "data_seeds": data_seeds, "equal": equal, "suite": suite, "data": data}
    asked = scaling_sweep(recipe, overrides or [], shares, **options)
    _run(asked, out or Path("sweeps") / f"{Path(recipe).stem}-scaling", None, price, trust, laws=True)


def audition(
    recipe: RecipeArgument,
    painters: Annotated[
        list[str],
        typer.Argument(
            metavar="PAINTER",
            help="A diffusers preset, NAME=PRESET, or 'NAME={key: value}' with keys of text_to_image; "
            "KEY.KEY=VALUE changes the recipe.",
        ),
    ],
    out: SweepOut = None,
    guidance: Annotated[
        str | None, typer.Option("--guidance", metavar="LIST", help="Each painter with each, as in 2,7.5.")
    ] = None,
    unseen: Annotated[
        str | None,
        typer.Option("--unseen", metavar="PAINTER", help="Paints held-out captions, and trains nobody."),
    ] = None,
    seeds: Seeds = None,
    equal: EqualOption = None,
    suite: Suite = None,
    data: Data = None,
    price: Price = None,
    trust: Trust = False,
) -> None:
    """Rank painters by what they teach about others' pictures."""
    from synthclip.sweeps.audition import audition_sweep

    options = {"seeds": seeds, "equal": equal, "suite": suite, "data": data}
    asked = audition_sweep(recipe, painters, guidance, unseen, **options)
    _run(asked, out or Path("sweeps") / f"{Path(recipe).stem}-audition", None, price, trust, ranks=True)


def _run(
    asked: "Sweep",
    out: Path,
    devices: str | None,
    price: float | None,
    trust: bool,
    *,
    laws: bool = False,
    ranks: bool = False,
) -> None:
    from synthclip.sweeps import page, results
    from synthclip.sweeps.audition import ranking, ranking_table
    from synthclip.sweeps.law import fit_all, points_of
    from synthclip.sweeps.runs import sweep as run_sweep
    from synthclip.training.flops import parse_devices

    known = None if devices is None else parse_devices(devices)
    with stoppable():
        swept = run_sweep(asked, out, devices=known, trust=trust)
    found = results.find(swept)
    fitted = fit_all(points_of(found.runs)) if laws else {}
    ranked = ranking(swept, found) if ranks else []
    results.write(swept.directory, found)
    swept.directory.write_text(page.FILE, page.render(swept, found, fitted, ranked, price))
    console = table_console()
    console.print(ranking_table(ranked, price) if ranks else results.findings_table(found, price))
    total = f"device-hours of all, what they share counted once: {found.spent_hours:.3f}"
    if found.services:
        total += f"; services, by llm.prices: {found.services:,.2f}"
    laws_found = [f"{figure}: {line}" for figure, one in fitted.items() for line in one.lines()]
    for line in (results.COVERS, total, *laws_found, *found.notes):
        console.print(line, soft_wrap=True)
    console.print(swept.directory.path / page.FILE, soft_wrap=True)
    if found.failed:
        lines = [f"{name} failed: {why}" for name, why in found.failed.items()]
        raise SynthClipError("\n".join([*lines, "run the same command again to try these again"]))
