"""Batch endpoints: asked at once, killed while they wait, and answered to the last caption."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from batch_server import BatchServer

from synthclip.errors import SynthClipError
from synthclip.recipe import load_recipe
from synthclip.run.pipeline import run, status
from synthclip.run.progress import Console
from synthclip.run.store import RunDirectory

pytest.importorskip("httpx", reason="needs the package httpx")


@pytest.fixture
def server() -> Iterator[BatchServer]:
    with BatchServer() as server:
        yield server


def values(server: BatchServer, *overrides: str) -> list[str]:
    llm = f"backend: openai, model: m, base_url: {server.url}, batch: true, batch_poll_seconds: 0.05"
    return [
        f"llm={{{llm}, max_retries: 2, timeout_seconds: 5, prices: {{input: 1, output: 2}}}}",
        'captions.templates=[{name: t, text: "One sentence on: {{ concept }}"}]',
        "captions.axes={}",
        "concepts.limit=6",
        "captions.per_concept=2",
        "captions.concepts_per_shard=2",
        *overrides,
    ]


def write(
    server: BatchServer, out: Path, *overrides: str, stages: tuple[str, ...] = ("concepts", "captions")
) -> RunDirectory:
    with (out.parent / "log").open("a") as log:
        recipe = load_recipe("demo", values(server, "engine.workers=0", *overrides))
        return run(recipe, out, stages=stages, console=Console(log))


def captions(run: RunDirectory) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(run.stage("captions").rglob("*.parquet"))}


def test_all_shards_are_asked_for_at_once_and_every_answer_finds_its_prompt(
    server: BatchServer, tmp_path: Path
) -> None:
    made = write(server, tmp_path / "run")
    assert [manifest.rows for manifest in made.manifests("captions")] == [4, 4, 4]
    assert len(server.batches) == 3
    assert status(made.path).tokens == pytest.approx({"read": 120, "written": 60, "cost": 240 / 1e6})
    assert not list(made.stage("captions").glob("partial/*")), "nothing is left once the shards are made"
    assert write(server, tmp_path / "run").path == made.path
    assert len(server.batches) == 3


def test_killed_between_asking_and_fetching_it_goes_on_with_the_batches_that_are_paid_for(
    server: BatchServer, tmp_path: Path
) -> None:
    expected = captions(write(server, tmp_path / "undisturbed"))
    server.released, server.batches = False, []
    command = [sys.executable, "-m", "synthclip", "captions", "demo", "--out", str(tmp_path / "run")]
    command += values(server, "engine.workers=1")
    write(server, tmp_path / "run", stages=("concepts",))
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while len(server.batches) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(server.batches) == 3, "what was asked for is not asked for again"
    server.released = True
    subprocess.run(command, check=True, capture_output=True)
    assert len(server.batches) == 3
    assert captions(RunDirectory(tmp_path / "run")) == expected


def test_a_batch_whose_creation_was_not_confirmed_is_found_again(server: BatchServer, tmp_path: Path) -> None:
    server.refuses = [(0, None), (503, {"error": "busy"})]
    made = write(server, tmp_path / "run")
    assert sum(manifest.rows for manifest in made.manifests("captions")) == 12
    assert len(server.batches) == 3


def test_what_a_batch_leaves_open_is_asked_for_again_and_nothing_else(
    server: BatchServer, tmp_path: Path
) -> None:
    expected = captions(write(server, tmp_path / "undisturbed"))
    server.batches = []
    server.fates = [{"status": "expired", "answered": 0.5}]
    busy = {"response": {"status_code": 500, "body": {"error": {"message": "oops"}}}}
    empty = {"response": {"status_code": 200, "body": {"id": "r"}}}
    late = {"response": None, "error": {"code": "batch_expired", "message": "late"}}
    server.line_faults = [busy, late, empty]
    assert captions(write(server, tmp_path / "run")) == expected
    sizes = [len(server.files[batch["input_file_id"]].splitlines()) for batch in server.batches]
    # Of the first batch two were not answered in time, and two came to nothing; then one more did.
    assert sizes == [4, 4, 4, 4, 1]


def test_a_full_queue_is_waited_for(server: BatchServer, tmp_path: Path) -> None:
    full = {"data": [{"code": "token_limit_exceeded", "message": "Enqueued token limit reached."}]}
    server.fates = [{"status": "failed", "errors": full, "answered": 0}] * 2
    made = write(server, tmp_path / "run")
    assert sum(manifest.rows for manifest in made.manifests("captions")) == 12


STOPS: dict[str, tuple[dict[str, Any], str]] = {
    "cancelled": ({"fates": [{"status": "cancelled", "answered": 0.5}]}, "batch batch-0 cancelled"),
    "failed": (
        {"fates": [{"status": "failed", "errors": {"data": [{"message": "Bad\nfile."}]}, "answered": 0}]},
        r"batch batch-0 failed \(Bad file\.\)",
    ),
    "quota": (
        {
            "line_faults": [
                {"response": {"status_code": 429, "body": {"error": {"code": "insufficient_quota"}}}}
            ]
        },
        "quota and billing",
    ),
    "error without an answer": (
        {"line_faults": [{"response": None, "error": {"code": "no_model", "message": "No such model."}}]},
        "No such model",
    ),
    "key": ({"refuses": [(401, {"error": {"message": "No such key."}})]}, "No such key"),
    "never answered": ({"fates": [{"status": "expired", "answered": 0}] * 5}, "no answer after 5 batches"),
}


@pytest.mark.parametrize("kind", STOPS)
def test_a_fault_of_the_service_stops_with_its_words_and_the_same_command_goes_on(
    kind: str, server: BatchServer, tmp_path: Path
) -> None:
    scripted, message = STOPS[kind]
    vars(server).update({name: list(value) for name, value in scripted.items()})
    with pytest.raises(SynthClipError, match=message) as caught:
        write(server, tmp_path / "run")
    assert "\n" not in str(caught.value)
    made = write(server, tmp_path / "run")
    assert sum(manifest.rows for manifest in made.manifests("captions")) == 12


def test_what_a_content_filter_holds_back_is_refused(server: BatchServer, tmp_path: Path) -> None:
    held = {"response": {"status_code": 400, "body": {"error": {"code": "content_filter", "message": "No."}}}}
    server.line_faults = [held]
    made = write(server, tmp_path / "run")
    assert sum(manifest.rows for manifest in made.manifests("captions")) == 11
    assert made.manifests("captions")[0].rejected == {"content filter": 1}


def test_a_shard_that_no_batch_takes_is_refused(server: BatchServer, tmp_path: Path) -> None:
    with pytest.raises(SynthClipError, match="60,000 requests, a batch takes 50,000"):
        write(server, tmp_path / "run", "captions.per_concept=30000")
    assert not server.batches
