"""The index of a run's images: one SQLite database in the user's cache, brought up to date shard by shard.

Derived data: it may be deleted at any time. Several explorers may share it, as each shard is one transaction
that looks first whether the shard is there. An id of an image or of a caption is the number of its shard in
the upper bits and its place in the shard in the lower ones, so that ids keep the order of the shards, and a
shard is a range of ids.
"""

import contextlib
import json
import math
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from synthclip import schema
from synthclip.errors import SynthClipError, first_line
from synthclip.keys import digest
from synthclip.run.store import Manifest, RunDirectory
from synthclip.samples.files import cache_folder
from synthclip.view.bank import describe

SHARD_BITS = 24
"""A shard has fewer than 2^24 images."""
_FORMAT = 3
"""Raised when the same run would be indexed otherwise; part of the file's name."""
_EVERY_S = 2.0
_REST = 10
"""Between looking after what is new it rests this many times as long as that took."""
_BUSY_S = 60.0
_WRITER_CACHE_KIB = 65_536
_SCHEMA = """
CREATE TABLE IF NOT EXISTS shard(id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT UNIQUE, seal TEXT);
CREATE TABLE IF NOT EXISTS facet(
  id INTEGER PRIMARY KEY, split TEXT, painter TEXT, reason TEXT, leads INTEGER,
  UNIQUE(split, painter, reason, leads));
CREATE TABLE IF NOT EXISTS tally(
  facet INTEGER, shard INTEGER, images INTEGER, PRIMARY KEY(facet, shard)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS caption(id INTEGER PRIMARY KEY, content INTEGER, text TEXT, concepts TEXT);
CREATE INDEX IF NOT EXISTS caption_content ON caption(content);
CREATE VIRTUAL TABLE IF NOT EXISTS words USING fts5(
  text, content='caption', content_rowid='id', tokenize='unicode61 remove_diacritics 2');
CREATE TABLE IF NOT EXISTS tag(
  concept INTEGER, caption INTEGER, images INTEGER, PRIMARY KEY(concept, caption)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS image(
  id INTEGER PRIMARY KEY, caption INTEGER, facet INTEGER, key TEXT, variant INTEGER, attempt INTEGER,
  seed TEXT, scores TEXT, sha256 BLOB, offset INTEGER, length INTEGER);
CREATE INDEX IF NOT EXISTS image_facet ON image(facet);
CREATE INDEX IF NOT EXISTS image_caption ON image(caption);
CREATE INDEX IF NOT EXISTS image_key ON image(key);
CREATE TABLE IF NOT EXISTS score(
  name TEXT, facet INTEGER, value REAL, image INTEGER, PRIMARY KEY(name, facet, value, image)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS concept(
  id INTEGER PRIMARY KEY, text TEXT, written INTEGER, matched INTEGER, selected INTEGER, pictures INTEGER,
  tested INTEGER, top1 REAL, confused_with TEXT, confused INTEGER);
CREATE INDEX IF NOT EXISTS concept_text ON concept(text);
CREATE TABLE IF NOT EXISTS state(name TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID;
"""
"""`facet.reason` is empty for images that were kept; of these those of a facet that `leads` are the first of
their caption by their painter. `tag.images` are the kept ones of the caption, and a
`content` is the caption's id in the run as a signed number."""


@dataclass(frozen=True)
class Progress:
    """How far the index has come: shards, and why it cannot go on."""

    done: int = 0
    total: int = 0
    error: str = ""


class Index:
    """The index of one run. Reading is possible from any thread, at any time."""

    def __init__(self, run: RunDirectory) -> None:
        self.run = run
        self.folder = cache_folder() / "view" / digest(str(run.path.resolve()))[:32]
        """What else is derived from the run for looking at it belongs here too."""
        self.path = self.folder / f"index-{_FORMAT}.sqlite"
        self.progress = Progress()
        self._local = threading.local()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._prepare()

    def start(self) -> None:
        """Keep it up to date in the background, until `close`."""
        self._thread = threading.Thread(target=self._watch, name=f"index of {self.run.path}", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        if self._thread:
            self._thread.join()

    def read(self, sql: str, values: Sequence[Any] | Mapping[str, Any] = ()) -> list[sqlite3.Row]:
        """The rows of a query. Raises SynthClipError where the index is damaged."""
        if not hasattr(self._local, "db"):
            self._local.db = sqlite3.connect(f"{self.path.as_uri()}?mode=ro", uri=True, timeout=_BUSY_S)
            self._local.db.row_factory = sqlite3.Row
        with self._damage():
            return list(self._local.db.execute(sql, values))

    def refresh(self) -> None:
        """Bring it up to date with the shards that the run has now.

        Raises SynthClipError where the run is gone or of another version, or, when all else is done, where a
        file of it is damaged.
        """
        if not self.run.path.is_dir():
            raise SynthClipError(f"{self.run.path}: moved or deleted: open it again at its new place")
        self.run.check_version()
        manifests = {manifest.shard: manifest for manifest in self.run.manifests("images")}
        with self._writer() as db:
            known = dict(db.execute("SELECT name, seal FROM shard").fetchall())
            for name in known.keys() - manifests.keys():
                with _transaction(db):
                    _drop(db, name)
            todo = [one for name, one in manifests.items() if known.get(name) != _seal(one)]
            todo.sort(key=lambda one: (schema.IMAGE_SPLITS.index(one.split), one.shard))
            damaged: list[SynthClipError] = []
            for number, manifest in enumerate(todo):
                self.progress = Progress(len(manifests) - len(todo) + number, len(manifests))
                if self._stop.is_set():
                    return
                try:
                    self._add(db, manifest)
                except SynthClipError as error:
                    damaged.append(error)
            self._describe_concepts(db)
        self.progress = Progress(len(manifests), len(manifests))
        if damaged:
            raise damaged[0]

    def _watch(self) -> None:
        before: object = None
        pause_s = 0.0
        while not self._stop.wait(pause_s):
            started = time.monotonic()
            try:
                now = self._changed_at()
                if now != before:
                    self.refresh()
                before = now
            except (SynthClipError, OSError, sqlite3.Error) as error:
                before = error
                self.progress = Progress(self.progress.done, self.progress.total, first_line(error))
            pause_s = max(_EVERY_S, _REST * (time.monotonic() - started))

    def _changed_at(self) -> object:
        """What differs once a shard was added or replaced: the times of the folders of manifests."""
        stages = ("concepts", "captions", "balance", "eval", "images")
        folders = [self.run.path, *(self.run.stage(stage) / "manifests" for stage in stages)]
        folders += [folders[-1] / split for split in schema.IMAGE_SPLITS]
        return [one.stat().st_mtime_ns if one.is_dir() else 0 for one in folders]

    def _prepare(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                with self._writer() as db:
                    db.executescript(_SCHEMA)
            except sqlite3.DatabaseError as error:
                if isinstance(error, sqlite3.OperationalError):  # a full disk, say: no damage
                    raise
                self.path.unlink()
                with self._writer() as db:
                    db.executescript(_SCHEMA)
        except (OSError, sqlite3.OperationalError) as error:
            raise SynthClipError(
                f"{self.folder}: no index can be kept there ({first_line(error)}): set XDG_CACHE_HOME to a "
                "folder that can be written"
            ) from None

    @contextlib.contextmanager
    def _writer(self) -> Iterator[sqlite3.Connection]:
        db = sqlite3.connect(self.path, timeout=_BUSY_S, isolation_level=None)
        try:
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA synchronous=NORMAL")
            db.execute(f"PRAGMA cache_size=-{_WRITER_CACHE_KIB}")
            yield db
        finally:
            db.close()

    @contextlib.contextmanager
    def _damage(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            raise SynthClipError(
                f"{self.path}: cannot be read ({first_line(error)}): delete it, and open the run again"
            ) from None

    def _add(self, db: sqlite3.Connection, manifest: Manifest) -> None:
        with _transaction(db):
            known = db.execute("SELECT seal FROM shard WHERE name = ?", (manifest.shard,)).fetchone()
            if known == (_seal(manifest),):  # another explorer was first
                return
            _drop(db, manifest.shard)
            name = manifest.shard, _seal(manifest)
            number = db.execute("INSERT INTO shard(name, seal) VALUES (?, ?)", name).lastrowid
            assert number is not None
            shard = _Shard(db, number, manifest.split)
            paths = [self.run.file("images", entry.path) for entry in manifest.files]
            for path in sorted(paths, key=lambda path: "rejected" in path.parts):
                if path.suffix == ".parquet":
                    shard.add(path, kept="rejected" not in path.relative_to(self.run.path).parts)
            shard.finish(self._concepts_of(manifest.split, shard.without_concepts))

    def _concepts_of(self, split: str, contents: Sequence[int]) -> dict[int, list[int]]:
        """The concepts in captions of which no image was kept."""
        found: dict[int, list[int]] = {}
        if contents and split not in (schema.COMPOSITION, schema.EXCHANGED):
            wanted = pa.array(contents, pa.uint64())
            folder = "train" if split == "train" else "heldout"
            for path in schema.split_tables(self.run.stage("balance"), folder):
                table = schema.read_table(
                    path, ["caption_id", "concept_ids"], filters=pc.field("caption_id").isin(wanted)
                )
                columns = table["caption_id"].to_pylist(), table["concept_ids"].to_pylist()
                found.update(zip(*columns, strict=True))
        return found

    def _describe_concepts(self, db: sqlite3.Connection) -> None:
        """Replace the table of concepts, where something that it says may have changed."""
        stages = ("concepts", "captions", "balance", "eval", "images")
        manifests = {stage: self.run.manifests(stage) for stage in stages}
        state = digest(*(_seal(one) for stage in stages for one in manifests[stage]))
        before = db.execute("SELECT value FROM state WHERE name = 'concepts'").fetchone()
        if before == (state,) or not manifests["concepts"]:
            return
        rows = describe(self.run, dict(db.execute("SELECT concept, sum(images) FROM tag GROUP BY concept")))
        with _transaction(db):
            db.execute("DELETE FROM concept")
            db.executemany(f"INSERT INTO concept VALUES ({', '.join('?' * 10)})", rows)
            db.execute("INSERT OR REPLACE INTO state VALUES ('concepts', ?)", (state,))


class _Shard:
    """Adds the images of one shard."""

    def __init__(self, db: sqlite3.Connection, number: int, split: str) -> None:
        self._db, self._number, self._split = db, number, split
        self._first = number << SHARD_BITS
        self._images = 0
        self._captions: dict[object, int] = {}
        """Ids by the caption's id in the run, or by its text where it has none."""
        self._kept: dict[int, int] = {}
        self._concepts: dict[int, Sequence[int]] = {}
        self._facets: dict[tuple[str, str, bool], int] = {}
        self._led: set[tuple[int, str]] = set()
        self._tallies: dict[int, int] = {}
        self.without_concepts: list[int] = []

    def add(self, path: Path, *, kept: bool) -> None:
        """Add the rows of a sidecar, or of a table of what was refused."""
        columns = (schema.IMAGE if kept else schema.REJECTED_IMAGE).names
        wanted = [name for name in columns if name not in ("width_px", "height_px", "shard")]
        for batch in schema.read_batches(path, wanted, 8192):
            self._add(batch.to_pydict(), kept)

    def finish(self, concepts: Mapping[int, Sequence[int]]) -> None:
        """Write what spans its rows; `concepts` are those of captions `without_concepts`."""
        for content, ids in concepts.items():
            caption = self._captions[content]
            self._concepts[caption] = ids
            self._db.execute("UPDATE caption SET concepts = ? WHERE id = ?", (json.dumps(ids), caption))
        tags = ((concept, of) for of, ids in self._concepts.items() for concept in dict.fromkeys(ids or ()))
        rows = sorted((concept, caption, self._kept.get(caption, 0)) for concept, caption in tags)
        self._db.executemany("INSERT INTO tag VALUES (?, ?, ?)", rows)
        tallies = ((facet, self._number, count) for facet, count in self._tallies.items())
        self._db.executemany("INSERT INTO tally VALUES (?, ?, ?)", tallies)

    def _add(self, rows: Mapping[str, list[Any]], kept: bool) -> None:
        captions = list(self._ids_of_captions(rows, kept))
        count = len(captions)
        reasons = [""] * count if kept else [reason or "refused" for reason in rows["reason"]]
        painters = [painter or "" for painter in rows["backend"]]
        facets = [self._facet(*one) for one in zip(captions, painters, reasons, strict=True)]
        start = self._first + self._images
        ids = range(start, start + count)
        self._images += count
        if self._images >> SHARD_BITS:
            raise SynthClipError(f"a shard of more than {1 << SHARD_BITS} images: make smaller ones")
        scores = [{name: value for name, value in one or () if _is_number(value)} for one in rows["scores"]]
        for facet, caption in zip(facets, captions, strict=True):
            self._tallies[facet] = self._tallies.get(facet, 0) + 1
            if kept:
                self._kept[caption] = self._kept.get(caption, 0) + 1
        nothing: list[Any] = [None] * count
        values = zip(
            ids,
            captions,
            facets,
            rows["key"],
            rows["variant"],
            rows.get("attempt", nothing),
            [None if seed is None else str(seed) for seed in rows["seed"]],
            [json.dumps(one) for one in scores],
            [bytes.fromhex(one) for one in rows["sha256"]] if kept else nothing,
            rows.get("offset", nothing),
            rows.get("length", nothing),
            strict=True,
        )
        self._db.executemany(f"INSERT INTO image VALUES ({', '.join('?' * 11)})", values)
        scored = (
            (name, facet, value, image)
            for image, facet, one in zip(ids, facets, scores, strict=True)
            for name, value in one.items()
        )
        self._db.executemany("INSERT INTO score VALUES (?, ?, ?, ?)", sorted(scored))

    def _ids_of_captions(self, rows: Mapping[str, list[Any]], kept: bool) -> Iterator[int]:
        fresh = []
        concepts = rows["concept_ids"] if kept else [None] * len(rows["text"])
        for content, text, ids in zip(rows["caption_id"], rows["text"], concepts, strict=True):
            known = text if content is None else content
            caption = self._captions.get(known)
            if caption is None:
                caption = self._captions[known] = self._first + len(self._captions)
                signed = None if content is None else signed_id(content)
                fresh.append((caption, signed, text or "", json.dumps(ids or [])))
                if kept:
                    self._concepts[caption] = ids or []
                elif content is not None:
                    self.without_concepts.append(content)
            yield caption
        self._db.executemany("INSERT INTO caption VALUES (?, ?, ?, ?)", fresh)
        texts = ((caption, text) for caption, _, text, _ in fresh)
        self._db.executemany("INSERT INTO words(rowid, text) VALUES (?, ?)", texts)

    def _facet(self, caption: int, painter: str, reason: str) -> int:
        leads = not reason and (caption, painter) not in self._led
        if leads:
            self._led.add((caption, painter))
        found = painter, reason, leads
        if found not in self._facets:
            values = (self._split, *found)
            self._db.execute(
                "INSERT OR IGNORE INTO facet(split, painter, reason, leads) VALUES (?, ?, ?, ?)", values
            )
            sql = "SELECT id FROM facet WHERE split = ? AND painter = ? AND reason = ? AND leads = ?"
            self._facets[found] = self._db.execute(sql, values).fetchone()[0]
        return self._facets[found]


def signed_id(content: int) -> int:
    """A caption's id as SQLite holds it."""
    return content - (1 << 64) if content >> 63 else content


def _drop(db: sqlite3.Connection, name: str) -> None:
    found = db.execute("SELECT id FROM shard WHERE name = ?", (name,)).fetchone()
    if found is None:
        return
    ids = found[0] << SHARD_BITS, (found[0] + 1) << SHARD_BITS
    texts = "SELECT 'delete', id, text FROM caption WHERE id >= ? AND id < ?"
    db.execute(f"INSERT INTO words(words, rowid, text) {texts}", ids)
    for table, column in (("caption", "id"), ("tag", "caption"), ("image", "id"), ("score", "image")):
        db.execute(f"DELETE FROM {table} WHERE {column} >= ? AND {column} < ?", ids)
    db.execute("DELETE FROM tally WHERE shard = ?", found)
    db.execute("DELETE FROM shard WHERE id = ?", found)


@contextlib.contextmanager
def _transaction(db: sqlite3.Connection) -> Iterator[None]:
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        db.execute("ROLLBACK")
        raise


def _seal(manifest: Manifest) -> str:
    return digest(manifest.fingerprint, *(f"{one.path} {one.sha256}" for one in manifest.files))[:32]


def _is_number(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
