"""The files of the original SynthCLIP and of MetaCLIP: captions, matched captions, a selection, entry counts.

Captions are JSON lists of strings, matched captions JSON lists of `[caption, [entry ids]]`, one file or a
folder of `<index>.json`; a selection is one JSON list of strings, entry counts are a NumPy file of uint64.
"""

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from synthclip.errors import SynthClipError
from synthclip.run.store import RunDirectory, disk_errors

_READ_CHARS = 1 << 20
_SPACE = re.compile(r"[\s,]*")


def files(path: Path) -> list[Path]:
    """The file, or the folder's `*.json` by number. Raises SynthClipError where there is none."""
    if path.is_file():
        return [path]
    found = sorted(path.glob("*.json"), key=lambda file: (len(file.stem), file.stem))
    if not found:
        raise SynthClipError(f"{path}: no such file, and no folder of JSON files: correct the path")
    return found


def items(path: Path) -> Iterator[Any]:
    """The elements of a JSON list, one by one: the file may be larger than memory.

    Raises SynthClipError, naming the element, where the file is no list, is cut short, or is not JSON.
    """
    decoder = json.JSONDecoder()
    count = 0
    try:
        with path.open(encoding="utf-8") as handle:
            held = handle.read(_READ_CHARS).lstrip()
            if not held.startswith("["):
                raise SynthClipError(f"{path}: expected a JSON list")
            at = 1
            while True:
                at = _SPACE.match(held, at).end()  # type: ignore[union-attr]
                if held.startswith("]", at):
                    return
                try:
                    item, end = decoder.raw_decode(held, at)
                    whole = end < len(held)  # a number at the very end may go on
                except json.JSONDecodeError:
                    whole = False
                if whole:
                    yield item
                    count, at = count + 1, end
                    continue
                more = handle.read(max(_READ_CHARS, len(held) - at))
                if not more:
                    raise SynthClipError(
                        f"{path}: not JSON, or cut short, behind element {count}: mend it or make it again"
                    )
                held, at = held[at:] + more, 0
    except UnicodeDecodeError:
        raise SynthClipError(f"{path}: not UTF-8 behind element {count}: convert the file") from None
    except OSError as error:
        raise SynthClipError(f"{path}: cannot be read: {error.strerror}") from None


def caption_and_ids(item: Any) -> tuple[str, list[int] | None] | None:
    """The caption of an element, and the ids where it is a matched caption; None where it is neither."""
    if isinstance(item, str):
        return item, None
    if isinstance(item, list) and len(item) == 2 and isinstance(item[0], str) and isinstance(item[1], list):
        ids = item[1]
        if all(isinstance(entry, int) and 0 <= entry < 2**31 for entry in ids):
            return item[0], sorted(set(ids))
    return None


def export_captions(run: RunDirectory, folder: Path) -> int:
    """Write the run's captions as `folder/<index>.json`; returns how many."""
    total = 0
    for number, manifest in enumerate(_whole(run, "captions")):
        rows = _column(run.file("captions", f"{manifest}.parquet"), "text")
        total += _write(folder / f"{number}.json", rows)
    return total


def export_matches(run: RunDirectory, folder: Path) -> int:
    """Write the run's captions with the ids of their concepts as `folder/<index>.json`."""
    total = 0
    for number, manifest in enumerate(_whole(run, "match")):
        texts = _column(run.file("captions", f"{manifest}.parquet"), "text")
        ids = _column(run.file("match", f"{manifest}.parquet"), "concept_ids")
        total += _write(folder / f"{number}.json", zip(texts, ids, strict=True))
    return total


def export_selection(run: RunDirectory, file: Path) -> int:
    """Write the captions selected for training as one list."""
    _whole(run, "balance")
    parts = sorted(run.stage("balance").glob("train/*.parquet"))
    return _write(file, (text for part in parts for text in _column(part, "text")))


def export_counts(run: RunDirectory, file: Path) -> int:
    """Write how many captions match each concept, uint64 [concepts], as `entry_count.npy`."""
    _whole(run, "balance")
    counts: NDArray[np.uint64] = (
        pq.read_table(run.file("balance", "counts.parquet"))["matched"].to_numpy().astype(np.uint64)
    )
    with disk_errors(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("wb") as handle:
            np.save(handle, counts)
    return len(counts)


def _whole(run: RunDirectory, stage: str) -> list[str]:
    """The names of the stage's shards."""
    names = [manifest.shard for manifest in run.manifests(stage)]
    if not names:
        raise SynthClipError(f"{run.path}: stage {stage!r} is not there: run `synthclip {stage}` first")
    return names


def _column(path: Path, name: str) -> Iterator[Any]:
    for batch in pq.ParquetFile(path).iter_batches(columns=[name]):
        yield from pa.Table.from_batches([batch])[name].to_pylist()


def _write(file: Path, rows: Iterable[Any]) -> int:
    """A JSON list, one element a line; returns how many."""
    count = 0
    with disk_errors(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_name(f".{file.name}.partial")
        with partial.open("w", encoding="utf-8") as handle:
            handle.write("[")
            for count, row in enumerate(rows, 1):
                handle.write(",\n" if count > 1 else "\n")
                handle.write(json.dumps(row, ensure_ascii=False))
            handle.write("\n]\n")
        partial.replace(file)
    return count
