"""The index over manifests saves reading, and is never believed against a manifest or a file."""

import hashlib
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from killed_runs import forked

from synthclip.keys import digest
from synthclip.recipe import load_recipe
from synthclip.run import manifests, pipeline
from synthclip.run.durable import Manifest, seal, unseal
from synthclip.run.engine import Shard
from synthclip.run.store import Outcome, RunDirectory
from synthclip.run.verify import verify
from synthclip.samples import remembered

SHARDS = 6
TICK_S = 0.02
"""Longer than a tick of the file system's clock."""


@pytest.fixture(autouse=True)
def _every_stage_has_an_index(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifests, "_MANY", 1)
    monkeypatch.setattr(remembered, "_SETTLED_NS", int(TICK_S / 2 * 1e9))


def write(run: RunDirectory, shard: str, content: bytes) -> None:
    with run.begin("stage", shard, hashlib.sha256(content).hexdigest()) as writer:
        writer.path(f"{shard}.bin").write_bytes(content)
        writer.commit(Outcome(len(content), {"odd": 1}, {"t": 10}))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = RunDirectory(tmp_path_factory.mktemp("made"))
    for number in range(SHARDS):
        write(run, f"{'train' if number % 2 else 'heldout'}/{number:05d}", b"%d" % number)
    return run.path


@pytest.fixture
def run(made: Path, tmp_path: Path) -> RunDirectory:
    """A copy, with an index."""
    shutil.copytree(made, tmp_path / "run")
    run = RunDirectory(tmp_path / "run")
    indexed(run)
    return run


def indexed(run: RunDirectory) -> None:
    time.sleep(TICK_S)
    run.manifests("stage")
    assert (run.stage("stage") / "manifests" / manifests.INDEX).is_file()


def truth(run: RunDirectory) -> list[Manifest]:
    """What each manifest says for itself."""
    found = (run.manifest("stage", shard) for shard in run.shard_names("stage"))
    return [manifest for manifest in found if manifest]


def opened(run: RunDirectory) -> Iterator[str]:
    """The names of the files of the run that reading its manifests opens."""
    names: list[str] = []

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event == "open" and str(arguments[0]).startswith(str(run.path)):
            names.append(Path(str(arguments[0])).name)

    sys.addaudithook(hook)
    run.manifests("stage")
    return iter(list(names))


def test_only_what_has_changed_is_opened(run: RunDirectory) -> None:
    assert list(opened(run)) == [manifests.INDEX]
    write(run, "train/00001", b"other")
    write(run, "train/00009", b"new")
    found = sorted(opened(run))
    assert [name for name in found if name.endswith(".json")] == ["00001.json", "00009.json"]
    assert run.manifests("stage") == truth(run)
    assert len(truth(run)) == SHARDS + 1


def test_what_changed_this_moment_is_not_remembered(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second change within a tick of the clock would not show."""
    monkeypatch.setattr(remembered, "_SETTLED_NS", 10**12)
    write(run, "train/00001", b"other")
    for _ in range(2):
        run.manifests("stage")
        assert "00001.json" in opened(run)


def test_few_shards_have_no_index(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    shutil.copytree(made, tmp_path / "run")
    assert len(RunDirectory(tmp_path / "run").manifests("stage")) == SHARDS
    assert not list(tmp_path.rglob(manifests.INDEX))


def edit(run: RunDirectory, kind: str, shard: str, at: int) -> None:
    path = run.stage("stage") / "manifests" / f"{shard}.json"
    index = run.stage("stage") / "manifests" / manifests.INDEX
    raw, before = path.read_bytes(), path.stat()
    if kind == "edited in place, with its old time":
        path.write_bytes(raw.replace(b'"rows": 1', b'"rows": 2'))
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    elif kind == "sealed anew, with its old time":
        values = unseal(raw) or {"rows": 1}  # an edit before this one may have broken its seal
        path.write_text(seal({**values, "rows": 7}))
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    elif kind == "taken from another shard":
        other = path.with_name("copy")
        shutil.copy2(next(one for one in path.parent.parent.rglob("*.json") if one != path), other)
        other.replace(path)
    elif kind == "removed":
        path.unlink()
    elif kind == "added":
        write(run, f"{shard}{at}", b"new")
    elif kind == "file cut":
        run.file("stage", f"{shard}.bin").write_bytes(b"")
    elif kind == "file removed":
        run.file("stage", f"{shard}.bin").unlink(missing_ok=True)
    elif kind == "index flipped" and index.exists():
        content = bytearray(index.read_bytes())
        content[at * len(content) // 100] ^= 1 << at % 8
        index.write_bytes(content)
    elif kind == "index cut" and index.exists():
        index.write_bytes(index.read_bytes()[: at * 20])
    elif kind == "index of another version" and index.exists():
        index.write_bytes(index.read_bytes().replace(b"synthclip 1 ", b"synthclip 0 ", 1))
    elif kind == "index a folder":
        index.unlink(missing_ok=True)
        index.mkdir(exist_ok=True)


KINDS = [
    "edited in place, with its old time",
    "sealed anew, with its old time",
    "taken from another shard",
    "removed",
    "added",
    "file cut",
    "file removed",
    "index flipped",
    "index cut",
    "index of another version",
    "index a folder",
]


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, SHARDS - 1), st.integers(0, 99)), max_size=4)
)
def test_after_any_edits_the_index_says_what_the_manifests_say(
    made: Path, tmp_path: Path, edits: list[tuple[str, int, int]]
) -> None:
    shutil.rmtree(tmp_path / "run", ignore_errors=True)
    shutil.copytree(made, tmp_path / "run")
    run = RunDirectory(tmp_path / "run")
    indexed(run)
    for kind, number, at in edits:
        names = run.shard_names("stage")
        if names and not (kind.startswith("index") and (run.stage("stage") / "manifests/.index").is_dir()):
            edit(run, kind, names[number % len(names)], at)
        time.sleep(TICK_S)
        assert run.manifests("stage") == truth(run)
    assert run.manifests("stage") == truth(run)


def test_an_index_with_a_checksum_that_lies_is_not_believed(run: RunDirectory) -> None:
    """It speaks of manifests as they were: of another copy of the run, say."""
    index = run.stage("stage") / "manifests" / manifests.INDEX
    known = remembered.recall(index)
    forged = {name: ("1 2 3 4", text.replace('"rows": 1', '"rows": 9')) for name, (_, text) in known.items()}
    remembered.remember(index, forged | {"train/99999": ("1 2 3 4", "{}")})
    assert run.manifests("stage") == truth(run)
    same = {name: (one, "[]") for name, (one, _) in known.items()}
    remembered.remember(index, same)
    assert run.manifests("stage") == truth(run)


@pytest.mark.parametrize("moment", ["opened", "half written", "written"])
def test_killed_while_it_writes_the_index(run: RunDirectory, moment: str) -> None:
    write(run, "train/00001", b"other")
    time.sleep(TICK_S)

    def work() -> None:
        def kill(event: str, arguments: tuple[object, ...]) -> None:
            events = {"opened": "open", "written": "os.rename"}
            if event == events.get(moment) and str(arguments[0]).endswith(".partial"):
                os.kill(os.getpid(), signal.SIGKILL)

        def half(path: Path, content: bytes) -> None:
            with path.open("wb", buffering=0) as handle:
                handle.write(content[: len(content) // 2])
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(kill)
        if moment == "half written":
            Path.write_bytes = half  # type: ignore[assignment, method-assign]
        run.manifests("stage")

    assert forked(work) == -signal.SIGKILL
    assert run.manifests("stage") == truth(run)
    with run.lock():
        assert not list(run.path.rglob("*.partial"))
    assert run.manifests("stage") == truth(run)


def test_readers_at_once_see_the_same(run: RunDirectory) -> None:
    for round_ in range(3):
        write(run, "train/00001", b"x" * round_)
        time.sleep(TICK_S)
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda _: run.manifests("stage"), range(8)))
        assert all(one == truth(run) for one in found)


def test_a_folder_that_cannot_be_written_is_read_all_the_same(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(made, tmp_path / "run")
    run = RunDirectory(tmp_path / "run")
    time.sleep(TICK_S)

    def refuse(path: Path, content: bytes) -> None:
        raise PermissionError(13, "read-only")

    monkeypatch.setattr(Path, "write_bytes", refuse)
    assert run.manifests("stage") == truth(run)
    assert len(truth(run)) == SHARDS


def test_verify_reads_no_index(run: RunDirectory) -> None:
    run.write_text("recipe.yaml", DEMO.to_yaml())
    run.log(event="stage", stage="stage")
    assert verify(run.path) == []
    path = run.stage("stage") / "manifests/train/00001.json"
    path.write_bytes(path.read_bytes().replace(b'"rows": 1', b'"rows": 2'))
    assert [damage.path for damage in verify(run.path)] == ["stage/manifests/train/00001.json"]


DEMO = load_recipe("demo")
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


@settings(max_examples=40)
@given(TEXT, st.dictionaries(TEXT, TEXT, max_size=4), st.sampled_from(["captions", "images", "report"]))
def test_a_fingerprint_is_the_digest_of_all_that_a_shard_is_made_of(
    name: str, inputs: dict[str, str], stage_name: str
) -> None:
    """Another would make every existing run stale."""
    stage = pipeline.build_stage(stage_name, DEMO, RunDirectory("."))
    for shard in (Shard(name, inputs), Shard(f"train/{name}", {}), Shard(name, inputs)):
        made_of = {
            "stage": stage_name,
            "revision": stage.revision,
            "values": stage.values_of(shard),
            "shard": shard.name,
            "inputs": dict(shard.inputs),
        }
        assert stage.fingerprint(shard) == digest(json.dumps(made_of, sort_keys=True, ensure_ascii=False))


JSON = st.none() | st.integers() | TEXT | st.lists(TEXT, max_size=2) | st.dictionaries(TEXT, TEXT, max_size=2)


@settings(max_examples=60)
@given(st.dictionaries(st.sampled_from(["a", "rows", "shard", "zone"]) | TEXT, JSON, max_size=4), st.data())
def test_another_byte_breaks_a_seal(values: dict[str, object], data: st.DataObject) -> None:
    values.pop("sha256", None)
    raw = seal(values).encode()
    assert unseal(raw) == values
    at = data.draw(st.integers(0, len(raw) - 1))
    changed = bytearray(raw)
    changed[at] ^= data.draw(st.integers(1, 255))
    assert unseal(bytes(changed)) is None
    assert unseal(raw[:at]) is None
