"""Commands that judge models, and that look at single images of a run."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from synthclip.cli.pipeline import Out, Overrides, RunArgument, Trust, run_stages, table_console
from synthclip.errors import SynthClipError, needs_extra

if TYPE_CHECKING:
    from synthclip.evaluation.paper import Row
    from synthclip.training.parallel import Group

Judged = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE|MODEL",
        help="A recipe or run (its held-out data). With --suite: a run, an open_clip folder or NAME:TAG, an "
        "official checkpoint, or hf-hub:ORG/REPO.",
    ),
]
Suite = Annotated[
    str | None,
    typer.Option("--suite", metavar="NAME", help="paper, quick, robustness, or data sets, comma-separated."),
]
Data = Annotated[Path | None, typer.Option("--data", metavar="ROOT", help="The folder of the data sets.")]
Against = Annotated[
    list[str] | None,
    typer.Option(
        "--against", metavar="ROW", help="Compare with a row of the paper or a results.parquet; repeatable."
    ),
]
Templates = Annotated[
    str | None,
    typer.Option(
        "--templates",
        metavar="NAME",
        help="Zero-shot prompts: own, imagenet-7, imagenet-80, a FILE of prompts, or 'a {}; the {}'.",
    ),
]
Download = Annotated[bool, typer.Option("--download", help="Download missing data sets into ROOT.")]
Cache = Annotated[
    Path | None,
    typer.Option("--cache", metavar="DIR", help="Feature cache; default: ~/.cache/synthclip."),
]
BatchSize = Annotated[int, typer.Option("--batch-size", metavar="N", min=1, help="Images per batch.")]
Episodes = Annotated[int, typer.Option("--episodes", metavar="N", min=2, help="Few-shot episodes.")]
Gpus = Annotated[
    int | None,
    typer.Option("--gpus", metavar="N", min=1, help="With --suite: GPUs, a process each; default: all here."),
]
Key = Annotated[str, typer.Argument(metavar="KEY", help="The image's key: its name in the tar without .jpg.")]


def evaluate(
    judged: Judged,
    overrides: Overrides = None,
    out: Out = None,
    suite: Suite = None,
    data: Data = None,
    against: Against = None,
    templates: Templates = None,
    download: Download = False,
    cache: Cache = None,
    batch_size: BatchSize = 64,
    episodes: Episodes = 5000,
    gpus: Gpus = None,
    trust: Trust = False,
) -> None:
    """Evaluate on held-out data; with --suite on public data sets."""
    if suite is None and data is None:
        if gpus is not None:
            raise SynthClipError("--gpus needs --suite: held-out data are judged by one process")
        run_stages(judged, overrides, out, ("eval",), trust)
        return
    if data is None or overrides:
        raise SynthClipError(
            "--suite needs --data ROOT"
            if data is None
            else f"{overrides[0] if overrides else ''}: --suite takes no overrides of a recipe"
        )

    import torch

    from synthclip.evaluation.evaluators import Settings, parse_templates
    from synthclip.evaluation.paper import find_row
    from synthclip.evaluation.suites import open_suite

    suite = suite or "paper"
    prompts = None if templates is None else parse_templates(templates)
    rows = [find_row(name) for name in against or []]
    judge = partial(
        _judge,
        judged,
        suite,
        rows,
        data=data,
        out=out,
        cache=cache,
        download=download,
        batch_size=batch_size,
        settings=Settings(prompts, episodes),
    )
    processes = gpus or torch.cuda.device_count()
    if processes <= 1:
        judge()
        return
    from synthclip.training.shared import in_processes

    open_suite(suite, data, download=download)  # the processes find it there
    in_processes(processes, judge)


def _judge(
    judged: str, suite: str, rows: "Sequence[Row]", group: "Group | None" = None, **options: Any
) -> None:
    """Evaluate a model on a suite, by itself or as one process of a group, and print what was found."""
    from synthclip.evaluation.paper import COVERS, delta_lines, results_table
    from synthclip.evaluation.suites import evaluate as evaluate_model
    from synthclip.run.progress import Console as ProgressConsole

    if group is not None:
        from synthclip.training.shared import SharedFeatures

        options["make_features"] = partial(SharedFeatures, group)
        if group.rank > 0:
            evaluate_model(judged, suite, **options)
            return
    with ProgressConsole().tasks() as tasks:
        found = evaluate_model(judged, suite, **options, tasks=tasks)
    console = table_console()
    console.print(results_table(found.results, rows))
    for line in (COVERS, *delta_lines(found.results, rows), *found.notes, *found.missing):
        console.print(line, soft_wrap=True)
    console.print(found.files, soft_wrap=True)
    if found.failed:
        raise SynthClipError("; ".join(found.failed))


def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Run directories, the base first.")],
) -> None:
    """Compare runs with the first: recipe, data, results."""

    from synthclip.evaluation.paper import difference_table, run_table
    from synthclip.evaluation.results import PAIRED, compare_figures, not_current

    base, *others = runs
    if not others:
        raise SynthClipError(f"{base}: name another run to compare with, or several")
    figures = {str(other): compare_figures(base, other) for other in others}
    console = table_console()
    console.print(run_table(runs))
    console.print(difference_table(figures))
    several = (f"p is not corrected for {len(others)} comparisons",) if len(others) > 1 else ()
    for line in (PAIRED, *several, *(line for run in runs for line in not_current(run))):
        console.print(line, soft_wrap=True)


def leaks(
    run: RunArgument,
    data: Annotated[Path, typer.Option("--data", metavar="ROOT", help="The folder of the data sets.")],
    suite: Annotated[str, typer.Option("--suite", metavar="NAME", help="As in `eval`.")] = "paper",
) -> None:
    """Find evaluation captions and images in the training data."""
    from synthclip.evaluation.leaks import find_leaks
    from synthclip.evaluation.suites import open_suite
    from synthclip.recipe import RECIPE_FILE, inspect_recipe
    from synthclip.run.store import RunDirectory
    from synthclip.training.tables import open_source

    if not (run / "balance").is_dir() and not (run / "images").is_dir():
        raise SynthClipError(f"{run}: no training captions or images: name a run directory")
    opened = open_suite(suite, data)
    sources = []
    if (run / RECIPE_FILE).is_file():
        training = inspect_recipe(run / RECIPE_FILE).training
        sources = [open_source(source, []) for source in training.sources if source.path]
    found = find_leaks(RunDirectory(run), [dataset for dataset, _ in opened.datasets.values()], sources)
    for leak in found:
        typer.echo(f"{leak.dataset} {leak.kind}: {leak.item!r} ~ training {leak.training!r} ({leak.detail})")
    for line in (*opened.failed, *opened.missing):
        typer.echo(line)
    others = f" and {len(sources)} other training sources" if sources else ""
    typer.echo(f"scanned: the run's captions and images{others}; not: what its models learned from")
    typer.echo(f"{len(found)} evaluation items are close to training data, of {', '.join(opened.datasets)}")


def weakest(
    run: RunArgument,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Write a concept list for `captions --fill`."),
    ] = None,
    classes: Annotated[int, typer.Option("--classes", metavar="N", min=1, help="How many to list.")] = 20,
) -> None:
    """List the classes with the lowest accuracy."""
    from synthclip.evaluation.results import class_table, concept_list, never_tested, weakest_classes
    from synthclip.run.store import disk_errors

    found = weakest_classes(run, classes)
    if out is not None:
        with disk_errors(out):
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(concept_list(found), encoding="utf-8")
    for weak in found:
        mistaken = f", mostly for {weak.confused_with}" if weak.confused_with else ""
        typer.echo(f"{weak.name} ({weak.dataset}): {weak.top1:.0%} of {weak.n} right{mistaken}")
    for dataset, count in never_tested(class_table(run)).items():
        typer.echo(f"{dataset}: {count} classes have no test image and are not judged")
    if out is not None:
        typer.echo(f"to write more captions: synthclip captions {run} --fill --concepts {out} --at-least N")


def repaint(
    directory: RunArgument,
    key: Key,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="The JPEG; default: KEY.jpg.")
    ] = None,
    trust: Trust = False,
) -> None:
    """Paint an image again and compare it with the run's."""
    from synthclip.imagegen.provenance import repaint as repaint_image

    repainted = repaint_image(directory, key, trust=trust)
    target = out or Path(f"{key}.jpg")
    target.write_bytes(repainted.jpeg)
    outcome = "same bytes" if repainted.same else "other bytes (another machine, model or version)"
    typer.echo(f"{target}: {outcome}; compared with {directory}")


def trace(directory: RunArgument, key: Key) -> None:
    """Show how an image was made: caption, concept, prompt, models."""
    from synthclip.imagegen.provenance import trace as trace_image

    for line in trace_image(directory, key).lines():
        typer.echo(line)


def view(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Run directories, or those of sweeps.")
    ],
    host: Annotated[
        str, typer.Option("--host", metavar="ADDRESS", help="Where to listen; elsewhere a token is needed.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", metavar="N", min=0, max=65535, help="0: any that is free.")
    ] = 8765,
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="MODEL", help="What to search images with (the run's own)."),
    ] = None,
) -> None:
    """Look at runs in a browser, also while they go on."""
    with needs_extra("view", "the explorer"):
        from synthclip.view.app import serve

    serve(
        runs,
        host=host,
        port=port,
        model=model,
        say=lambda address: typer.echo(f"{address}  (Ctrl-C stops it)"),
    )
