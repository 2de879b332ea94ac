"""What is said of a run while it goes on, and how it fits a terminal of 80 columns."""

import io
import json
import os
import pty
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
from rich.console import Console as RichConsole

from synthclip.recipe import load_recipe
from synthclip.recipe.section import differences
from synthclip.run import pipeline
from synthclip.run.engine import Done, Progress, Shard
from synthclip.run.live import activity
from synthclip.run.progress import Console
from synthclip.run.store import Outcome, RunDirectory


@pytest.fixture
def begun(tmp_path: Path) -> RunDirectory:
    """A run directory in which nothing is made yet."""
    run = RunDirectory(tmp_path / "run")
    with run.lock():
        run.write_text("recipe.yaml", load_recipe("demo").to_yaml())
    return run


def told(run: RunDirectory) -> str:
    stream = io.StringIO()
    Console(stream).status(pipeline.status(run.path))
    return stream.getvalue()


def train_until_step_60(run: RunDirectory) -> None:
    run.log(event="begin", stage="train", shards=1, total=1)
    run.log(event="training", step=40, steps=600)
    run.log(event="train", step=60, **{"loss": 0.32, "samples/s": 1200.0, "eta_s": 720})
    checkpoint = run.file("train", "partial/abc/step-000000060.pt")
    checkpoint.parent.mkdir(parents=True)
    checkpoint.touch()
    os.utime(checkpoint, (time.time() - 121, time.time() - 121))


def test_a_training_that_runs_says_its_step_loss_and_checkpoint(begun: RunDirectory) -> None:
    train_until_step_60(begun)
    with begun.lock():
        [line] = [line for line in told(begun).splitlines() if line.startswith("running (process ")]
        assert str(os.getpid()) in line
        assert "train, step 60 of 600, loss 0.32, samples/s 1200, " in line
        assert line.endswith("left, last checkpoint 2.0 min ago")
        plain = json.loads(json.dumps(pipeline.status(begun.path).plain()))
    assert plain["activity"]["done"] == 60
    assert plain["activity"]["rate_per_s"] == pytest.approx(540 / 720)
    after = told(begun)
    assert "stopped: train, step 60 of 600, loss 0.32" in after
    assert "left" not in after
    assert f"next: `synthclip run {begun.path}` makes concepts (1 of 1 shards), captions" in after


def test_rate_and_rest_of_a_stage_leave_its_start_up_out(begun: RunDirectory) -> None:
    lines = [{"event": "begin", "stage": "images", "shards": 6, "total": 8, "time": 0.0}]
    lines += [{"event": "shard", "stage": "images", "time": 600.0 + 60 * at} for at in range(3)]
    at = activity(begun.path, lines, now=730.0)
    assert at is not None
    assert (at.done, at.total, at.unit) == (5, 8, "shards")
    assert at.rate_per_s == pytest.approx(1 / 60)
    assert at.left_s == pytest.approx(3 * 60 - 10)
    assert activity(begun.path, [*lines, {"event": "stage", "stage": "images"}], now=730.0) is None


def test_the_last_error_is_shown_until_its_stage_is_made(begun: RunDirectory) -> None:
    begun.log(event="failed", stage="captions", shard="0", attempt=3, final=True, error="no such model")
    assert "last error, in captions: no such model" in told(begun)
    begun.log(event="stage", stage="captions", shards=1, seconds=1.0)
    assert "last error" not in told(begun)


def test_looking_at_a_run_does_not_keep_another_from_starting(begun: RunDirectory) -> None:
    watcher = (
        "import sys\nfrom pathlib import Path\nfrom synthclip.run.live import holder\nprint(flush=True)\n"
        "while True: holder(Path(sys.argv[1]))"
    )
    command = [sys.executable, "-c", watcher, str(begun.path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            for _ in range(50):
                with begun.lock():
                    pass
        finally:
            process.kill()


@pytest.mark.parametrize("width", [80, 140])
def test_the_bar_of_a_training_keeps_count_rest_and_loss(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    clock = [0.0]
    monkeypatch.setattr("synthclip.run.progress.time.monotonic", lambda: clock[0])
    stream = io.StringIO()
    console = Console(stream)
    console._rich = RichConsole(file=stream, width=width, force_terminal=True, legacy_windows=False)
    shard = Shard("all", {}, size=2_457_600)
    figures = {"loss": 2.134, "lr": 5e-4, "samples/s": 1234.5, "data_wait": 0.1, "logit_scale": 14.3}
    with console.stage("train", [shard], 1) as bar:
        clock[0] = 100.0  # start-up
        bar.progress(Progress(shard, 1_228_800))  # made by an earlier command
        clock[0] = 110.0
        bar.progress(Progress(shard, 4096, {**figures, "eta_s": 3000}))
        paper = RichConsole(file=io.StringIO(), width=width, record=True)
        paper.print(bar._rich.get_renderable())  # type: ignore[attr-defined]
        bar.done(Done(shard, Outcome(2_457_600), 120.0))
    [text] = paper.export_text().splitlines()
    assert len(text.rstrip()) <= width
    assert "1232896/2457600" in text
    assert "50.0 min left" in text or "49.8 min left" in text
    assert "loss 2.134" in text
    assert "eta_s" not in text
    assert ("lr 0.0005" in text) == (width == 140)


def test_status_watched_on_a_terminal_ends_with_ctrl_c(begun: RunDirectory) -> None:
    train_until_step_60(begun)
    main, side = pty.openpty()
    termios.tcsetwinsize(side, (24, 80))
    command = [sys.executable, "-m", "synthclip", "status", str(begun.path), "--watch"]
    env = {**os.environ, "TERM": "xterm-256color"}
    with subprocess.Popen(command, stdin=side, stdout=side, stderr=side, env=env) as process:
        os.close(side)
        seen = b""
        while b"next:" not in seen:
            seen += os.read(main, 4096)
        process.send_signal(signal.SIGINT)
        while True:
            try:
                more = os.read(main, 4096)
            except OSError:  # the other side is closed
                break
            seen += more
            if not more:
                break
    assert process.returncode == 0
    assert b"step 60 of 600, loss 0.32" in seen
    assert b"Traceback" not in seen
    assert seen.rstrip().endswith(b"\x1b[?25h")  # the cursor is back
    os.close(main)


def test_of_lists_the_entries_that_differ_are_named() -> None:
    one, two, three = {"name": "a", "weight": 1}, {"name": "b", "weight": 1}, {"name": "c", "weight": 1}
    assert list(differences([one, three], [one, two, three])) == [("1", None, two)]
    assert list(differences([one, two, three], [two, {**three, "weight": 2}])) == [
        ("0.name", "a", "b"),
        ("1.name", "b", "c"),
        ("1.weight", 1, 2),
        ("2", three, None),
    ]


def test_of_long_values_the_part_that_differs_is_shown() -> None:
    shown = pipeline._short(
        "Write one sentence about " * 3 + "a dog", "Write one sentence about " * 3 + "a cat"
    )
    assert "a dog" in shown
    assert "a cat" in shown
    assert pipeline._short(0.5, None) == "0.5 -> None"
