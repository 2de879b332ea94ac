"""What a run will take."""

from typing import TYPE_CHECKING, Annotated

import typer

from synthclip.cli.core import Overrides, RecipeArgument

if TYPE_CHECKING:
    from synthclip.plan.estimate import Plan


_TABLE_WIDTH = 120


def register(app: typer.Typer) -> None:
    app.command()(plan)


def plan(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    devices: Annotated[
        str | None,
        typer.Option(metavar="NxNAME", help="Such as 8xA100 or 16xcpu; this machine's unless given."),
    ] = None,
    price: Annotated[
        float | None, typer.Option(metavar="N", min=0, help="What an hour of one device costs.")
    ] = None,
    concepts: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Size of the bank, if its files are not here.")
    ] = None,
    llm_params: Annotated[
        float | None, typer.Option(metavar="N", min=1, help="Parameters of the language model, such as 7e9.")
    ] = None,
    image_flops: Annotated[
        float | None, typer.Option(metavar="N", min=1, help="FLOPs of painting one image, such as 80e12.")
    ] = None,
    probe: Annotated[
        bool, typer.Option("--probe", help="Measure for a minute on one device here first.")
    ] = False,
) -> None:
    """Say what a run will take, before anything is spent: device-hours, time, disk, money."""
    from synthclip.plan.estimate import make_plan
    from synthclip.recipe import load_recipe
    from synthclip.training.devices import devices_here, parse_devices

    resolved = load_recipe(recipe, overrides or [])
    where = devices_here() if devices is None else parse_devices(devices)
    rates = None
    if probe:
        from synthclip.plan.probe import measure

        rates = measure(resolved, tell=lambda line: typer.echo(line, err=True))
    made = make_plan(
        resolved,
        where,
        concepts=concepts,
        llm_params=llm_params,
        image_flops=image_flops,
        price=price,
        rates=rates,
    )
    _show(made)


def _show(plan: "Plan") -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, title=f"on {plan.devices}", title_justify="left")
    for column in ("stage", "makes"):
        table.add_column(column)
    for column in ("device-hours", "wall", "disk", *(["cost"] if plan.price is not None else []), "by"):
        table.add_column(column, justify="right")
    for stage in plan.stages:
        cost = plan.cost(stage)
        table.add_row(
            stage.stage,
            stage.makes,
            f"{stage.device_s / 3600:,.2f}",
            _duration(stage.wall_s),
            _bytes(stage.disk_bytes),
            *([f"{cost:,.2f}"] if cost is not None else []),
            stage.basis,
        )
    table.add_section()
    table.add_row(
        "all",
        "",
        f"{plan.device_hours:,.2f}",
        _duration(plan.wall_s),
        _bytes(plan.disk_bytes),
        *([f"{plan.device_hours * plan.price:,.2f}"] if plan.price is not None else []),
    )
    console = Console(highlight=False, soft_wrap=True)
    console.width = max(console.width, _TABLE_WIDTH)  # a row that is cut cannot be compared
    console.print(table)
    console.print(
        "\nassumed:", *(f"\n- {assumption}" for assumption in plan.assumptions), sep="", markup=False
    )


def _duration(seconds: float) -> str:
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def _bytes(count: float) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 1e3:.0f} kB"
