"""The files of the original SynthCLIP and of MetaCLIP: captions, matched captions, a selection, entry counts.

Captions are JSON lists of strings, matched captions JSON lists of `[caption, [entry ids]]`, one file or a
folder of `<index>.json`; a selection is one JSON list of strings, entry counts are a NumPy file of uint64.
A run takes its captions and matches from such files, or writes them.
"""

import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from synthclip import keys, schema
from synthclip.errors import SynthClipError
from synthclip.run.engine import Shard, Tick
from synthclip.run.store import Outcome, RunDirectory, ShardWriter, disk_errors
from synthclip.samples.files import replacing
from synthclip.samples.remembered import quick_digests
from synthclip.schema import CAPTION, MATCH

_READ_CHARS = 1 << 20
_ROWS_AT_ONCE = 65_536
_SPACE = re.compile(r"[\s,]*")
_SOURCE = "imported"

Reject = Callable[[dict[str, Any], str], None]
"""Takes a row and why it is refused."""


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
        with path.open(encoding="utf-8-sig") as handle:
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
                    complete = end < len(held)  # a number at the very end may go on
                except json.JSONDecodeError:
                    complete = False
                if complete:
                    yield item
                    count, at = count + 1, end
                    continue
                more = handle.read(max(_READ_CHARS, len(held) - at))
                if not more:
                    raise SynthClipError(
                        f"{path}: not JSON, or cut short, after element {count}: correct it or make it again"
                    )
                held, at = held[at:] + more, 0
    except UnicodeDecodeError:
        raise SynthClipError(f"{path}: not UTF-8 after element {count}: convert the file") from None
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


def shards(path: str) -> list[Shard]:
    """One for every file."""
    found = files(Path(path).expanduser())
    return [
        Shard(f"{number:05d}", {"file": known}, {"file": str(file)})
        for number, (file, known) in enumerate(zip(found, quick_digests(found), strict=True))
    ]


def make_captions(shard: Shard, writer: ShardWriter, tick: Tick) -> Outcome:
    """Take what the official cleaning accepts; ids beside captions wait for `make_matches`."""
    rows = 0
    with writer.table(f"{shard.name}.parquet", CAPTION) as out:
        for kept in _chunks(Path(shard.payload["file"]), writer.reject):
            captions = [
                {"caption_id": keys.text_id(text), "text": text, "model": _SOURCE} for text, _ in kept
            ]
            out.write_table(pa.Table.from_pylist(captions, schema=CAPTION))
            rows += len(kept)
            tick(0, captions=rows)
    return Outcome(rows, notes={"file": Path(shard.payload["file"]).name})


def make_matches(shard: Shard, writer: ShardWriter, tick: Tick, concepts: int) -> Outcome:
    """The ids that stand beside the captions of a matched file, row for row with `make_captions`."""
    file = Path(shard.payload["file"])
    rows = unmatched = 0
    with writer.table(f"{shard.name}.parquet", MATCH) as out:
        for kept in _chunks(file, lambda row, reason: None):
            for text, ids in kept:
                if ids is None:
                    raise SynthClipError(
                        f"{file}: {text[:40]!r} has no entry ids: set match.imported to false"
                    )
                if ids and ids[-1] >= concepts:
                    raise SynthClipError(
                        f"{file}: entry id {ids[-1]}, but the bank has {concepts} concepts: give the "
                        "metadata.json it was matched with in concepts.sources, or set match.imported: false"
                    )
                unmatched += not ids
            columns = [
                pa.array(keys.text_ids(text for text, _ in kept)),
                pa.array([ids for _, ids in kept], pa.list_(pa.int32())),
            ]
            out.write_table(pa.Table.from_arrays(columns, schema=MATCH))
            rows += len(kept)
            tick(len(kept))
    return Outcome(rows, notes={"unmatched": unmatched})


def _chunks(file: Path, reject: Reject) -> Iterator[list[tuple[str, list[int] | None]]]:
    kept = _kept(file, reject)
    while chunk := list(islice(kept, _ROWS_AT_ONCE)):
        yield chunk


def _kept(file: Path, reject: Reject) -> Iterator[tuple[str, list[int] | None]]:
    """By the official cleaning: double quotes and outer spaces go, captions of several lines are dropped."""
    for item in items(file):
        found = caption_and_ids(item)
        text = found[0].replace('"', "").strip() if found else str(item)[:200]
        text = unicodedata.normalize("NFC", text.encode("utf-8", "replace").decode())
        if found is None:
            reason = "not a caption"
        elif not text:
            reason = "empty"
        elif "\n" in text:
            reason = "several lines"
        else:
            yield text, found[1]
            continue
        reject({"caption_id": keys.text_id(text), "text": text, "model": _SOURCE}, reason)


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
    parts = schema.split_tables(run.stage("balance"), "train")
    return _write(file, (text for part in parts for text in _column(part, "text")))


def export_counts(run: RunDirectory, file: Path) -> int:
    """Write how many captions match each concept, uint64 [concepts], as `entry_count.npy`."""
    _whole(run, "balance")
    counts: NDArray[np.uint64] = (
        schema.read_table(run.file("balance", "counts.parquet"))["matched"].to_numpy().astype(np.uint64)
    )
    with disk_errors(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as partial, partial.open("wb") as handle:
            np.save(handle, counts)
    return len(counts)


def _whole(run: RunDirectory, stage: str) -> list[str]:
    """The names of the stage's shards."""
    names = [manifest.shard for manifest in run.manifests(stage)]
    if not names:
        raise SynthClipError(f"{run.path}: stage {stage!r} is not there: run `synthclip {stage}` first")
    return names


def _column(path: Path, name: str) -> Iterator[Any]:
    for batch in schema.read_batches(path, [name]):
        yield from batch[name].to_pylist()


def _write(file: Path, rows: Iterable[Any]) -> int:
    """A JSON list, one element a line; returns how many."""
    count = 0
    with disk_errors(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as partial, partial.open("w", encoding="utf-8") as handle:
            handle.write("[")
            for count, row in enumerate(rows, 1):
                handle.write(",\n" if count > 1 else "\n")
                handle.write(json.dumps(row, ensure_ascii=False))
            handle.write("\n]\n")
    return count
