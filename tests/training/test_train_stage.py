"""The train stage: what it writes loads in open_clip, and a kill changes nothing."""

import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import open_clip
import pyarrow.parquet as pq
import pytest
import torch
from shape_runs import losses, train, weights, with_training, write_images

from synthclip.errors import SynthClipError
from synthclip.recipe import Recipe
from synthclip.store import RunDirectory
from synthclip.training.stage import Train


def test_the_model_loads_in_open_clip_and_gives_the_same_features(
    run: RunDirectory, tiny_recipe: Recipe
) -> None:
    outcome = train(tiny_recipe, run)
    assert outcome.rows == 2 * 96
    assert not outcome.rejected
    folder = run.file("train", "model")
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(["a red circle"])
    assert preprocess.transforms[0].size == 32
    assert model.encode_text(tokens).shape == (1, 16)
    assert torch.isfinite(model.encode_image(torch.zeros(1, 3, 32, 32))).all()


def test_the_curve_has_a_row_a_step(run: RunDirectory, tiny_recipe: Recipe) -> None:
    train(tiny_recipe, run)
    curve = pq.read_table(run.file("train", "curve.parquet")).to_pydict()
    assert curve["step"] == list(range(12))
    assert curve["samples_seen"] == [16 * (step + 1) for step in range(12)]
    assert all(0 <= share <= 1 for share in curve["data_wait"])


def test_equal_inputs_give_equal_weights_for_any_number_of_data_threads(
    run: RunDirectory, tiny_recipe: Recipe
) -> None:
    train(tiny_recipe, run)
    first = weights(run)
    one = tiny_recipe.training.model_copy(update={"data_threads": 1})
    train(tiny_recipe.model_copy(update={"training": one}), run)
    assert weights(run) == first


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_training_goes_on_to_the_same_weights(
    tmp_path: Path, tiny_recipe: Recipe, how: signal.Signals
) -> None:
    torch.set_num_threads(1)
    recipe = with_training(tiny_recipe, epochs=20, checkpoint_minutes=1e-4)
    undisturbed, killed = RunDirectory(tmp_path / "a"), RunDirectory(tmp_path / "b")
    for run in (undisturbed, killed):
        write_images(run, 96)
    train(recipe, undisturbed)
    folder = Train(recipe, killed).partial(Train(recipe, killed).shards()[0])
    moments = random.Random(0)
    for _ in range(4):
        process = multiprocessing.get_context("fork").Process(target=train, args=(recipe, killed))
        process.start()
        before = set(folder.glob("step-*.pt"))
        while process.is_alive() and set(folder.glob("step-*.pt")) <= before:
            time.sleep(0.005)
        time.sleep(moments.uniform(0, 0.05))
        os.kill(process.pid or 0, how)
        process.join()
    assert killed.manifest("train", "all") is None
    assert list(folder.glob("step-*.pt"))
    train(recipe, killed)
    assert weights(killed) == weights(undisturbed)
    assert losses(killed) == losses(undisturbed)


def test_corrupt_images_are_counted_and_passed_over(tmp_path: Path, tiny_recipe: Recipe) -> None:
    run = RunDirectory(tmp_path)
    write_images(run, 96, damage=lambda row: row % 20 == 3)
    outcome = train(with_training(tiny_recipe, max_bad_share=0.1), run)
    assert dict(outcome.rejected) == {"undecodable image": 5}
    with pytest.raises(SynthClipError, match=r"undecodable image.*max_bad_share"):
        train(with_training(tiny_recipe, max_bad_share=0.01), run)


def test_a_loss_that_is_not_finite_stops_with_the_step(run: RunDirectory, tiny_recipe: Recipe) -> None:
    with pytest.raises(SynthClipError, match=r"loss is nan at step \d+"):
        train(with_training(tiny_recipe, lr=1e30, lr_start=1e30), run)
