import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from shard_work import Load, alive, done, files, notes, shards, wait_for

from synthclip.errors import SynthClipError
from synthclip.recipe.engine import EngineConfig
from synthclip.run.engine import Done, Failed, Progress, Resources, build_engine
from synthclip.run.engine.worker import WorkError

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("ray"),  # one cluster on this machine at a time
    pytest.mark.skipif(
        importlib.util.find_spec("ray") is None, reason="Ray is not installed: pip install 'synthclip[ray]'"
    ),
]
RAY = EngineConfig(kind="ray", workers=2)
ONE_EACH = Resources()


@pytest.fixture(scope="module", autouse=True)
def _ray_ends_with_the_module() -> Iterator[None]:
    yield
    import ray

    ray.shutdown()


def test_an_address_where_no_ray_answers_is_told() -> None:
    script = """
from synthclip.run.engine import *
from synthclip.recipe.engine import EngineConfig, RayConfig
from synthclip.errors import SynthClipError
config = EngineConfig(kind="ray", ray=RayConfig(address="auto"))
try:
    list(build_engine(config).map(print, [Shard("s0", {})], Resources()))
except SynthClipError as error:
    print("told:", error)
"""
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120).stdout
    assert "told: engine.ray.address 'auto': no Ray answers there" in told


def test_it_makes_the_files_that_local_makes(tmp_path: Path) -> None:
    made = done(build_engine(RAY).map(Load(tmp_path / "ray"), shards(5), ONE_EACH))
    assert made == ["s0", "s1", "s2", "s3", "s4"]
    assert 1 <= sum(note.startswith("load") for note in notes(tmp_path / "ray")) <= 2
    done(build_engine(EngineConfig(workers=1)).map(Load(tmp_path / "local"), shards(5), ONE_EACH))
    assert files(tmp_path / "ray") == files(tmp_path / "local")


def test_a_killed_actor_costs_its_shard_only(tmp_path: Path) -> None:
    work = shards(5, s1={"die": True})
    events = list(build_engine(RAY).map(Load(tmp_path), work, ONE_EACH))
    assert done(iter(events)) == ["s0", "s1", "s2", "s3", "s4"]
    assert [event.shard.name for event in events if isinstance(event, Failed)] == ["s1"]
    assert [notes(tmp_path).count(f"start s{n}") for n in range(5)] == [1, 2, 1, 1, 1]


def test_a_worker_has_the_environment_that_local_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    work = shards(1, s0={"environment": ["OMP_NUM_THREADS", "MALLOC_MMAP_MAX_"]})
    done(build_engine(RAY).map(Load(tmp_path), work, Resources(keep_memory=True)))
    assert {"OMP_NUM_THREADS=7", "MALLOC_MMAP_MAX_=0"} <= set(notes(tmp_path))


def test_a_shard_that_kills_each_actor_is_given_up_by_name(tmp_path: Path) -> None:
    engine = build_engine(EngineConfig(kind="ray", workers=1, attempts=2))
    with pytest.raises(SynthClipError, match="shard s0: its worker died"):
        done(engine.map(Load(tmp_path), shards(1, s0={"die": True, "always": True}), ONE_EACH))
    assert notes(tmp_path).count("start s0") == 2


def test_errors_are_told_as_local_tells_them(tmp_path: Path) -> None:
    engine = build_engine(EngineConfig(kind="ray", workers=1, attempts=1))
    with pytest.raises(WorkError, match=r"(?s)shard s0.*shard_work\.py.*ZeroDivisionError: seven by none"):
        done(engine.map(Load(tmp_path), shards(1, s0={"error": True}), ONE_EACH))
    with pytest.raises(SynthClipError, match=r"^bank\.txt, row 3: empty: remove it$"):
        done(engine.map(Load(tmp_path), shards(1, s0={"mend": True}), ONE_EACH))


def test_progress_comes_while_a_shard_is_made(tmp_path: Path) -> None:
    events = list(build_engine(RAY).map(Load(tmp_path), shards(1, s0={"linger": 1.0}), ONE_EACH))
    assert isinstance(events[-1], Done)
    assert isinstance(events[0], Progress)
    assert events[0].figures == {"waited": 1.0}


@pytest.mark.parametrize("asked", ["closed", "SIGTERM", "Ctrl-C"])
def test_a_busy_actor_gets_grace_to_save(tmp_path: Path, asked: str) -> None:
    if asked == "closed":
        events = build_engine(RAY).map(Load(tmp_path), shards(1, s0={"linger": 60.0}), ONE_EACH)
        next(events)
        events.close()  # type: ignore[attr-defined]
    else:
        parent = _start_parent(tmp_path)
        wait_for(tmp_path, "listens")
        for _ in range(6):  # Python loses an interrupt that comes within a destructor: users press again
            if asked == "Ctrl-C":  # the terminal signals all that run in it
                os.killpg(parent.pid, signal.SIGINT)
            else:
                parent.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                parent.wait(20)
                break
    assert notes(tmp_path)[-1] == "saved"


def test_relative_paths_are_where_the_run_was_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done(build_engine(RAY).map(Load(Path("run")), shards(1), ONE_EACH))
    assert (tmp_path / "run/stage/s0.txt").exists()


def test_a_killed_parent_leaves_no_actor(tmp_path: Path) -> None:
    parent = _start_parent(tmp_path)
    try:
        wait_for(tmp_path, "start s0")
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    (worker,) = [int(note.split()[1]) for note in notes(tmp_path) if note.startswith("load")]
    deadline = time.monotonic() + 30
    while alive(worker):
        assert time.monotonic() < deadline, "an actor outlived its parent"
        time.sleep(0.1)


def _start_parent(path: Path) -> subprocess.Popen[bytes]:
    """A process, and group, of its own that runs one endless shard with Ray, and stops as the CLI does."""
    script = f"""
import signal
from pathlib import Path
from shard_work import Load, done, shards
from synthclip.run.engine import (Resources, build_engine)
from synthclip.recipe.engine import (EngineConfig)
signal.signal(signal.SIGTERM, signal.default_int_handler)
engine = build_engine(EngineConfig(kind="ray", workers=1))
done(engine.map(Load(Path({str(path)!r})), shards(1, s0={{"linger": 300.0}}), Resources()))
"""
    environment = {**os.environ, "PYTHONPATH": f"{Path(__file__).parent}:{os.environ.get('PYTHONPATH', '')}"}
    return subprocess.Popen([sys.executable, "-c", script], env=environment, start_new_session=True)
