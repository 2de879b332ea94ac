"""Commands that make a run, one for each stage, and that show how it stands."""

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from synthclip.errors import SynthClipError

if TYPE_CHECKING:
    from rich.console import Console

    from synthclip.plan import Plan
    from synthclip.recipe import Recipe

RecipeArgument = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE",
        help="A bundled recipe (demo, laptop, one-gpu, synthci-30m), a YAML file, or a run directory.",
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Override a recipe value, such as captions.per_concept=4."),
]
Out = Annotated[
    Path | None, typer.Option("--out", metavar="DIR", help="The run directory; default: runs/<recipe>.")
]
Trust = Annotated[bool, typer.Option("--trust", help="Allow code and addresses that the recipe names.")]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")]

_MAX_NAMED = 10
_TABLE_WIDTH = 120


def run_all(
    recipe: RecipeArgument, overrides: Overrides = None, out: Out = None, trust: Trust = False
) -> None:
    """Run every stage; finished shards are skipped."""
    from synthclip.run.pipeline import STAGES

    run_stages(recipe, overrides, out, tuple(STAGES), trust)


def stage_command(name: str) -> Callable[..., None]:
    """The command that runs one stage."""

    def command(
        recipe: RecipeArgument, overrides: Overrides = None, out: Out = None, trust: Trust = False
    ) -> None:
        run_stages(recipe, overrides, out, (name,), trust)

    return command


def run_stages(
    recipe: str, overrides: list[str] | None, out: Path | None, stages: tuple[str, ...], trust: bool
) -> None:
    """What `run` and every stage's command do."""
    from synthclip.run.pipeline import run

    resolved, directory = read_recipe(recipe, overrides, out, trust)
    with stoppable():
        run(resolved, directory, stages=stages)
    if "report" in stages:
        typer.echo(directory / "report.html")


def read_recipe(
    recipe: str, overrides: list[str] | None, out: Path | None, trust: bool
) -> tuple["Recipe", Path]:
    """The resolved recipe, and the run directory meant."""
    from synthclip.recipe import load_recipe
    from synthclip.run.store import RunDirectory

    if Path(recipe).is_dir():
        RunDirectory(recipe).check_version()
    resolved = load_recipe(recipe, overrides or [], trust=trust)
    if out is None:
        out = Path(recipe) if Path(recipe).is_dir() else Path("runs") / resolved.name
    return resolved, out


def verify(
    directory: RunArgument,
    repair: Annotated[bool, typer.Option("--repair", help="Make damaged shards again.")] = False,
    trust: Trust = False,
) -> None:
    """Compare the files of a run with their checksums."""
    from synthclip.run import verify as check
    from synthclip.run.progress import Console

    console = Console()
    with console.tasks() as tasks:
        damaged = check.verify(directory, tasks)
    for damage in damaged:
        typer.echo(f"{damage.path}: {damage.problem}")
    typer.echo(f"damaged files: {len(damaged)}" if damaged else "every file is as it was written")
    if damaged and not repair:
        raise SynthClipError(f"{directory}: damaged: run `synthclip verify {directory} --repair`")
    if damaged:
        with stoppable():
            check.repair(directory, damaged, console, trust=trust)


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Ctrl-C, or a scheduler's SIGTERM, stops the work with one line and exit code 130."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        typer.echo("synthclip: stopped; run the same command again to resume", err=True)
        raise typer.Exit(130) from None


def table_console() -> "Console":
    """For tables, whose cells may hold a stranger's text: brackets in it are no markup."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else 160
    return Console(width=width, highlight=False, markup=False, emoji=False, soft_wrap=True)


def captions(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    out: Out = None,
    fill: Annotated[
        bool, typer.Option("--fill", help="Write more captions for concepts that have too few.")
    ] = False,
    at_least: Annotated[
        int | None,
        typer.Option("--at-least", metavar="N", min=1, help="With --fill: matched captions per concept."),
    ] = None,
    concepts: Annotated[
        Path | None,
        typer.Option("--concepts", metavar="FILE", help="With --fill: only these concepts, one per line."),
    ] = None,
    rounds: Annotated[
        int,
        typer.Option("--rounds", metavar="N", min=1, help="With --fill: at most N rounds."),
    ] = 5,
    trust: Trust = False,
) -> None:
    """Write captions with the language model."""
    if not fill:
        if at_least is not None or concepts is not None:
            raise SynthClipError("--at-least and --concepts need --fill")
        run_stages(recipe, overrides, out, ("captions",), trust)
        return
    from synthclip.textgen.captions import fill as fill_concepts

    resolved, directory = read_recipe(recipe, overrides, out, trust)
    with stoppable():
        found = fill_concepts(resolved, directory, at_least=at_least, concepts=concepts, rounds=rounds)
    covered = found.concepts - len(found.lacking)
    typer.echo(
        f"{covered} of {found.concepts} concepts have {at_least or resolved.captions.per_concept} or more "
        f"matched captions; {found.asked} more captions requested"
    )
    for label, names in (("still too few", sorted(found.lacking)), ("not in the bank", found.unknown)):
        if names:
            more = ", …" if len(names) > _MAX_NAMED else ""
            typer.echo(f"{label}: {', '.join(names[:_MAX_NAMED])}{more} ({len(names)})")


def train(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    out: Out = None,
    gpus: Annotated[int | None, typer.Option(metavar="N", min=1, help="GPUs per node.")] = None,
    trust: Trust = False,
) -> None:
    """Train CLIP; resumes from the last checkpoint.

    On several nodes: engine.kind=slurm training.nodes=4 --gpus 8 (or engine.kind=ray). To start the nodes
    yourself, put the run on a shared file system, run this on each node, then `synthclip train RUN`:

    \b
    torchrun --nnodes=4 --nproc-per-node=8 --rdzv-backend=c10d \\
      --rdzv-endpoint=FIRST_NODE:29400 -m synthclip.training.job RUN
    """
    processes = [] if gpus is None else [f"training.processes={gpus}"]
    run_stages(recipe, [*(overrides or []), *processes], out, ("train",), trust)


def status(
    directory: RunArgument,
    json: Annotated[bool, typer.Option("--json", help="Print it as JSON, for other programs.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Keep showing it, until Ctrl-C.")] = False,
    trust: Trust = False,
) -> None:
    """Show a run: its stages, what goes on, the next command."""
    from json import dumps

    from synthclip.run.pipeline import status as status_of
    from synthclip.run.progress import Console

    if json:
        typer.echo(dumps(status_of(directory, trust=trust).plain(), indent=1))
    elif not watch:
        found = status_of(directory, trust=trust)
        Console(sys.stdout).status(found)
        if found.tokens:
            from synthclip.recipe import load_saved_recipe
            from synthclip.textgen.spending import spent_and_planned

            bank = next(state for state in found.stages if state.stage == "concepts")
            recipe = load_saved_recipe(directory, trust=trust)
            typer.echo(f"language model: {spent_and_planned(recipe, bank.rows, found.tokens)}")
        if found.vision_tokens:
            from synthclip.textgen.spending import said_of

            typer.echo(f"vision model: {said_of(found.vision_tokens)}")
    elif sys.stdout.isatty():
        Console(sys.stdout).watch(lambda: status_of(directory, trust=trust))
    else:
        raise SynthClipError("--watch needs a terminal; `synthclip status RUN --json` is for programs")


def show(
    recipe: Annotated[
        str | None,
        typer.Argument(metavar="RECIPE", help="A bundled recipe, a YAML file, or a run directory."),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE", help="Override a value; with --explain also KEY, to show it alone."
        ),
    ] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Say what each value means; without RECIPE, of all recipes.")
    ] = False,
    schema: Annotated[bool, typer.Option("--schema", help="Print a JSON schema of recipes.")] = False,
    trust: Trust = False,
) -> None:
    """Print the resolved recipe with every value."""
    words = [*([recipe] if recipe is not None else []), *(overrides or [])]
    if schema:
        import json

        from synthclip.recipe.reference import json_schema

        typer.echo(json.dumps(json_schema(), indent=1))
    elif explain:
        from synthclip.recipe.reference import explained

        typer.echo(explained(words, trust=trust, width=min(100, table_console().width)))
    elif recipe is None:
        raise SynthClipError(
            "show needs a RECIPE, such as demo; `synthclip show --explain` lists what recipes hold"
        )
    else:
        from synthclip.recipe import inspect_recipe

        typer.echo(inspect_recipe(recipe, overrides or [], trust=trust).to_yaml(), nl=False)


def plan(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    devices: Annotated[
        str | None,
        typer.Option(metavar="NxNAME", help="Such as 8xA100 or 16xcpu; default: this machine's."),
    ] = None,
    price: Annotated[float | None, typer.Option(metavar="N", min=0, help="Price of a device-hour.")] = None,
    concepts: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Size of the concept bank, if not on disk.")
    ] = None,
    llm_params: Annotated[
        float | None, typer.Option(metavar="N", min=1, help="Language model parameters, such as 7e9.")
    ] = None,
    image_flops: Annotated[
        float | None, typer.Option(metavar="N", min=1, help="FLOPs per image, such as 80e12.")
    ] = None,
    probe: Annotated[
        bool, typer.Option("--probe", help="First measure speed on this machine (about a minute).")
    ] = False,
    target: Annotated[
        str | None,
        typer.Option(metavar="FIGURE=VALUE", help="What a figure takes, such as zero_shot/top1=0.35."),
    ] = None,
    from_: Annotated[
        Path | None, typer.Option("--from", metavar="SWEEP", help="For --target: a folder of `scaling`.")
    ] = None,
    trust: Trust = False,
) -> None:
    """Estimate time, disk and cost."""
    from synthclip.plan import make_plan
    from synthclip.recipe import load_recipe
    from synthclip.run.pipeline import check
    from synthclip.run.store import RunDirectory
    from synthclip.training.flops import devices_here, parse_devices

    if (target is None) != (from_ is None):
        raise SynthClipError("--target FIGURE=VALUE and --from SWEEP go together")
    resolved = load_recipe(recipe, overrides or [], trust=trust)
    where = devices_here() if devices is None else parse_devices(devices)
    rates = None
    if probe:
        from synthclip.plan.probe import measure

        rates = measure(resolved, report=lambda line: typer.echo(line, err=True))
    made = make_plan(
        resolved,
        where,
        concepts=concepts,
        llm_params=llm_params,
        image_flops=image_flops,
        price=price,
        rates=rates,
    )
    if concepts is None:  # then the recipe's files are here
        check(resolved, RunDirectory(Path("runs") / resolved.name))
    show_plan(made)
    if target is not None and from_ is not None:
        from synthclip.sweeps.target import needed, needed_table

        found = needed(from_, target)
        console = table_console()
        console.print()
        console.print(needed_table(found, made))
        for line in (str(found.law), *found.warnings(resolved)):
            console.print(line, soft_wrap=True)


def show_plan(plan: "Plan") -> None:
    from rich.table import Table

    from synthclip.run.progress import duration

    table = Table(box=None, pad_edge=False, title=f"on {plan.devices}", title_justify="left")
    for column in ("stage", "makes"):
        table.add_column(column)
    for column in ("device-hours", "wall", "disk", *(["cost"] if plan.costs is not None else []), "by"):
        table.add_column(column, justify="right")
    for stage in plan.stages:
        cost = plan.cost(stage)
        table.add_row(
            stage.stage,
            stage.makes,
            f"{stage.device_s / 3600:,.2f}",
            duration(stage.wall_s),
            _bytes(stage.disk_bytes),
            *([f"{cost or 0:,.2f}"] if plan.costs is not None else []),
            stage.basis,
        )
    table.add_section()
    table.add_row(
        "all",
        "",
        f"{plan.device_hours:,.2f}",
        duration(plan.wall_s),
        _bytes(plan.disk_bytes),
        *([f"{plan.costs:,.2f}"] if plan.costs is not None else []),
    )
    console = table_console()
    console.width = max(console.width, _TABLE_WIDTH)  # a row that is cut cannot be compared
    console.print(table)
    for note in plan.notes:
        console.print(f"\nnote: {note}")
    console.print("\nassumed:", *(f"\n- {assumption}" for assumption in plan.assumptions), sep="")


def _bytes(count: float) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 1e3:.0f} kB"
