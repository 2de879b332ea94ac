"""Figures reach every logger, and a training that goes on writes to the same run."""

import re
import sys
from pathlib import Path

import pytest
from shape_runs import train, with_training

from synthclip.errors import SynthClipError, install_command
from synthclip.recipe import Recipe
from synthclip.recipe.training import LoggerName
from synthclip.run.store import RunDirectory
from synthclip.training import Train
from synthclip.training.job import build_trainer
from synthclip.training.logs import Logs


def stop_and_go_on(recipe: Recipe, run: RunDirectory) -> str:
    """Train in two goes, stopped after ten of the twelve steps; the id that loggers know the run by."""
    stage = Train(recipe, run)
    [shard] = stage.shards()
    assert not build_trainer(stage, shard, lambda rows, figures: None, lambda: True).fit()
    train(recipe, run)
    return stage.fingerprint(shard)[:12]


def test_figures_go_to_metrics_and_tensorboard(
    run: RunDirectory, tiny_recipe: Recipe, caplog: pytest.LogCaptureFixture
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run_id = stop_and_go_on(with_training(tiny_recipe, loggers=("tensorboard",)), run)
    lines = [line for line in run.metrics() if line["event"] == "train"]
    assert [line["step"] for line in lines] == [10, 12]
    assert {"loss", "lr", "samples/s", "data_wait", "epoch", "logit_scale", "eta_s"} <= lines[0].keys()
    assert lines[1]["logit_scale"] == pytest.approx(1 / 0.07, rel=0.1)
    begun = [line for line in run.metrics() if line["event"] == "training"]
    assert [(line["step"], line["steps"]) for line in begun] == [(0, 12), (10, 12)]
    assert [record.getMessage() for record in caplog.records] == ["resuming from step 10 of 12"]
    events = EventAccumulator(str(run.path / "logs/tensorboard" / run_id)).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [10, 12]
    values = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    assert b"training.lr" in values
    assert events.Scalars("train/loss")[-1].value == pytest.approx(lines[-1]["loss"])


def test_wandb_keeps_the_run_where_there_is_no_network(
    run: RunDirectory, tiny_recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two goes are two files with one id, which `wandb sync` brings together."""
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    run_id = stop_and_go_on(with_training(tiny_recipe, loggers=("wandb",)), run)
    logged = [path.read_bytes() for path in run.path.glob(f"logs/wandb/offline-run-*/run-{run_id}.wandb")]
    assert len(logged) == 2
    lines = [line for line in run.metrics() if line["event"] == "train"]
    for line in lines:
        assert any(b"train/loss" in file and str(line["loss"]).encode() in file for file in logged)


def test_trackio_goes_on_with_the_same_run(
    run: RunDirectory, tiny_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # it reads this when it is imported
    pytest.importorskip("trackio")
    from trackio.sqlite_storage import SQLiteStorage

    run_id = stop_and_go_on(with_training(tiny_recipe, loggers=("trackio",)), run)
    logged = SQLiteStorage.get_logs("synthclip", f"run-{run_id}")
    lines = [line for line in run.metrics() if line["event"] == "train"]
    assert [(line["step"], line["train/loss"]) for line in logged] == [
        (line["step"], line["loss"]) for line in lines
    ]


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_logger_that_is_not_installed_names_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: LoggerName
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(SynthClipError, match=re.escape(f"not installed: {install_command(name)}")):
        Logs((name,), RunDirectory(tmp_path), "id")
