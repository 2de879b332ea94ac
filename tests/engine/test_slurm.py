"""The slurm engine over submitit's local executor, and over a real SLURM where one answers."""

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from shard_work import Load, alive, done, files, notes, shards, wait_for

from synthclip.errors import SynthClipError
from synthclip.recipe.engine import EngineConfig, SlurmConfig
from synthclip.run.engine import Done, Failed, Progress, Resources, build_engine, slurm
from synthclip.run.engine.worker import WorkError

ONE_EACH = Resources()


def slurm_answers() -> bool:
    if shutil.which("sinfo") is None:
        return False
    return subprocess.run(["sinfo", "--noheader"], capture_output=True).returncode == 0


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("submitit") is None,
        reason="submitit is not installed: pip install 'synthclip[slurm]'",
    ),
]
EXECUTORS = [
    "local",
    pytest.param("slurm", marks=pytest.mark.skipif(not slurm_answers(), reason="no SLURM answers here")),
]


@pytest.fixture(autouse=True)
def _modules_are_found_by_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    monkeypatch.setattr(slurm, "_POLL_SECONDS", 0.2)


def config(tmp_path: Path, executor: str, workers: int = 2, attempts: int = 3) -> EngineConfig:
    where = SlurmConfig(executor=executor, folder=str(tmp_path / "jobs"), timeout_min=5)
    return EngineConfig(kind="slurm", workers=workers, attempts=attempts, slurm=where)


@pytest.mark.parametrize("executor", EXECUTORS)
def test_it_makes_the_files_that_local_makes(tmp_path: Path, executor: str) -> None:
    engine = build_engine(config(tmp_path, executor))
    assert done(engine.map(Load(tmp_path / "slurm"), shards(5), ONE_EACH)) == ["s0", "s1", "s2", "s3", "s4"]
    assert sum(note.startswith("load") for note in notes(tmp_path / "slurm")) == 2
    done(build_engine(EngineConfig(workers=0)).map(Load(tmp_path / "local"), shards(5), ONE_EACH))
    assert files(tmp_path / "slurm") == files(tmp_path / "local")
    assert not list((tmp_path / "jobs").glob("map-*"))


def test_a_job_keeps_freed_memory_where_the_stage_asks(tmp_path: Path) -> None:
    work = shards(1, s0={"environment": ["MALLOC_MMAP_MAX_"]})
    engine = build_engine(config(tmp_path, "local"))
    done(engine.map(Load(tmp_path / "run"), work, Resources(keep_memory=True)))
    assert "MALLOC_MMAP_MAX_=0" in notes(tmp_path / "run")


@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_killed_job_costs_its_shard_only(tmp_path: Path, executor: str) -> None:
    engine = build_engine(config(tmp_path, executor))
    events = list(engine.map(Load(tmp_path / "run"), shards(5, s1={"die": True}), ONE_EACH))
    assert done(iter(events)) == ["s0", "s1", "s2", "s3", "s4"]
    assert [event.shard.name for event in events if isinstance(event, Failed)] == ["s1"]
    assert [notes(tmp_path / "run").count(f"start s{n}") for n in range(5)] == [1, 2, 1, 1, 1]


@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_job_at_its_time_limit_is_requeued_with_what_is_left(tmp_path: Path, executor: str) -> None:
    work = shards(3, s1={"pause": 6.0})
    events = build_engine(config(tmp_path, executor, workers=1)).map(Load(tmp_path / "run"), work, ONE_EACH)
    names = [event.shard.name for event in [next(events)]]
    wait_for(tmp_path / "run", "start s1")
    signal_time_limit(tmp_path, executor)
    names += done(events)
    assert sorted(names) == ["s0", "s1", "s2"]
    assert [notes(tmp_path / "run").count(f"start s{n}") for n in range(3)] == [1, 2, 1]


def test_errors_are_told_as_local_tells_them(tmp_path: Path) -> None:
    engine = build_engine(config(tmp_path, "local", attempts=2))
    with pytest.raises(WorkError, match=r"(?s)shard s1.*shard_work\.py.*ZeroDivisionError: seven by none"):
        done(engine.map(Load(tmp_path / "run"), shards(3, s1={"error": True, "always": True}), ONE_EACH))
    assert notes(tmp_path / "run").count("start s1") == 2
    with pytest.raises(SynthClipError, match=r"^bank\.txt, row 3: empty: remove it$"):
        done(engine.map(Load(tmp_path / "other"), shards(2, s0={"mend": True}), ONE_EACH))


def test_a_shard_that_kills_each_job_is_given_up_by_name_and_log(tmp_path: Path) -> None:
    engine = build_engine(config(tmp_path, "local", attempts=2))
    with pytest.raises(SynthClipError, match=r"shard s1: its worker died \(job \d+, see .*\.err\)"):
        done(engine.map(Load(tmp_path / "run"), shards(2, s1={"die": True, "always": True}), ONE_EACH))


def test_progress_comes_while_a_shard_is_made(tmp_path: Path) -> None:
    engine = build_engine(config(tmp_path, "local", workers=1))
    events = list(engine.map(Load(tmp_path / "run"), shards(1, s0={"linger": 2.0}), ONE_EACH))
    assert isinstance(events[-1], Done)
    assert isinstance(events[0], Progress)
    assert sum(event.rows for event in events if isinstance(event, Progress)) >= 1


def test_jobs_stop_when_the_submitter_was_killed(tmp_path: Path) -> None:
    script = f"""
from pathlib import Path
from shard_work import Load, done, shards
from synthclip.run.engine import (Resources, build_engine, slurm)
from synthclip.recipe.engine import (EngineConfig, SlurmConfig)
slurm._PATIENCE_SECONDS = 3.0
where = SlurmConfig(executor="local", folder={str(tmp_path / "jobs")!r})
engine = build_engine(EngineConfig(kind="slurm", workers=1, slurm=where))
done(engine.map(Load(Path({str(tmp_path / "run")!r})), shards(1, s0={{"pause": 300.0}}), Resources()))
"""
    submitter = subprocess.Popen([sys.executable, "-c", script])
    try:
        wait_for(tmp_path / "run", "start s0")
    finally:
        submitter.send_signal(signal.SIGKILL)
        submitter.wait()
    (job,) = [int(note.split()[1]) for note in notes(tmp_path / "run") if note.startswith("load")]
    deadline = time.monotonic() + 30
    while alive(job):
        assert time.monotonic() < deadline, "a job outlived its submitter"
        time.sleep(0.1)


def signal_time_limit(tmp_path: Path, executor: str) -> None:
    """What SLURM sends shortly before a job's time is up."""
    (job,) = [int(note.split()[1]) for note in notes(tmp_path / "run") if note.startswith("load")]
    os.kill(job, signal.SIGUSR2)
