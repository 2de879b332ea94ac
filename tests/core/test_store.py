import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from synthclip.errors import SynthClipError
from synthclip.keys import sha256_of
from synthclip.run.store import Outcome, RunDirectory

SCHEMA = pa.schema([("value", pa.int64())])


def write(run: RunDirectory, shard: str, files: dict[str, bytes], commit: bool = True) -> None:
    with run.begin("stage", shard, "f" * 64) as writer:
        for path, data in files.items():
            writer.path(path).write_bytes(data)
        if commit:
            writer.commit(Outcome(len(files), {"odd": 1}, {"t": 10}))


def test_a_shard_is_there_whole_after_the_commit_and_not_before(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    write(run, "train/00000", {"train/00000.tar": b"abc"}, commit=False)
    assert run.manifest("stage", "train/00000") is None
    assert list((tmp_path / "stage").rglob("*.tar")) == []
    write(run, "train/00000", {"train/00000.tar": b"abc", "rejected/train/00000.parquet": b""})
    manifest = run.manifest("stage", "train/00000")
    assert manifest is not None
    assert manifest.rejected == {"odd": 1}
    assert manifest.notes == {"t": 10}
    assert manifest.digest("train/00000.tar") == sha256_of(tmp_path / "stage/train/00000.tar")
    assert [m.shard for m in run.manifests("stage")] == ["train/00000"]


def test_a_missing_or_shortened_file_makes_the_shard_incomplete(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    write(run, "0", {"a": b"abc", "b": b"abc"})
    (tmp_path / "stage/b").write_bytes(b"ab")
    assert run.manifest("stage", "0") is None
    write(run, "0", {"a": b"abc"})
    assert not (tmp_path / "stage/b").exists() or run.manifest("stage", "0") is not None
    (tmp_path / "stage/a").unlink()
    assert run.manifests("stage") == []


def test_a_shard_made_again_leaves_no_file_of_its_former_self(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    write(run, "0", {"a": b"abc", "b": b"abc"})
    write(run, "0", {"a": b"x"})
    assert sorted(p.name for p in (tmp_path / "stage").iterdir() if p.is_file()) == ["a"]
    manifest = run.manifest("stage", "0")
    assert manifest is not None
    run.remove("stage", "0")
    assert [p for p in (tmp_path / "stage").rglob("*") if p.is_file()] == []


def test_parquet_is_the_same_bytes_each_time(tmp_path: Path) -> None:
    digests = set()
    for name in ("left", "right"):
        with RunDirectory(tmp_path / name).begin("stage", "0", "f") as writer:
            writer.rows("0.parquet", SCHEMA, ({"value": n} for n in range(1000)))
            digests.add(writer.commit(Outcome(1000)).digest("0.parquet"))
    assert len(digests) == 1


HOLDER = """
import sys, time
from synthclip.run.store import RunDirectory
with RunDirectory(sys.argv[1]).lock():
    print("locked", flush=True)
    time.sleep(60)
"""


def test_the_lock_names_its_holder_and_dies_with_it(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "locked\n"
        with (
            pytest.raises(SynthClipError, match=f"is in use by process {holder.pid}"),
            RunDirectory(tmp_path).lock(),
        ):
            pass
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        with RunDirectory(tmp_path).lock():
            pass


@pytest.mark.parametrize("left", [".recipe.yaml.7.partial", "stage/manifests/a/.0.json.7.partial"])
def test_what_a_killed_write_left_is_removed(tmp_path: Path, left: str) -> None:
    (tmp_path / left).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / left).touch()
    with RunDirectory(tmp_path).lock():
        assert not (tmp_path / left).exists()


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SynthClipError, match="no space left on the disk"):
        RunDirectory(tmp_path).write_text("recipe.yaml", "name: demo")
    assert list(tmp_path.iterdir()) == []


def test_scratch_of_a_killed_run_is_removed(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.begin("stage", "0", "f").__enter__()
    assert (tmp_path / "stage/.scratch").is_dir()
    with run.lock():
        assert not (tmp_path / "stage/.scratch").exists()


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="Linux's /proc takes no folders")
def test_where_no_folder_can_be_made_is_one_line() -> None:
    run = RunDirectory("/proc/run")
    with pytest.raises(SynthClipError, match="/proc/run: no folder can be made there"), run.lock():
        pass


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk_is_one_line_and_the_run_stays_good(tmp_path: Path) -> None:
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this sandbox mounts no tmpfs")
    try:
        run = RunDirectory(tmp_path)
        write(run, "0", {"a": b"x" * 1000})
        values = pa.array([hash(str(n)) for n in range(200_000)])
        with (
            pytest.raises(SynthClipError, match="no space left on the disk: free some and run the same"),
            run.begin("stage", "1", "f") as writer,
            writer.table("1.parquet", SCHEMA) as table,
        ):
            table.write_table(pa.table([values], schema=SCHEMA))
        assert [manifest.shard for manifest in run.manifests("stage")] == ["0"]
        write(run, "1", {"b": b"y"})
        assert [manifest.shard for manifest in run.manifests("stage")] == ["0", "1"]
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_line_of_metrics_cut_short_is_passed_over(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.log(event="shard", stage="captions")
    with (tmp_path / "metrics.jsonl").open("a") as handle:
        handle.write('{"event": "sha')
    assert [line["stage"] for line in run.metrics()] == ["captions"]
    run.log(event="shard", stage="match")
    assert [line["stage"] for line in run.metrics()] == ["captions", "match"]
    with (tmp_path / "metrics.jsonl").open("ab") as handle:
        handle.write(b'5\n[]\n\xff\xfe\n{"event": "stage"}\n' + b"[" * 100_000 + b"\n")
    assert [line["stage"] for line in run.metrics()] == ["captions", "match"]
