"""Captions from official files in the place of a language model's."""

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from synthclip import keys
from synthclip.errors import SynthClipError
from synthclip.keys import quick_digest
from synthclip.run.engine import Shard, Tick
from synthclip.run.store import Outcome, ShardWriter
from synthclip.schema import CAPTION, MATCH
from synthclip.textgen import official

ROWS_AT_ONCE = 65_536
_SOURCE = "imported"

Reject = Callable[[dict[str, Any], str], None]
"""Takes a row and why it is refused."""


def shards(path: str) -> list[Shard]:
    """One for every file."""
    return [
        Shard(f"{number:05d}", {"file": quick_digest(file)}, {"file": str(file)})
        for number, file in enumerate(official.files(Path(path).expanduser()))
    ]


def make_captions(shard: Shard, writer: ShardWriter, tick: Tick) -> Outcome:
    """Take over what the official cleaning lets through; ids beside captions wait for `make_matches`."""
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
                pa.array([keys.text_id(text) for text, _ in kept], pa.uint64()),
                pa.array([ids for _, ids in kept], pa.list_(pa.int32())),
            ]
            out.write_table(pa.Table.from_arrays(columns, schema=MATCH))
            rows += len(kept)
            tick(len(kept))
    return Outcome(rows, notes={"unmatched": unmatched})


def _chunks(file: Path, reject: Reject) -> Iterator[list[tuple[str, list[int] | None]]]:
    kept = _kept(file, reject)
    while chunk := list(islice(kept, ROWS_AT_ONCE)):
        yield chunk


def _kept(file: Path, reject: Reject) -> Iterator[tuple[str, list[int] | None]]:
    """By the official cleaning: double quotes and outer spaces go, captions of several lines are dropped."""
    for item in official.items(file):
        found = official.caption_and_ids(item)
        text = found[0].replace('"', "").strip() if found else str(item)[:200]
        text = text.encode("utf-8", "replace").decode()
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
