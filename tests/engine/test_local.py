import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from shard_work import Load, alive, done, files, notes, shards, wait_for

from synthclip.errors import SynthClipError
from synthclip.recipe.engine import EngineConfig
from synthclip.run.engine import Done, Event, Failed, Progress, Resources, build_engine
from synthclip.run.engine.worker import WorkError

pytestmark = pytest.mark.slow

ONE_EACH = Resources()


def local(workers: int, attempts: int = 3) -> EngineConfig:
    return EngineConfig(kind="local", workers=workers, attempts=attempts)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_any_number_of_workers_makes_the_same_files(tmp_path: Path, workers: int) -> None:
    engine = build_engine(local(workers))
    assert done(engine.map(Load(tmp_path / "run"), shards(5), ONE_EACH)) == ["s0", "s1", "s2", "s3", "s4"]
    made = files(tmp_path / "run")
    assert made["stage/s3.txt"] == b"content of s3"
    assert list(build_engine(local(0)).map(Load(tmp_path / "other"), shards(5), ONE_EACH))
    assert made == files(tmp_path / "other")


def test_a_worker_loads_once(tmp_path: Path) -> None:
    done(build_engine(local(2)).map(Load(tmp_path), shards(6), ONE_EACH))
    assert 1 <= sum(note.startswith("load") for note in notes(tmp_path)) <= 2


def test_an_exported_thread_count_stays_and_holds_for_all_libraries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setenv("MKL_NUM_THREADS", "5")
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    names = ["OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"]
    work = shards(1, s0={"environment": names})
    done(build_engine(local(1)).map(Load(tmp_path), work, ONE_EACH))
    assert {"OMP_NUM_THREADS=7", "OPENBLAS_NUM_THREADS=7", "MKL_NUM_THREADS=5"} <= set(notes(tmp_path))
    assert "OPENBLAS_NUM_THREADS" not in os.environ


def test_a_worker_keeps_freed_memory_where_the_stage_asks(tmp_path: Path) -> None:
    for name, asked in (("keep", True), ("usual", False)):
        work = shards(1, s0={"environment": ["MALLOC_MMAP_MAX_"]})
        done(build_engine(local(1)).map(Load(tmp_path / name), work, Resources(keep_memory=asked)))
        assert ("MALLOC_MMAP_MAX_=0" in notes(tmp_path / name)) == asked


def test_no_more_workers_than_are_of_use(tmp_path: Path) -> None:
    done(build_engine(local(2)).map(Load(tmp_path), shards(4), Resources(max_workers=1)))
    assert sum(note.startswith("load") for note in notes(tmp_path)) == 1


def test_no_worker_runs_in_the_parent_and_none_outlives_the_map(tmp_path: Path) -> None:
    done(build_engine(local(2)).map(Load(tmp_path), shards(3), ONE_EACH))
    loads = [int(note.split()[1]) for note in notes(tmp_path) if note.startswith("load")]
    assert os.getpid() not in loads
    assert not any(alive(pid) for pid in loads)


def test_workers_0_is_this_process(tmp_path: Path) -> None:
    done(build_engine(local(0)).map(Load(tmp_path), shards(1), ONE_EACH))
    assert f"load {os.getpid()}" in notes(tmp_path)


def test_nothing_to_do_starts_nothing(tmp_path: Path) -> None:
    assert list(build_engine(local(2)).map(Load(tmp_path), [], ONE_EACH)) == []
    assert notes(tmp_path) == []


@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_worker_costs_its_shard_only(tmp_path: Path, workers: int) -> None:
    work = shards(5, s1={"die": True}, s3={"die": True})
    assert done(build_engine(local(workers)).map(Load(tmp_path / "run"), work, ONE_EACH)) == [
        "s0",
        "s1",
        "s2",
        "s3",
        "s4",
    ]
    told = notes(tmp_path / "run")
    assert [told.count(f"start s{n}") for n in range(5)] == [1, 2, 1, 2, 1]
    assert files(tmp_path / "run")["stage/s1.txt"] == b"content of s1"


def test_a_shard_that_kills_each_worker_is_given_up_by_name(tmp_path: Path) -> None:
    work = shards(2, s1={"die": True, "always": True})
    with pytest.raises(SynthClipError, match=r"shard s1: its worker died \(SIGKILL\).*engine.workers"):
        done(build_engine(local(1)).map(Load(tmp_path), work, ONE_EACH))
    assert notes(tmp_path).count("start s1") == 3


def test_a_worker_that_hangs_is_noticed_and_its_shard_made_by_another(tmp_path: Path) -> None:
    config = EngineConfig(workers=2, stalled_after_s=3.0)
    events = list(build_engine(config).map(Load(tmp_path), shards(3, s1={"stop": True}), ONE_EACH))
    assert done(iter(events)) == ["s0", "s1", "s2"]
    (failed,) = [event for event in events if isinstance(event, Failed)]
    assert failed.shard.name == "s1"
    assert "no sign of life for 3 s" in str(failed.error)
    assert not any(alive(int(note.split()[1])) for note in notes(tmp_path) if note.startswith("load"))


def test_a_worker_that_computes_in_silence_is_left_alone(tmp_path: Path) -> None:
    config = EngineConfig(workers=1, stalled_after_s=0.5)
    work = shards(1, s0={"compute": 200_000_000, "pause": 2.0})
    events = list(build_engine(config).map(Load(tmp_path), work, ONE_EACH))
    assert done(iter(events)) == ["s0"]
    assert not [event for event in events if isinstance(event, Failed)]


def test_an_error_is_tried_again(tmp_path: Path) -> None:
    work = shards(3, s0={"error": True}, s1={"die": True})
    events = list(build_engine(local(1)).map(Load(tmp_path), work, ONE_EACH))
    assert done(iter(events)) == ["s0", "s1", "s2"]
    failed = [event for event in events if isinstance(event, Failed)]
    assert [(event.shard.name, event.attempt, event.final) for event in failed] == [
        ("s0", 1, False),
        ("s1", 1, False),
    ]
    assert "ZeroDivisionError" in str(failed[0].error)
    assert "SIGKILL" in str(failed[1].error)


@pytest.mark.parametrize("workers", [0, 1])
def test_the_last_failure_is_an_event_and_then_raised(tmp_path: Path, workers: int) -> None:
    events = build_engine(local(workers, attempts=2)).map(
        Load(tmp_path), shards(1, s0={"error": True, "always": True}), ONE_EACH
    )
    seen: list[Event] = []
    with pytest.raises((WorkError, ZeroDivisionError), match="seven by none"):
        seen.extend(events)
    failed = [(event.attempt, event.final) for event in seen if isinstance(event, Failed)]
    assert failed == ([(1, True)] if workers == 0 else [(1, False), (2, True)])


def test_an_error_that_stays_is_raised_with_the_shard_and_the_workers_traceback(tmp_path: Path) -> None:
    work = shards(3, s2={"error": True, "always": True})
    with pytest.raises(WorkError) as raised:
        done(build_engine(local(2, attempts=2)).map(Load(tmp_path), work, ONE_EACH))
    assert "shard s2" in str(raised.value)
    assert "shard_work.py" in str(raised.value)
    assert "ZeroDivisionError: seven by none" in str(raised.value)
    assert notes(tmp_path).count("start s2") == 2


def test_what_the_user_can_mend_is_final_at_once(tmp_path: Path) -> None:
    with pytest.raises(SynthClipError, match=r"^bank\.txt, row 3: empty: remove it$"):
        done(build_engine(local(1)).map(Load(tmp_path), shards(1, s0={"mend": True}), ONE_EACH))
    assert notes(tmp_path).count("start s0") == 1


def test_an_unpicklable_load_is_told_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises((AttributeError, TypeError)):
        done(build_engine(local(1)).map(lambda: Load(tmp_path)(), shards(1), ONE_EACH))


def test_progress_comes_while_a_shard_is_made(tmp_path: Path) -> None:
    events = list(build_engine(local(1)).map(Load(tmp_path), shards(1, s0={"linger": 1.0}), ONE_EACH))
    assert isinstance(events[-1], Done)
    ticks = [event for event in events if isinstance(event, Progress)]
    assert 1 <= len(ticks) <= 6
    assert ticks[0].figures == {"waited": 1.0}


def test_a_map_left_early_gives_a_busy_worker_grace_to_save(tmp_path: Path) -> None:
    events = build_engine(local(1)).map(Load(tmp_path), shards(1, s0={"linger": 60.0}), ONE_EACH)
    next(events)
    events.close()  # type: ignore[attr-defined]
    assert notes(tmp_path)[-1] == "saved"


def test_a_script_without_a_main_guard_is_told_in_one_line(tmp_path: Path) -> None:
    script = f"""
from pathlib import Path
from shard_work import Load, done, shards
from synthclip.errors import SynthClipError
from synthclip.recipe.engine import EngineConfig
from synthclip.run.engine import Resources, build_engine
try:
    done(build_engine(EngineConfig(workers=1)).map(Load(Path({str(tmp_path)!r})), shards(2), Resources()))
except SynthClipError as error:
    print(error)
"""
    main = tmp_path / "main.py"
    main.write_text(script)
    environment = {**os.environ, "PYTHONPATH": f"{Path(__file__).parent}:{os.environ.get('PYTHONPATH', '')}"}
    told = subprocess.run([sys.executable, str(main)], env=environment, capture_output=True, text=True)
    assert told.stderr == ""
    assert told.stdout.count("\n") == 1
    assert "call synthclip under `if __name__ == '__main__':`" in told.stdout


def test_workers_0_computes_with_the_threads_of_a_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    work = shards(1, s0={"environment": ["OMP_NUM_THREADS"]})
    for workers in (0, 1):
        done(build_engine(local(workers)).map(Load(tmp_path / str(workers)), work, ONE_EACH))
    (here,), (there,) = ([n for n in notes(tmp_path / w) if n.startswith("OMP")] for w in "01")
    assert here == there


def test_a_killed_parent_leaves_no_worker(tmp_path: Path) -> None:
    work = "s0={'linger': 120.0}, s1={'linger': 120.0}"
    script = f"""
from pathlib import Path
from shard_work import Load, done, shards
from synthclip.run.engine import (Resources, build_engine)
from synthclip.recipe.engine import (EngineConfig)
if __name__ == "__main__":
    engine = build_engine(EngineConfig(workers=2))
    done(engine.map(Load(Path({str(tmp_path / "run")!r})), shards(2, {work}), Resources()))
"""
    main = tmp_path / "main.py"
    main.write_text(script)
    environment = {**os.environ, "PYTHONPATH": f"{Path(__file__).parent}:{os.environ.get('PYTHONPATH', '')}"}
    parent = subprocess.Popen([sys.executable, str(main)], env=environment)
    try:
        wait_for(tmp_path / "run", "start s0")
        wait_for(tmp_path / "run", "start s1")
        workers = [int(n.split()[1]) for n in notes(tmp_path / "run") if n.startswith("load")]
        assert all(alive(pid) for pid in workers)
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    deadline = time.monotonic() + 10
    while any(alive(pid) for pid in workers):
        assert time.monotonic() < deadline, "a worker outlived its parent"
        time.sleep(0.05)
