"""FSDP trains as one process does, holds less in each, and goes on from the same checkpoints."""

from pathlib import Path
from typing import Any

import pytest
import torch
from shape_runs import in_processes, twin_runs, with_training, write_heldout, write_images
from torch import Tensor
from torch.distributed.tensor import DTensor

from synthclip.recipe import Recipe
from synthclip.run.store import RunDirectory
from synthclip.training import Train
from synthclip.training.checkpoint import Checkpoints
from synthclip.training.job import build_trainer

pytestmark = pytest.mark.slow

SMOOTH = {"eps": 1e-3}
"""With the usual eps, Adam makes steps of full length of gradients that are zero but for rounding."""


def fit(recipe: Recipe, run: RunDirectory, processes: int = 1, stop: bool = False) -> dict[str, Any]:
    """Train, to the end or to the first look whether to stop; the state that was saved."""
    stage = Train(recipe, run)
    if processes == 1:
        build_trainer(stage, stage.shards()[0], lambda rows, figures: None, lambda: stop).fit()
    else:
        in_processes(processes, lambda rank: _member(stage, rank, stop))
    state = Checkpoints(stage.partial(stage.shards()[0]), keep=1).latest()
    assert state is not None
    return state


def _member(stage: Train, rank: int, stop: bool) -> None:
    trainer = build_trainer(stage, stage.shards()[0], lambda rows, figures: None, lambda: stop)
    trainer.fit()
    held = _held(trainer.model.parameters()) + _held(
        value for values in trainer.optimizer.state.values() for value in values.values()
    )
    stage.run.write_text(f"held-{rank}.txt", str(held))


def _held(tensors: Any) -> int:
    """The elements that lie in this process."""
    return sum((t.to_local() if isinstance(t, DTensor) else t).numel() for t in tensors)


@pytest.fixture
def recipe(tiny_recipe: Recipe) -> Recipe:
    """Blocks that are not the last, and sizes that two processes do not share evenly."""
    vision = tiny_recipe.model.vision.model_copy(update={"layers": 2})
    text = tiny_recipe.model.text.model_copy(update={"layers": 2})
    model = tiny_recipe.model.model_copy(update={"vision": vision, "text": text, "embed_dim": 15})
    return with_training(tiny_recipe.model_copy(update={"model": model}), epochs=1, **SMOOTH)


def tensors(state: dict[str, Any]) -> dict[str, Tensor]:
    """Weights, averages and the optimiser's moments, by name."""
    found = {f"model.{name}": value for name, value in state["model"].items()}
    found |= {f"average.{name}": value for name, value in (state["average"] or {}).items()}
    for number, values in state["optimizer"]["state"].items():
        found |= {f"optimizer.{number}.{name}": value for name, value in values.items()}
    return found


@pytest.mark.parametrize(
    ("values", "processes"),
    [
        ({}, 1),
        ({"loss": "siglip", "micro_batch": 3, "ema_decay": 0.9, "max_grad_norm": 0.1}, 1),
        ({"precision": "bf16"}, 2),  # rounds so much that another split of the batch is another training
        ({"precision": "fp16"}, 2),
    ],
    ids=["clip", "siglip in parts", "bf16", "fp16"],
)
def test_fsdp_trains_as_the_whole_model_does(
    run: RunDirectory, recipe: Recipe, values: dict[str, Any], processes: int
) -> None:
    if values.get("loss") == "siglip":
        recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update={"logit_bias": -10.0})})
    recipe = with_training(recipe, **values)
    sharded = fit(with_training(recipe, parallel="fsdp"), run, processes=2)
    held = [int((run.path / f"held-{rank}.txt").read_text()) for rank in range(2)]
    Train(recipe, run).partial(Train(recipe, run).shards()[0]).rename(run.path / "sharded")
    one = fit(recipe, run, processes)
    torch.testing.assert_close(tensors(sharded), tensors(one), rtol=1e-5, atol=1e-5)
    every = sum(value.numel() for value in tensors(one).values())
    averages = sum(value.numel() for value in (one["average"] or {}).values())
    assert max(held) < 0.51 * (every - averages)


def test_a_stopped_training_goes_on_with_and_without_fsdp(tmp_path: Path, recipe: Recipe) -> None:
    recipe = with_training(recipe, epochs=2.5, batch_size=12, ema_decay=0.9, checkpoint_steps=4)
    undisturbed, stopped = twin_runs(tmp_path)
    expected = fit(recipe, undisturbed)
    sharded = with_training(recipe, parallel="fsdp")
    legs = [(sharded, 2), (recipe, 1), (sharded, 3), (recipe, 2)]
    for number, (leg, processes) in enumerate(legs, 1):
        assert fit(leg, stopped, processes, stop=True)["step"] == 4 * number
    got = fit(recipe, stopped)
    assert got["step"] == got["steps"] == 20
    torch.testing.assert_close(got["curve"][:, :4], expected["curve"][:, :4], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(tensors(got), tensors(expected), rtol=1e-4, atol=1e-5)


def test_the_best_weights_are_kept_under_fsdp(tmp_path: Path, recipe: Recipe) -> None:
    recipe = with_training(recipe, ema_decay=0.7, eval={"every_epochs": 1})
    bests = []
    for name, leg, processes in [("a", recipe, 1), ("b", with_training(recipe, parallel="fsdp"), 2)]:
        run = RunDirectory(tmp_path / name)
        write_images(run, 96)
        write_heldout(run, 36)
        bests.append(fit(leg, run, processes)["best"])
    torch.testing.assert_close(*bests, rtol=1e-5, atol=1e-5)
