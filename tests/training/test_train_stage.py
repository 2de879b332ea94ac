"""The train stage: what it writes loads in open_clip, and a kill changes nothing."""

import math
import multiprocessing
import os
import pickle
import random
import signal
import subprocess
import time
from pathlib import Path

import open_clip
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from shape_runs import losses, train, twin_runs, weights, with_training, write_images

from synthclip.errors import SynthClipError
from synthclip.recipe import Recipe
from synthclip.recipe.training import ModelConfig
from synthclip.run.store import RunDirectory
from synthclip.training import Train
from synthclip.training.checkpoint import Checkpoints, load
from synthclip.training.job import build_trainer

pytestmark = pytest.mark.slow


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


VISION = {"image_size_px": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size_px": 8}


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_training_goes_on_to_the_same_weights(
    tmp_path: Path, tiny_recipe: Recipe, how: signal.Signals
) -> None:
    torch.set_num_threads(1)
    random_model = {**tiny_recipe.model.model_dump(), "vision": {**VISION, "patch_dropout": 0.5}}
    tiny_recipe = tiny_recipe.model_copy(update={"model": ModelConfig.model_validate(random_model)})
    recipe = with_training(tiny_recipe, epochs=20, checkpoint_minutes=1e-4, ema_decay=0.9)
    undisturbed, killed = twin_runs(tmp_path)
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


def test_a_loss_that_is_not_finite_stops_with_the_step_or_is_skipped_and_counted(
    run: RunDirectory, tiny_recipe: Recipe
) -> None:
    """At this rate the weights overflow at once."""
    with pytest.raises(SynthClipError, match=r"loss is nan at step \d+"):
        train(with_training(tiny_recipe, lr=1e30, lr_start=1e30), run)
    outcome = train(with_training(tiny_recipe, lr=1e30, lr_start=1e30, on_bad_loss="skip"), run)
    assert outcome.rejected["step with a loss that is not finite"] > 5


def test_checkpoints_come_each_so_many_steps(run: RunDirectory, tiny_recipe: Recipe) -> None:
    recipe = with_training(tiny_recipe, checkpoint_steps=5, keep_checkpoints=9)
    stage = Train(recipe, run)
    shard = stage.shards()[0]
    assert build_trainer(stage, shard, lambda rows, figures: None, lambda: False).fit()
    steps = [path.name for path in sorted(stage.partial(shard).glob("step-*.pt"))]
    assert steps == ["step-000000005.pt", "step-000000010.pt", "step-000000012.pt"]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_learns_as_single_does(run: RunDirectory, tiny_recipe: Recipe, precision: str) -> None:
    recipe = with_training(tiny_recipe, epochs=4)
    train(recipe, run)
    single = losses(run)
    train(with_training(recipe, precision=precision), run)
    half = losses(run)
    assert half != single
    assert half[0] == pytest.approx(single[0], rel=0.01)
    # With fp16 the first steps only find the scale of the loss.
    assert sum(half[-6:]) == pytest.approx(sum(single[-6:]), rel=0.15)


@pytest.mark.skipif("SYNTHCLIP_COMPILE" not in os.environ, reason="a minute of a C++ compiler")
def test_a_compiled_model_learns_as_the_plain_one_does(run: RunDirectory, tiny_recipe: Recipe) -> None:
    text = tiny_recipe.model.text.model_copy(update={"context_length": 8})  # one length: compiled once
    model = tiny_recipe.model.model_copy(update={"text": text})
    recipe = with_training(tiny_recipe.model_copy(update={"model": model}), epochs=1)
    train(recipe, run)
    plain = losses(run)
    train(with_training(recipe, compile=True), run)
    assert losses(run) == pytest.approx(plain, rel=1e-3)


def logit_scale(run: RunDirectory) -> float:
    return float(load_file(run.file("train", "model/open_clip_model.safetensors"))["logit_scale"])


def test_the_model_kept_is_the_average_of_the_weights(run: RunDirectory, tiny_recipe: Recipe) -> None:
    """With a decay near 1 the average stays where the weights began; with one near 0 it follows them."""
    scales = {}
    for decay in (1e-9, 0.5, 1 - 1e-9):
        train(with_training(tiny_recipe, ema_decay=decay, lr=0.05), run)
        scales[decay] = logit_scale(run)
    train(with_training(tiny_recipe, lr=0.05), run)
    last = logit_scale(run)
    first = math.log(1 / 0.07)
    assert scales[1 - 1e-9] == pytest.approx(first, abs=1e-5)
    assert scales[1e-9] == pytest.approx(last, abs=1e-5)
    assert min(first, last) < scales[0.5] < max(first, last)


def test_a_full_disk_leaves_the_earlier_checkpoint_whole(tmp_path: Path) -> None:
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this sandbox mounts no tmpfs")
    try:
        checkpoints = Checkpoints(tmp_path / "partial", keep=2)
        checkpoints.save(1, {"weights": torch.ones(500_000)})
        checkpoints.save(2, {"weights": torch.zeros(500_000)})
        with pytest.raises(SynthClipError, match="no space left on the disk"):
            checkpoints.finish()
        latest = checkpoints.latest()
        assert latest is not None
        assert latest["step"] == 1
        assert latest["weights"].sum() == 500_000
        assert [path.name for path in (tmp_path / "partial").iterdir()] == ["step-000000001.pt"]
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=3)
    for step in (1, 2):
        checkpoints.save(step, {"weights": torch.full((9,), float(step))})
    checkpoints.finish()
    newest = tmp_path / "step-000000002.pt"
    newest.write_bytes(newest.read_bytes()[:300])
    latest = checkpoints.latest()
    assert latest is not None
    assert latest["step"] == 1
    newest.write_bytes(pickle.dumps(print))
    with pytest.raises(SynthClipError, match="not a checkpoint that can be read"):
        load(newest)
