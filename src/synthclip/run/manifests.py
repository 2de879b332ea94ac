"""Manifests on disk: which shards a stage has, what a manifest says, and an index over all of a stage's.

The index only saves reading: a manifest whose size, times or inode have changed since it was read is read
again, and the files that manifests name are looked up in any case.
"""

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from synthclip.errors import SynthClipError
from synthclip.run.durable import FileEntry, Manifest, stays_inside, unseal
from synthclip.samples.remembered import Known, identity, recall, remember

INDEX = ".index"
"""Stands beside the manifests of a stage that has many."""
_MANY = 256
_SHARE = 64
"""The index is written again when it lacks more than this part of the manifests, 1 in 64."""
_encode = json.JSONEncoder(ensure_ascii=False).encode


def path_of(folder: Path, shard: str) -> Path:
    """The manifest of a shard; `folder` is its stage's."""
    return folder / "manifests" / f"{shard}.json"


def shard_names(folder: Path) -> list[str]:
    """The shards that have a manifest, complete or not."""
    return sorted(
        name.removesuffix(".json") for name in names_below(folder / "manifests") if name.endswith(".json")
    )


def read(folder: Path, shard: str) -> Manifest | None:
    """What a manifest says, whether its files are there or not; None where it cannot be trusted.

    Raises SynthClipError where it names a file outside its stage.
    """
    path = path_of(folder, shard)
    try:
        raw = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    manifest = _parsed(raw, path, shard)
    return None if unseal(raw) is None else manifest


def is_complete(folder: str, manifest: Manifest) -> bool:
    """Whether its files are there, each a regular one of the size that was written."""
    for entry in manifest.files:
        try:
            found = os.lstat(f"{folder}/{entry.path}")
        except (FileNotFoundError, NotADirectoryError):
            return False
        if found.st_size != entry.size_bytes or not stat.S_ISREG(found.st_mode):
            return False
    return True


def read_all(folder: Path, *, renew_index: bool = True) -> dict[str, Manifest]:
    """The manifests of all complete shards, in the order of their names."""
    names = shard_names(folder)
    index = folder / "manifests" / INDEX
    indexed = recall(index) if len(names) >= _MANY else {}
    kept: dict[str, Known] = {}
    complete: dict[str, Manifest] = {}
    fresh = 0
    for shard in names:
        path = f"{folder}/manifests/{shard}.json"
        try:
            now, settled = identity(path)
        except (FileNotFoundError, NotADirectoryError):  # removed meanwhile
            continue
        before, text = indexed.get(shard, ("", ""))
        manifest = _remembered(text) if before == now else None
        if manifest:
            kept[shard] = before, text
        elif (manifest := read(folder, shard)) is None:
            continue
        elif settled:
            kept[shard] = now, _encode(manifest)
            fresh += 1
        if is_complete(f"{folder}", manifest):
            complete[shard] = manifest
    if (
        renew_index
        and len(names) >= _MANY
        and (fresh + len(indexed.keys() - kept.keys())) * _SHARE > len(names)
    ):
        remember(index, kept)
    return complete


def names_below(folder: Path) -> Iterator[str]:
    """The files below a folder, relative to it, in no order. Links to folders are not followed."""
    waiting = [""]
    while waiting:
        inside = waiting.pop()
        try:
            with os.scandir(f"{folder}/{inside}") as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(f"{inside}{entry.name}/")
                    else:
                        yield inside + entry.name
        except (FileNotFoundError, NotADirectoryError):  # removed meanwhile
            continue


def _parsed(text: bytes | str, path: Path | str, shard: str) -> Manifest | None:
    """What the text of a shard's manifest says, or None. Raises as `read` does."""
    try:
        values: dict[str, Any] = json.loads(text)
        entries = tuple(FileEntry(**entry) for entry in values["files"])
        outside = [entry.path for entry in entries if not stays_inside(entry.path)]
        counts, notes = values["rejected"], values["notes"]
        manifest = Manifest(values["shard"], values["fingerprint"], entries, values["rows"], counts, notes)
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    if outside:
        raise SynthClipError(
            f"{path}: names {outside[0]!r}, which is outside its stage's folder: remove this manifest"
        )
    return manifest if manifest.shard == shard else None


def _remembered(text: str) -> Manifest | None:
    """What the index says of a shard, as a list of the values: it was checked before it went in."""
    try:
        shard, fingerprint, files, rows, rejected, notes = json.loads(text)
        entries = tuple([FileEntry(*entry) for entry in files])
        return Manifest(shard, fingerprint, entries, rows, rejected, notes)
    except (ValueError, TypeError, RecursionError):
        return None
