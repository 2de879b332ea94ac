"""A training that is stopped goes on with another number of processes."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from shape_runs import in_processes, losses, train, twin_runs, weights, with_training

from synthclip.errors import SynthClipError
from synthclip.recipe import Recipe
from synthclip.run.store import RunDirectory
from synthclip.training import Train
from synthclip.training.job import build_trainer

pytestmark = pytest.mark.slow


def test_the_loss_goes_on_in_two_processes_as_it_would_have_in_one(
    tmp_path: Path, tiny_recipe: Recipe
) -> None:
    """There is one shard only, fewer than processes."""
    recipe = with_training(tiny_recipe, epochs=4)
    alone, grown = twin_runs(tmp_path, shards=1)
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


def test_a_killed_process_ends_all_and_the_same_command_goes_on(tmp_path: Path, tiny_recipe: Recipe) -> None:
    two = with_training(tiny_recipe, epochs=5, processes=2, checkpoint_steps=5)
    undisturbed, killed = twin_runs(tmp_path)
    killed.write_text("recipe.yaml", two.to_yaml())
    stage = Train(two, undisturbed)
    shard = stage.shards()[0]
    in_processes(2, lambda rank: build_trainer(stage, shard, lambda rows, figures: None, lambda: False).fit())
    train(with_training(two, processes=1), undisturbed)  # writes what the two have made
    killer = threading.Thread(target=kill_second_process, args=(two, killed))
    killer.start()
    with pytest.raises(SynthClipError, match=r"a training process died .*: the same command resumes"):
        train(two, killed)
    killer.join()
    train(two, killed)
    assert losses(killed) == losses(undisturbed)
    assert weights(killed) == weights(undisturbed)


def kill_second_process(recipe: Recipe, run: RunDirectory) -> None:
    """SIGKILL it once a checkpoint is there."""
    stage = Train(recipe, run)
    partial = stage.partial(stage.shards()[0])
    while not list(partial.glob("step-*.pt")):
        time.sleep(0.01)
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (process / "cmdline").read_bytes().split(b"\0")
            variables = (process / "environ").read_bytes().split(b"\0")
            if str(run.path).encode() in command and b"RANK=1" in variables:
                os.kill(int(process.name), signal.SIGKILL)


def test_processes_that_do_not_share_the_batch_evenly_are_refused_in_one_line(
    run: RunDirectory, tiny_recipe: Recipe
) -> None:
    run.write_text("recipe.yaml", with_training(tiny_recipe, batch_size=15).to_yaml())
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["-m", "synthclip.training.job", str(run.path)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode != 0
    assert "training.batch_size=15 is no multiple of the 2 processes" in result.stdout
    assert "Traceback" not in result.stdout
