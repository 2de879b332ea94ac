"""Commands that train."""

from typing import Annotated

import typer

from synthclip.cli.core import Out, Overrides, RecipeArgument, run_stages


def register(app: typer.Typer) -> None:
    app.command()(train)


def train(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    out: Out = None,
    gpus: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Train on so many GPUs of each node, one process each."),
    ] = None,
) -> None:
    """Train CLIP on the shards; what was stopped goes on from its last checkpoint.

    Several nodes: `engine.kind=slurm training.nodes=4 --gpus 8` asks SLURM for them, `engine.kind=ray` the
    Ray cluster. Or start them yourself, with the run where all see it, one command a node;
    `synthclip train RUN` then writes the model:

    torchrun --nnodes=4 --nproc-per-node=8 --rdzv-backend=c10d --rdzv-endpoint=FIRST_NODE:29400
    -m synthclip.training.worker RUN
    """
    asked = [] if gpus is None else [f"training.processes={gpus}"]
    run_stages(recipe, [*(overrides or []), *asked], out, ("train",))
