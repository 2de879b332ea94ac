"""The index says what the run's files say, whatever happens to either."""

import itertools
import shutil
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

import drawn_run
from synthclip import schema
from synthclip.errors import SynthClipError
from synthclip.run.store import Outcome, RunDirectory
from synthclip.view.app import application
from synthclip.view.explorer import Explorer
from synthclip.view.filters import Filter, match_of
from synthclip.view.gallery import Gallery, Page
from synthclip.view.index import Index

ALL = Filter(variants="all")
WORDS = ("", "wall", "stone", "cat stone", '"a cat"', "wa*", "nowhere", "NUMBER")
WORDS_TABLE = sqlite3.connect(":memory:")
WORDS_TABLE.execute("CREATE VIRTUAL TABLE words USING fts5(text)")
CHOICES = st.builds(
    Filter,
    q=st.sampled_from(WORDS),
    concept=st.sampled_from(["", "cat", "moon", "nothing"]),
    split=st.sampled_from(["", "train", "heldout"]),
    show=st.sampled_from(["kept", "refused", "all"]),
    variants=st.sampled_from(["", "all"]),
    reason=st.sampled_from(["", "blank"]),
    sort=st.sampled_from(["", "contrast", "-contrast"]),
)


def rows(run: RunDirectory) -> list[dict[str, Any]]:
    """Every image, kept or refused, straight from the run's tables."""
    found: list[dict[str, Any]] = []
    for path in sorted(run.stage("images").rglob("*.parquet")):
        refused, led = "rejected" in path.parts, set[int]()
        for row in schema.read_table(path).to_pylist():
            leads = row["caption_id"] not in led
            led.add(row["caption_id"])
            of = {"split": path.parent.name, "refused": refused, "leads": leads or refused}
            found.append({"reason": "", **row, **of})
    concepts = {row["caption_id"]: row["concept_ids"] for row in found if not row["refused"]}
    return [{**row, "concept_ids": concepts[row["caption_id"]]} for row in found]


def is_match(row: dict[str, Any], where: Filter) -> bool:
    words = "".join(one if one.isalnum() else " " for one in row["text"].lower()).split()
    said = {
        "": True,
        "wall": "wall" in words,
        "stone": "stone" in words,
        "cat stone": {"cat", "stone"} <= set(words),
        '"a cat"': ("a", "cat") in itertools.pairwise(words),
        "wa*": any(word.startswith("wa") for word in words),
        "nowhere": False,
        "NUMBER": "number" in words,
    }[where.q]
    names = [drawn_run.NOUNS[one] for one in row["concept_ids"]]
    show = "refused" if where.reason else where.show
    return (
        said
        and (where.variants == "all" or row["leads"])
        and where.concept in ("", *names)
        and where.split in ("", row["split"])
        and where.reason in ("", row["reason"])
        and (show == "all" or (show == "refused") == row["refused"])
    )


def walk(gallery: Gallery, where: Filter, size: int) -> list[Page]:
    pages = [gallery.page(where, size=size)]
    while pages[-1].after:
        pages.append(gallery.page(where, pages[-1].after, size))
    return pages


@settings(max_examples=40)
@given(CHOICES, st.integers(1, 50))
def test_the_pages_of_a_filter_hold_each_matching_image_once(
    explorer: Explorer, drawn: RunDirectory, where: Filter, size: int
) -> None:
    gallery = explorer.runs["run"].gallery
    pages = walk(gallery, where, size)
    wanted = check_pages(pages, rows(drawn), where)
    assert gallery.count(where) == wanted
    assert all(len(page.tiles) == size for page in pages[:-1])


@settings(max_examples=40)
@given(CHOICES, st.integers(1, 50))
def test_pages_of_more_than_is_looked_through_at_once_hold_each_image_once_too(
    explorer: Explorer, drawn: RunDirectory, where: Filter, size: int
) -> None:
    limits = {"_CHUNK": 5, "_MAX_CHUNKS": 2, "_COUNTED": 3}
    gallery = explorer.runs["run"].gallery
    with pytest.MonkeyPatch.context() as patch:
        for name, value in limits.items():
            patch.setattr(f"synthclip.view.gallery.{name}", value)
        wanted = check_pages(walk(gallery, where, size), rows(drawn), where)
        assert gallery.count(where) in (None, wanted)


def check_pages(pages: list[Page], every: list[dict[str, Any]], where: Filter) -> int:
    """How many images match."""
    tiles = [tile for page in pages for tile in page.tiles]
    wanted = [row for row in every if is_match(row, where)]
    found = [(tile.split, tile.key, bool(tile.reason)) for tile in tiles]
    assert sorted(found) == sorted((row["split"], row["key"], row["refused"]) for row in wanted)
    if where.sort:
        values = [tile.scores["contrast"] for tile in tiles]
        assert values == sorted(values, reverse=not where.sort.startswith("-"))
    return len(wanted)


def test_shards_that_come_change_and_go_are_followed(run: RunDirectory) -> None:
    index = Index(run)
    gallery = Gallery(index)
    index.refresh()
    assert gallery.count(ALL) == 144
    before = gallery.page(replace(ALL, split="heldout")).tiles[0]

    moved = [row for row in rows(run) if row["split"] == "heldout" and not row["refused"]][:2]
    with run.begin("images", "heldout/00000", "changed", schema.REJECTED_IMAGE) as writer:
        writer.rows("heldout/00000.parquet", schema.IMAGE, [{**row, "text": "Other words"} for row in moved])
        shutil.copy(run.file("images", "heldout/00000.tar"), writer.path("heldout/00000.tar"))
        writer.commit(Outcome(2))
    index.refresh()
    assert gallery.count(replace(ALL, split="heldout")) == 2
    assert gallery.count(replace(ALL, q="other words")) == 2
    assert gallery.count(Filter(q="wall", split="heldout")) == 0
    assert gallery.place(before.id) is None

    run.remove("images", "heldout/00000")
    index.refresh()
    assert gallery.count(replace(ALL, split="heldout")) == 0
    assert gallery.count(Filter(split="heldout", show="all")) == 0
    assert gallery.count(ALL) == 120


def test_explorers_that_index_at_once_count_nothing_twice(run: RunDirectory) -> None:
    both = [Index(run), Index(run)]
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda index: index.refresh(), both))
    assert [Gallery(index).count(ALL) for index in both] == [144, 144]


def test_an_index_that_is_cut_off_is_made_again(run: RunDirectory) -> None:
    index = Index(run)
    index.refresh()
    index.path.write_bytes(index.path.read_bytes()[:50] + b"\0" * 9000)
    for beside in index.folder.glob("*.sqlite-*"):
        beside.unlink()
    again = Index(run)
    again.refresh()
    assert Gallery(again).count(ALL) == 144


def test_a_run_that_is_gone_keeps_its_index(run: RunDirectory) -> None:
    index = Index(run)
    index.refresh()
    shutil.move(run.path, run.path.with_name("elsewhere"))
    with pytest.raises(SynthClipError, match="moved or deleted"):
        index.refresh()
    assert Gallery(index).count(ALL) == 144


def test_damage_of_one_table_is_named_and_leaves_the_other_shards(run: RunDirectory) -> None:
    sidecar = run.file("images", "heldout/00000.parquet")
    sidecar.write_bytes(bytes(sidecar.stat().st_size))
    index = Index(run)
    with pytest.raises(SynthClipError, match=r"heldout/00000\.parquet.*verify"):
        index.refresh()
    assert Gallery(index).count(replace(ALL, split="train")) == 120


def test_concepts_are_described_from_every_stage(explorer: Explorer) -> None:
    (row,) = explorer.runs["run"].index.read("SELECT * FROM concept WHERE text = 'dog'")
    assert (row["written"], row["matched"], row["selected"]) == (5, 30, 10)
    assert row["pictures"] == 3 * sum(i % 12 == 1 for i in range(48))


@settings(max_examples=80)
@given(st.text(max_size=60))
def test_any_words_can_be_searched(words: str) -> None:
    if match := match_of(words):
        WORDS_TABLE.execute("SELECT * FROM words WHERE words MATCH ?", (match,)).fetchall()


def test_nothing_is_written_into_a_run(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("synthclip.run.manifests._MANY", 1)  # of few shards too an index would be written

    def state() -> dict[str, tuple[int, int]]:
        found = ((path, path.stat()) for path in sorted(run.path.rglob("*")))
        return {str(path): (one.st_size, one.st_mtime_ns) for path, one in found}

    before = state()
    explorer = Explorer([run.path])
    explorer.runs["run"].index.refresh()
    client = TestClient(application(explorer), base_url="http://localhost")
    key = explorer.runs["run"].gallery.page(ALL).tiles[0].key
    for address in (
        "",
        "gallery",
        "search",
        f"image/train/{key}",
        f"trace/train/{key}",
        "concepts",
        "evaluation",
    ):
        client.get(f"/run/{address}")
    assert state() == before
