"""The run directory: the only writer of hand-overs and manifests.

A shard is there complete, with its manifest, or not at all: its files are written in a scratch folder, moved
into place, and the manifest, which names them all, comes last by one atomic rename.

    DIR/recipe.yaml                  the resolved recipe
    DIR/metrics.jsonl                one line a finished shard and a finished stage: rows, rejects, seconds
    DIR/<stage>/stage.json           the version of the data format, the recipe values the stage was made with
    DIR/<stage>/manifests/<shard>.json
    DIR/<stage>/<files>              what the manifests name
    DIR/<stage>/rejected/<shard>.parquet
    DIR/checksums.json               of the small files: the recipe, stage.json, what spans a stage's shards
"""

import contextlib
import hashlib
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from synthclip.errors import SynthClipError
from synthclip.keys import sha256_of
from synthclip.run import manifests
from synthclip.run.durable import (
    FileEntry,
    Manifest,
    Outcome,
    append_line,
    disk_errors,
    is_partial,
    read_lines,
    replace_text,
    seal,
    sync,
    to_json,
    unseal,
)
from synthclip.run.live import locked
from synthclip.schema import REJECTED, SCHEMA_VERSION

__all__ = ["Manifest", "Outcome", "RunDirectory", "ShardWriter", "disk_errors"]

LOGS = "logs"
CHECKSUMS = "checksums.json"
METRICS = "metrics.jsonl"
_SCRATCH = ".scratch"
_PARQUET: dict[str, Any] = {"compression": "zstd", "write_page_checksum": True}
_REJECTED_IN_MEMORY = 10_000


class RunDirectory:
    """One run on disk. Reading needs no lock; `lock()` is held by whoever writes.

    Of a `read_only` one not even the index over its manifests is renewed.
    """

    def __init__(self, path: Path | str, *, read_only: bool = False) -> None:
        self.path, self._read_only = Path(path), read_only
        self._cached: dict[str, dict[str, Manifest]] | None = None
        """Manifests by stage and shard, inside `cached_manifests`."""

    def stage(self, stage: str) -> Path:
        return self.path / stage

    def file(self, stage: str, path: str) -> Path:
        return self.path / stage / path

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Exclusive for writers; freed by the kernel when the holder dies, however it dies.

        What a killed run left half written is removed on entry, and on leaving what those of its workers left
        that outlived it by a moment. Raises SynthClipError where another process holds it, or where
        the run is of another version.
        """
        self.check_version()
        with locked(self.path):
            self._remove_leftovers(everywhere=True)
            try:
                yield
            finally:
                self._remove_leftovers(everywhere=False)

    def _remove_leftovers(self, *, everywhere: bool) -> None:
        """Of all stages, or only of those where a worker has been: each leaves its scratch folder."""
        scratches = list(self.path.glob(f"*/{_SCRATCH}"))
        for scratch in scratches:
            shutil.rmtree(scratch, ignore_errors=True)
        for folder in [self.path] if everywhere else [scratch.parent for scratch in scratches]:
            for name in manifests.names_below(folder):
                if is_partial(name.rpartition("/")[2]):
                    (folder / name).unlink(missing_ok=True)

    def check_version(self) -> None:
        """Raise SynthClipError where the run is of another version of the data format; writes nothing."""
        for path in sorted(self.path.glob("*/stage.json")):
            name = f"{path.parent.name}/stage.json"
            values = self.read_json(name)
            made = values.get("schema", "1") if isinstance(values, dict) else SCHEMA_VERSION
            if made != SCHEMA_VERSION and (self.checksums() or {}).get(name) in (None, sha256_of(path)):
                raise SynthClipError(
                    f"{self.path}: made by another version of SynthCLIP (data format {made}, this one writes "
                    f"{SCHEMA_VERSION}): choose another --out; training.sources still reads its shards"
                )

    def write_stage_values(self, stage: str, values: Mapping[str, Any]) -> None:
        """Record what a stage is made with, before its first shard."""
        self.write_json(f"{stage}/stage.json", {"schema": SCHEMA_VERSION, **values})

    def stage_values(self, stage: str) -> dict[str, Any]:
        """What a stage was made with; empty where that is not known."""
        values = self.read_json(f"{stage}/stage.json") or {}
        return {key: value for key, value in values.items() if key != "schema"}

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
        """The shard's manifest, or None where the shard is missing, incomplete, or its manifest damaged."""
        manifest = self.read_manifest(stage, shard)
        return manifest if manifest and manifests.is_complete(f"{self.stage(stage)}", manifest) else None

    def read_manifest(self, stage: str, shard: str) -> Manifest | None:
        """As `run.manifests.read`."""
        return manifests.read(self.stage(stage), shard)

    def manifests(self, stage: str) -> list[Manifest]:
        """The manifests of all complete shards, in the order of their names."""
        if self._cached is None:
            return list(self._read_manifests(stage).values())
        if stage not in self._cached:
            self._cached[stage] = self._read_manifests(stage)
        return [self._cached[stage][shard] for shard in sorted(self._cached[stage])]

    def _read_manifests(self, stage: str) -> dict[str, Manifest]:
        return manifests.read_all(self.stage(stage), renew_index=not self._read_only)

    def shard_names(self, stage: str) -> list[str]:
        """The shards that have a manifest, complete or not."""
        return manifests.shard_names(self.stage(stage))

    def remove(self, stage: str, shard: str) -> None:
        """Remove a shard; its manifest, which names its files, last, so that a kill leaves none behind."""
        manifest = self.read_manifest(stage, shard)
        for entry in manifest.files if manifest else ():
            self._unlink(stage, entry.path)
        manifests.path_of(self.stage(stage), shard).unlink(missing_ok=True)
        self.reload(stage, shard)

    def _unlink(self, stage: str, path: str) -> None:
        target = self.file(stage, path)
        if not target.parent.resolve().is_relative_to(self.stage(stage).resolve()):
            raise SynthClipError(f"{target}: a link leads out of its stage's folder: remove it by hand")
        target.unlink(missing_ok=True)

    def begin(
        self, stage: str, shard: str, fingerprint: str, rejects: pa.Schema | None = None
    ) -> "ShardWriter":
        """A writer for one shard; `rejects` is the schema of the rows it may refuse."""
        return ShardWriter(self, stage, shard, fingerprint, rejects)

    def write_json(self, path: str, value: Any) -> None:
        """Write a small JSON file of the run in one step; `path` is relative to the run."""
        self.write_text(path, to_json(value))

    def write_text(self, path: str, text: str) -> None:
        """As `write_json`, for any text. Its checksum goes to `checksums.json`; equal text is left alone."""
        target = self.path / path
        checksum = hashlib.sha256(text.encode()).hexdigest()
        with disk_errors(target):
            if not target.is_file() or sha256_of(target) != checksum:
                replace_text(target, text)
            checksums = self.checksums() or {}
            if checksums.get(path) != checksum:
                replace_text(self.path / CHECKSUMS, seal({**checksums, path: checksum}), synced=False)

    def record(self, folder: str) -> None:
        """Keep the checksums of files that others, such as TensorBoard, wrote into a folder of the run."""
        checksums = self.checksums() or {}
        kept = {path: one for path, one in checksums.items() if not path.startswith(f"{folder}/")}
        files = (path for path in sorted((self.path / folder).rglob("*")) if path.is_file())
        kept |= {path.relative_to(self.path).as_posix(): sha256_of(path) for path in files}
        if kept != checksums:
            replace_text(self.path / CHECKSUMS, seal(kept), synced=False)

    def checksums(self) -> dict[str, str] | None:
        """The SHA-256 of each file that `write_text` wrote, by path; None where that is not known."""
        path = self.path / CHECKSUMS
        return unseal(path.read_bytes()) if path.is_file() else None

    def read_json(self, path: str) -> Any:
        """A small JSON file of the run, or None where there is none that can be read."""
        try:
            return json.loads((self.path / path).read_bytes())
        except (FileNotFoundError, ValueError):
            return None

    def log(self, **values: Any) -> None:
        """Append a line to `metrics.jsonl`."""
        with disk_errors(self.path):
            append_line(self.path / METRICS, {"time": round(time.time(), 3), **values})

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of `metrics.jsonl`; one cut short by a kill, or damaged, is skipped."""
        return read_lines(self.path / METRICS)[0]


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
            pq.ParquetWriter(self.path(path), schema, **_PARQUET) as out,
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
                self._reject_table = pq.ParquetWriter(path, self._rejects or REJECTED, **_PARQUET)
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
            counts, notes = dict(sorted(rejected.items())), dict(outcome.notes)
            manifest = Manifest(self._shard, self._fingerprint, entries, outcome.rows, counts, notes)
            self.publish(manifest)
        return manifest

    def publish(self, manifest: Manifest) -> None:
        """Put the files that the manifest names in place of those of the same shard made before; write it.

        The old manifest goes when it names only what is replaced now, so that a kill leaves no file without a
        manifest; the new one is written after the bytes and names of all files are on the disk.
        """
        run, stage = self._run, self._stage
        before = run.read_manifest(stage, self._shard)
        paths = [entry.path for entry in manifest.files]
        for stale in {entry.path for entry in before.files}.difference(paths) if before else ():
            run._unlink(stage, stale)
        manifests.path_of(run.stage(stage), self._shard).unlink(missing_ok=True)
        folders = set()
        for path in paths:
            sync(self._scratch / path)
            target = run.file(stage, path)
            target.parent.mkdir(parents=True, exist_ok=True)
            (self._scratch / path).replace(target)
            folders.add(target.parent)
        for folder in folders:
            sync(folder)
        replace_text(manifests.path_of(run.stage(stage), self._shard), seal(manifest.to_values()))
