"""The run directory: the only writer of hand-overs and manifests.

A shard is there whole, with its manifest, or not at all: its files are written in a scratch folder, moved
into place, and the manifest, which names them all, comes last by one atomic rename.

    DIR/recipe.yaml                  the resolved recipe
    DIR/metrics.jsonl                one line a finished shard and a finished stage: rows, rejects, seconds
    DIR/<stage>/stage.json           the version of the data format, the recipe values the stage was made with
    DIR/<stage>/manifests/<shard>.json
    DIR/<stage>/<files>              what the manifests name
    DIR/<stage>/rejected/<shard>.parquet
"""

import contextlib
import errno
import fcntl
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from synthclip.errors import SynthClipError
from synthclip.keys import sha256_of
from synthclip.schema import REJECTED, SCHEMA_VERSION

_SCRATCH = ".scratch"
_REJECTED_IN_MEMORY = 10_000


@dataclass(frozen=True)
class FileEntry:
    """One file of a shard; `path` is relative to the stage's folder."""

    path: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class Outcome:
    """What a shard came to: rows written, rows refused by reason, and anything else worth showing."""

    rows: int
    rejected: Mapping[str, int] = field(default_factory=dict)
    """What `ShardWriter.reject` was given is added by the writer."""
    notes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Manifest:
    """The proof that a shard is there whole. It holds no times, so that equal work gives equal bytes."""

    shard: str
    fingerprint: str
    files: tuple[FileEntry, ...]
    rows: int
    rejected: Mapping[str, int]
    notes: Mapping[str, Any]

    def digest(self, path: str) -> str:
        """The SHA-256 of one of the shard's files."""
        return next(entry.sha256 for entry in self.files if entry.path == path)


class RunDirectory:
    """One run on disk. Reading needs no lock; `lock()` is held by whoever writes."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._cached: dict[str, dict[str, Manifest]] | None = None
        """Manifests by stage and shard, inside `cached_manifests`."""

    def stage(self, stage: str) -> Path:
        return self.path / stage

    def file(self, stage: str, path: str) -> Path:
        return self.path / stage / path

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Exclusive for writers; freed by the kernel when the holder dies, however it dies.

        Scratch folders that a killed run left are removed on entry, and on leaving those of its workers that
        outlived it by a moment. Raises SynthClipError where another process holds it, or where
        the run is of another version.
        """
        self.check_version()
        with disk_errors(self.path):
            try:
                self.path.mkdir(parents=True, exist_ok=True)
            except FileNotFoundError as error:  # what /proc and some network mounts answer
                raise SynthClipError(
                    f"{self.path}: no folder can be made there: choose another --out"
                ) from error
            handle = (self.path / ".lock").open("a+")
        with handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                handle.seek(0)
                holder = handle.read().strip() or "another process"
                raise SynthClipError(
                    f"{self.path} is in use by {holder}: wait for it, or choose another --out"
                ) from None
            with disk_errors(self.path):
                handle.truncate(0)
                handle.write(f"process {os.getpid()}")
                handle.flush()
            self._remove_scratch()
            try:
                yield
            finally:
                self._remove_scratch()

    def _remove_scratch(self) -> None:
        for scratch in self.path.glob(f"*/{_SCRATCH}"):
            shutil.rmtree(scratch, ignore_errors=True)

    def check_version(self) -> None:
        """Raise SynthClipError where the run is of another version of the data format; writes nothing."""
        for path in sorted(self.path.glob("*/stage.json")):
            values = self.read_json(f"{path.parent.name}/stage.json")
            made = values.get("schema", "1") if isinstance(values, dict) else SCHEMA_VERSION
            if made != SCHEMA_VERSION:
                raise SynthClipError(
                    f"{self.path}: made by another version of SynthCLIP (data format {made}, this one writes "
                    f"{SCHEMA_VERSION}): choose another --out; training.sources still reads its shards"
                )

    def write_stage_values(self, stage: str, values: Mapping[str, Any]) -> None:
        """Record what a stage is made with, before its first shard."""
        self.write_json(f"{stage}/stage.json", {"schema": SCHEMA_VERSION, **values})

    def stage_values(self, stage: str) -> dict[str, Any]:
        """What a stage was made with; empty where that is not known."""
        values = dict(self.read_json(f"{stage}/stage.json") or {})
        values.pop("schema", None)
        return values

    @contextlib.contextmanager
    def cached_manifests(self) -> Iterator[None]:
        """Inside, each manifest is read once. `reload` tells of shards that workers have made meanwhile."""
        self._cached = {}
        try:
            yield
        finally:
            self._cached = None

    def reload(self, stage: str, shard: str) -> None:
        """Read the manifest of a shard again."""
        if self._cached is not None and stage in self._cached:
            self._cached[stage].pop(shard, None)
            if manifest := self.manifest(stage, shard):
                self._cached[stage][shard] = manifest

    def manifest(self, stage: str, shard: str) -> Manifest | None:
        """The shard's manifest, or None where the shard is missing or incomplete."""
        path = self._manifest_path(stage, shard)
        try:
            raw = json.loads(path.read_bytes())
            manifest = Manifest(**{**raw, "files": tuple(FileEntry(**entry) for entry in raw["files"])})
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError):
            return None
        if manifest.shard != shard:
            return None
        for entry in manifest.files:
            try:
                if self.file(stage, entry.path).stat().st_size != entry.size_bytes:
                    return None
            except FileNotFoundError:
                return None
        return manifest

    def manifests(self, stage: str) -> list[Manifest]:
        """The manifests of all complete shards, in the order of their names."""
        if self._cached is None:
            return list(self._read_manifests(stage))
        if stage not in self._cached:
            self._cached[stage] = {manifest.shard: manifest for manifest in self._read_manifests(stage)}
        return [self._cached[stage][shard] for shard in sorted(self._cached[stage])]

    def _read_manifests(self, stage: str) -> Iterator[Manifest]:
        root = self.stage(stage) / "manifests"
        for name in sorted(
            path.relative_to(root).with_suffix("").as_posix() for path in root.rglob("*.json")
        ):
            if manifest := self.manifest(stage, name):
                yield manifest

    def remove(self, stage: str, manifest: Manifest) -> None:
        """Remove a shard, its manifest first, so that no half of it counts as complete."""
        self._manifest_path(stage, manifest.shard).unlink(missing_ok=True)
        for entry in manifest.files:
            self.file(stage, entry.path).unlink(missing_ok=True)
        self.reload(stage, manifest.shard)

    def begin(
        self, stage: str, shard: str, fingerprint: str, rejects: pa.Schema | None = None
    ) -> "ShardWriter":
        """A writer for one shard; `rejects` is the schema of the rows it may refuse."""
        return ShardWriter(self, stage, shard, fingerprint, rejects)

    def write_json(self, path: str, value: Any) -> None:
        """Write a small JSON file of the run, whole or not at all; `path` is relative to the run."""
        self.write_text(path, json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n")

    def write_text(self, path: str, text: str) -> None:
        target = self.path / path
        with disk_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
            with partial.open("w", encoding="utf-8") as handle:
                handle.write(text)
                handle.flush()
                os.fsync(handle.fileno())
            partial.replace(target)

    def read_json(self, path: str) -> Any:
        """A small JSON file of the run, or None where there is none that can be read."""
        try:
            return json.loads((self.path / path).read_bytes())
        except (FileNotFoundError, ValueError):
            return None

    def log(self, **values: Any) -> None:
        """Append a line to `metrics.jsonl`."""
        line = json.dumps({"time": round(time.time(), 3), **values})
        with disk_errors(self.path), (self.path / "metrics.jsonl").open("a", encoding="utf-8") as handle:
            handle.write(line + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of `metrics.jsonl`; a last line cut short by a kill is left out."""
        try:
            lines = (self.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return []
        parsed = []
        for line in lines:
            with contextlib.suppress(ValueError):
                parsed.append(json.loads(line))
        return parsed

    def _manifest_path(self, stage: str, shard: str) -> Path:
        return self.stage(stage) / "manifests" / f"{shard}.json"


class ShardWriter:
    """Writes the files of one shard; nothing shows before `commit`.

    Use as a context manager: leaving it without a commit removes what was written.
    """

    def __init__(
        self,
        run: RunDirectory,
        stage: str,
        shard: str,
        fingerprint: str,
        rejects: pa.Schema | None = None,
    ) -> None:
        self._run, self._stage, self._shard, self._fingerprint = run, stage, shard, fingerprint
        self._rejects = rejects
        self._rejected: Counter[str] = Counter()
        self._refused: list[dict[str, Any]] = []
        self._reject_table: pq.ParquetWriter | None = None
        self._scratch = run.stage(stage) / _SCRATCH / f"{shard.replace('/', '-')}.{os.getpid()}"

    def __enter__(self) -> Self:
        with disk_errors(self._scratch):
            shutil.rmtree(self._scratch, ignore_errors=True)
            self._scratch.mkdir(parents=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._reject_table is not None:
            self._reject_table.close()
        shutil.rmtree(self._scratch, ignore_errors=True)

    def path(self, path: str) -> Path:
        """Where to write a file that will stand at `path` in the stage's folder after the commit."""
        target = self._scratch / path
        target.parent.mkdir(parents=True, exist_ok=True)
        return target

    @contextlib.contextmanager
    def table(self, path: str, schema: pa.Schema) -> Iterator[pq.ParquetWriter]:
        """A Parquet file, written batch by batch: `write_table`, `write_batch`."""
        with (
            disk_errors(self.path(path)),
            pq.ParquetWriter(self.path(path), schema, compression="zstd") as out,
        ):
            yield out

    def rows(self, path: str, schema: pa.Schema, rows: Iterable[Mapping[str, Any]]) -> int:
        """A Parquet file of rows that fit in memory; returns how many."""
        table = pa.Table.from_pylist(list(rows), schema=schema)
        with self.table(path, schema) as out:
            out.write_table(table)
        return int(table.num_rows)

    def reject(self, row: Mapping[str, Any], reason: str) -> None:
        """Count a row that was refused, and keep it with its reason in `rejected/<shard>.parquet`."""
        self._rejected[reason] += 1
        self._refused.append({**row, "reason": reason})
        if len(self._refused) >= _REJECTED_IN_MEMORY:
            self._flush_rejected()

    def reject_table(self, table: pa.Table, reason: str) -> None:
        """As `reject`, for a table of the columns of the stage's `rejects`, without `reason`."""
        if table.num_rows:
            self._rejected[reason] += table.num_rows
            reasons = pa.array([reason] * table.num_rows, pa.string())
            self._flush_rejected(table.append_column("reason", reasons))

    @property
    def rejected(self) -> Counter[str]:
        """How many rows were refused so far, by reason."""
        return self._rejected

    def _flush_rejected(self, more: pa.Table | None = None) -> None:
        path = self.path(f"rejected/{self._shard}.parquet")
        with disk_errors(path):
            if self._reject_table is None:
                self._reject_table = pq.ParquetWriter(path, self._rejects or REJECTED, compression="zstd")
            rows = pa.Table.from_pylist(self._refused, self._rejects or REJECTED)
            self._reject_table.write_table(rows)
            if more is not None:
                self._reject_table.write_table(more)
        self._refused.clear()

    def commit(self, outcome: Outcome) -> Manifest:
        """Move the files into place and write the manifest: from here on the shard is there."""
        if self._rejects is not None or self._refused or self._reject_table is not None:
            self._flush_rejected()
        if self._reject_table is not None:
            self._reject_table.close()
        rejected = self._rejected + Counter(outcome.rejected)
        with disk_errors(self._scratch):
            written = sorted(path for path in self._scratch.rglob("*") if path.is_file())
            entries = tuple(
                FileEntry(path.relative_to(self._scratch).as_posix(), path.stat().st_size, sha256_of(path))
                for path in written
            )
            manifest = Manifest(
                self._shard,
                self._fingerprint,
                entries,
                outcome.rows,
                dict(sorted(rejected.items())),
                dict(outcome.notes),
            )
            before = self._run.manifest(self._stage, self._shard)
            self._run._manifest_path(self._stage, self._shard).unlink(missing_ok=True)
            for path, entry in zip(written, entries, strict=True):
                target = self._run.file(self._stage, entry.path)
                target.parent.mkdir(parents=True, exist_ok=True)
                path.replace(target)
            for stale in {entry.path for entry in before.files} if before else set():
                if stale not in {entry.path for entry in entries}:
                    self._run.file(self._stage, stale).unlink(missing_ok=True)
            self._run.write_json(f"{self._stage}/manifests/{self._shard}.json", asdict(manifest))
            self._run.reload(self._stage, self._shard)
        return manifest


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn what a full or read-only disk raises into a line that says so."""
    try:
        yield
    except OSError as error:
        advice = {
            errno.ENOSPC: "no space left on the disk: free some and run the same command again",
            errno.EFBIG: "a file grows larger than may be written here: see `ulimit -f`",
            errno.EDQUOT: "disk quota exceeded: free some and run the same command again",
            errno.EROFS: "the disk is read-only: choose another --out",
            errno.EACCES: "permission denied: choose another --out",
            errno.EPERM: "permission denied: choose another --out",
            errno.ENAMETOOLONG: "the name is too long: choose another --out",
            errno.ENOTDIR: "a file stands where a folder should be: choose another --out",
            errno.EEXIST: "a file stands where a folder should be: choose another --out",
        }.get(error.errno or 0)
        if advice is None:
            raise
        raise SynthClipError(f"{path}: {advice}") from error
