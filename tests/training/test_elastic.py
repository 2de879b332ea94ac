"""A training that is stopped goes on with another number of processes."""

from pathlib import Path

import pytest
from shape_runs import losses, train, with_training, write_images

from synthclip.recipe import Recipe
from synthclip.store import RunDirectory
from synthclip.training.job import build_trainer
from synthclip.training.stage import Train


def test_the_loss_goes_on_in_two_processes_as_it_would_have_in_one(
    tmp_path: Path, tiny_recipe: Recipe
) -> None:
    """There is one shard only, fewer than processes."""
    recipe = with_training(tiny_recipe, epochs=4)
    alone, grown = RunDirectory(tmp_path / "a"), RunDirectory(tmp_path / "b")
    for run in (alone, grown):
        write_images(run, 96, shards=1)
    train(recipe, alone)

    stage = Train(recipe, grown)
    trainer = build_trainer(stage, stage.shards()[0], lambda rows, figures: None, lambda: True)
    assert not trainer.fit()
    assert len(trainer.curve) == 10
    two = with_training(recipe, processes=2)
    grown.write_text("recipe.yaml", two.to_yaml())
    assert train(two, grown).rows == 24 * 16
    assert losses(grown) == pytest.approx(losses(alone), rel=1e-3)
    assert losses(grown)[:10] == losses(alone)[:10]


def test_a_batch_that_does_not_divide_is_refused(tiny_recipe: Recipe) -> None:
    with pytest.raises(ValueError, match=r"batch_size=16 is no multiple of processes=3"):
        with_training(tiny_recipe, processes=3)
